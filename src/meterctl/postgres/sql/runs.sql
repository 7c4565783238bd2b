-- name: start
INSERT INTO meterctl.runs (command, mode, account, host, pid, version, started_at)
VALUES (%(command)s, %(mode)s, %(account)s, %(host)s, %(pid)s, %(version)s, %(now)s)
RETURNING id

-- name: finish
UPDATE meterctl.runs SET finished_at = %(now)s, exit_code = %(exit_code)s, counts = %(counts)s WHERE id = %(run_id)s
