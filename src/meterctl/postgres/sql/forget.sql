-- name: ledger
-- Whose ledger it is, and whether anything in it was meant for live mode.
SELECT identity.account, identity.livemode,
       EXISTS (SELECT FROM meterctl.meter_events WHERE livemode) AS has_live_events,
       EXISTS (SELECT FROM meterctl.runs WHERE mode = 'live') AS has_live_runs,
       (SELECT count(*) FROM meterctl.runs WHERE mode = 'test') AS run_count
FROM (SELECT) AS always LEFT JOIN meterctl.identity ON true

-- name: meters
-- Test events by meter. A row can bear a stamp of ours only where an event of it was accepted.
SELECT meter, array_agg(DISTINCT event_name ORDER BY event_name) AS event_names, count(*) AS event_count,
       coalesce(sum(quantity) FILTER (WHERE accepted_at IS NOT NULL), 0) AS units,
       count(*) FILTER (WHERE accepted_at IS NOT NULL AND source_row_id IS NOT NULL) AS accepted_row_count
FROM meterctl.meter_events
WHERE NOT livemode
GROUP BY meter
ORDER BY meter

-- name: lacking
-- What deleting needs and the plain role of the nightly job lacks.
SELECT t.relname
FROM pg_class AS t JOIN pg_namespace AS n ON n.oid = t.relnamespace
WHERE n.nspname = 'meterctl' AND t.relname IN (
    'meter_events', 'runs', 'identity', 'settlements', 'reconciliations', 'error_samples', 'error_reports', 'cursors')
  AND NOT has_table_privilege(t.oid, 'DELETE')
ORDER BY 1

-- name: living
-- Reports that have begun and live: one that waits for its lock holds none yet, but has the transaction open for it.
SELECT activity.application_name, activity.pid
FROM meterctl.runs AS run
JOIN pg_stat_activity AS activity ON activity.application_name = left('meterctl ' || run.pid || '@' || run.host, 63)
JOIN pg_locks AS open ON open.pid = activity.pid AND open.locktype = 'virtualxid'
WHERE run.finished_at IS NULL AND activity.datname = current_database()
  AND activity.application_name <> current_setting('application_name')
LIMIT 1

-- name: ours
-- Whether the stamp of row `t` is the one its event brought: it is set with the acceptance or later, never before. A
-- second is allowed, for a column may keep whole seconds only. If the row's time was edited since, or another row has its
-- id now, only the stamp of the very acceptance is known to be ours.
t.{reported_at}{stamp_zone} >= event.accepted_at - interval '1 second'
      AND (t.{occurred_at}{zone} = event.occurred_at OR t.{reported_at}{stamp_zone} <= event.accepted_at + interval '1 second')

-- name: verdicts
-- What each event's row is now. LIMIT keeps this a probe for each event, whatever the planner knows of the tables; the
-- id of a partitioned table need not be unique, so the row of the same instant comes first.
SELECT event.id, event.source_row_id,
       CASE
           WHEN event.accepted_at IS NULL OR event.source_row_id IS NULL THEN 'unstamped'
           WHEN bound.stamped IS NULL THEN CASE WHEN %(sees_all)s THEN 'gone' ELSE 'unseen' END
           WHEN NOT bound.stamped THEN 'unstamped'
           WHEN bound.ours THEN 'stamped'
           WHEN bound.older THEN 'foreign'
           ELSE 'changed'
       END AS verdict
FROM meterctl.meter_events AS event
LEFT JOIN LATERAL (
    SELECT t.{reported_at} IS NOT NULL AS stamped, ({ours}) AS ours,
           t.{reported_at}{stamp_zone} < event.accepted_at - interval '1 second' AS older
    FROM {table} AS t
    WHERE t.{id} = CASE WHEN event.accepted_at IS NOT NULL THEN event.source_row_id::{id_type} END
    ORDER BY t.{occurred_at}{zone} IS DISTINCT FROM event.occurred_at
    LIMIT 1
) AS bound ON true
WHERE {which}

-- name: count_verdicts
SELECT verdict, count(*) AS event_count, (array_agg(source_row_id ORDER BY id))[1:5] AS sample_ids
FROM ({verdicts}) AS judged
GROUP BY verdict

-- name: page
-- The next events of a meter that no other event replaces; what they replaced goes with them. Asked for each event by
-- itself, the index of `replaces` answers; as a join the planner might read the whole ledger for every page.
SELECT event.id, CASE WHEN event.accepted_at IS NOT NULL THEN event.source_row_id END AS row_id
FROM meterctl.meter_events AS event
WHERE event.meter = %(meter)s AND NOT event.livemode AND event.id > %(after_id)s
  AND (SELECT newer.id FROM meterctl.meter_events AS newer WHERE newer.replaces = event.id LIMIT 1) IS NULL
ORDER BY event.id
LIMIT %(batch_size)s

-- name: unstamp
-- Locked rows are left: their events stay, and a later run of the command takes them. A trigger may keep a stamp.
UPDATE {table} AS u SET {reported_at} = NULL
FROM (
    SELECT t.{id} AS id, t.{occurred_at} AS occurred_at
    FROM meterctl.meter_events AS event JOIN {table} AS t ON t.{id} = event.source_row_id::{id_type}
    WHERE event.id = ANY (%(ids)s) AND NOT event.livemode
      AND t.{id} = ANY (%(row_ids)s::text[]::{id_type}[])
      AND {ours}
    ORDER BY t.{id}
    FOR NO KEY UPDATE OF t SKIP LOCKED
) AS free
WHERE u.{id} = free.id AND u.{occurred_at} IS NOT DISTINCT FROM free.occurred_at AND u.{reported_at} IS NOT NULL
RETURNING u.{reported_at} IS NULL

-- name: delete
-- Events, those that they replaced, and what Stripe reported of them.
WITH RECURSIVE chain AS (
    SELECT event.id, event.replaces FROM meterctl.meter_events AS event WHERE event.id = ANY (%(ids)s)
    UNION ALL
    SELECT older.id, older.replaces FROM chain JOIN meterctl.meter_events AS older ON older.id = chain.replaces
),
reported AS (
    DELETE FROM meterctl.error_samples AS sample USING chain WHERE sample.meter_event_id = chain.id
)
DELETE FROM meterctl.meter_events AS event USING chain WHERE event.id = chain.id AND NOT event.livemode

-- name: is_empty
SELECT NOT EXISTS (SELECT FROM meterctl.meter_events) AS is_empty

-- name: delete_runs
WITH evidence AS (DELETE FROM meterctl.settlements), proofs AS (DELETE FROM meterctl.reconciliations),
     cursors AS (DELETE FROM meterctl.cursors WHERE NOT livemode),
     samples AS (DELETE FROM meterctl.error_samples), reports AS (DELETE FROM meterctl.error_reports)
DELETE FROM meterctl.runs WHERE mode = 'test'

-- name: delete_identity
DELETE FROM meterctl.identity WHERE NOT livemode
