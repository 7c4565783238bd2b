-- name: open
-- What is not at rest, by meter. The partial index `not_at_rest` holds nothing else, whatever the history.
SELECT event_name,
       count(*) FILTER (WHERE state = 'pending') AS pending,
       count(*) FILTER (WHERE state = 'sending') AS sending,
       count(*) FILTER (WHERE state = 'in_doubt') AS in_doubt,
       count(*) FILTER (WHERE held_reason IS NOT NULL
                        OR (state = 'in_doubt' AND doubt_since <= %(doubt_horizon)s)) AS held,
       count(*) FILTER (WHERE held_reason IS NULL
                        AND state = 'in_doubt' AND doubt_since <= %(doubt_horizon)s) AS held_by_age,
       count(*) FILTER (WHERE state = 'rejected') AS rejected,
       count(*) FILTER (WHERE state = 'expired') AS expired,
       min(occurred_at) FILTER (WHERE state IN ('pending', 'sending', 'in_doubt')) AS oldest_open
FROM meterctl.meter_events
WHERE state IN ('pending', 'sending', 'in_doubt', 'rejected', 'expired')
GROUP BY event_name

-- name: accepted
SELECT event_name, count(*) AS accepted, coalesce(sum(quantity), 0) AS accepted_units
FROM meterctl.meter_events
WHERE state = 'accepted' AND accepted_at >= %(since)s
GROUP BY event_name

-- name: late
SELECT event_name, count(*) AS late, sum(quantity) AS late_units
FROM meterctl.meter_events
WHERE late AND accepted_at >= %(since)s
GROUP BY event_name

-- name: proven
-- Up to where all has been accepted, compared with Stripe's totals and found equal: the first event that is open or that
-- no comparison has seen, or the first difference of a customer. A meter that was never compared is left out.
SELECT event.event_name,
       least(min(proof.proven_until),
             date_trunc('minute', min(event.sent_timestamp) FILTER (
                 WHERE event.state <> 'accepted' OR proof.id IS NULL OR event.accepted_at >= proof.proven_at
                       OR event.sent_timestamp < proof.proven_from))) AS proven_up_to
FROM meterctl.meter_events AS event
LEFT JOIN meterctl.reconciliations AS proof
    ON proof.latest AND proof.event_name = event.event_name AND proof.customer = event.customer
WHERE event.state IN ('accepted', 'pending', 'sending', 'in_doubt') AND event.sent_timestamp >= %(since)s
  AND (event.account, event.livemode) = (SELECT account, livemode FROM meterctl.identity)
GROUP BY event.event_name
HAVING count(proof.id) > 0

-- name: problems
-- Rejections by their code, expiries and what is held, each with a few rows by name.
SELECT event_name, code, count(*) AS count, (array_agg(sample ORDER BY sample))[1:5] AS sample_ids
FROM (
    SELECT event_name, coalesce(source_row_id, identifier, id::text) AS sample,
           CASE WHEN state = 'rejected' THEN error_code WHEN state = 'expired' THEN 'expired' ELSE 'held' END AS code
    FROM meterctl.meter_events AS e
    WHERE state IN ('pending', 'sending', 'in_doubt', 'rejected', 'expired')
      AND (state IN ('rejected', 'expired') OR held_reason IS NOT NULL
           OR (state = 'in_doubt' AND doubt_since <= %(undecided_before)s AND NOT {reported_lately}))
) AS problem
GROUP BY event_name, code
ORDER BY event_name, code

-- name: runs
-- Newest first. A run that lives has a transaction open, the one that holds its locks; a pool may keep other connections
-- of its name. So a run without an end and without that has died. So has one whose process number on that host belongs to
-- a later run by now: containers give every run the same one.
SELECT run.id, run.command, run.mode, run.account, run.host, run.pid, run.version, run.started_at, run.finished_at,
       run.exit_code, run.counts,
       row_number() OVER (PARTITION BY run.host, run.pid ORDER BY run.id DESC) = 1
       AND EXISTS (SELECT FROM pg_stat_activity AS activity JOIN pg_locks AS open USING (pid)
                   WHERE open.locktype = 'virtualxid' AND activity.application_name = left('meterctl ' || run.pid || '@' || run.host, 63)) AS alive
FROM (SELECT * FROM meterctl.runs ORDER BY id DESC LIMIT %(limit)s) AS run
ORDER BY run.id DESC

-- name: last_good_run
-- From the newest back to the first good one: a year of runs every few minutes is not read.
SELECT finished_at FROM meterctl.runs WHERE exit_code IN (0, 10) AND command LIKE 'report%%' ORDER BY id DESC LIMIT 1
