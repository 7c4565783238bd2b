-- name: start
INSERT INTO meterctl.runs (command, mode, account, host, pid, version, started_at)
VALUES (%(command)s, %(mode)s, %(account)s, %(host)s, %(pid)s, %(version)s, %(now)s)
RETURNING id

-- name: finish
UPDATE meterctl.runs SET finished_at = %(now)s, exit_code = %(exit_code)s, counts = %(counts)s WHERE id = %(run_id)s

-- name: latest
SELECT id, command, mode, account, host, pid, version, started_at, finished_at, exit_code, counts
FROM meterctl.runs
ORDER BY id DESC
LIMIT %(limit)s

-- name: unfinished
-- Runs without an end that no living backend of theirs explains: still running, or dead.
SELECT count(*) FROM meterctl.runs WHERE finished_at IS NULL AND started_at >= %(since)s
