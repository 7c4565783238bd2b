-- name: store
-- Returns those that are new. {events} is ours, or a table of the application's with the same columns.
INSERT INTO {events} (event_id, type, api_version, livemode, account, created, payload, source)
SELECT * FROM unnest(
    %(ids)s::text[], %(types)s::text[], %(api_versions)s::text[], %(livemodes)s::boolean[], %(accounts)s::text[],
    %(createds)s::timestamptz[], %(payloads)s::text[]::jsonb[], array_fill(%(source)s::text, ARRAY[cardinality(%(ids)s)]))
ON CONFLICT (event_id) DO NOTHING
RETURNING event_id

-- name: ids
-- The ids of a selection, oldest first: what happened earlier is acted on earlier.
SELECT event.event_id FROM {events} AS event WHERE {filters} ORDER BY event.created, event.event_id

-- name: list
SELECT event.event_id, event.type, event.created, event.status, event.source, event.attempt_count, event.outcome,
       event.error, event.received_at, event.processed_at, event.livemode
FROM {events} AS event
WHERE {filters}
ORDER BY event.created DESC, event.event_id DESC
LIMIT %(limit)s

-- name: show
SELECT event.event_id, event.type, event.api_version, event.livemode, event.account, event.created, event.status,
       event.source, event.attempt_count, event.outcome, event.error, event.received_at, event.processed_at,
       event.signature, octet_length(event.raw) AS raw_bytes, event.payload
FROM {events} AS event
WHERE event.event_id = ANY (%(ids)s)
ORDER BY event.created, event.event_id

-- name: read
SELECT event.event_id AS id, event.type, event.created, event.livemode, event.account, event.api_version, event.payload,
       event.status, event.processed_at
FROM {events} AS event WHERE event.event_id = %(event_id)s

-- name: lock
-- Whoever comes second waits here, and finds what the first one did.
SELECT event.status, event.processed_at FROM {events} AS event WHERE event.event_id = %(event_id)s FOR UPDATE

-- name: mark
UPDATE {events} SET status = %(status)s, outcome = %(outcome)s, error = NULL, payload = %(payload)s::jsonb,
    attempt_count = attempt_count + 1, processed_at = now()
WHERE event_id = %(event_id)s

-- name: fail
-- Not what another process has done meanwhile.
UPDATE {events} SET status = 'failed', error = %(error)s, attempt_count = attempt_count + 1, processed_at = now()
WHERE event_id = %(event_id)s AND (status IN ('received', 'failed') OR %(again)s)

-- name: take_up
UPDATE {events} SET status = 'received'
WHERE status = 'ignored' AND outcome = 'not handled' AND type = ANY (%(types)s) AND created >= %(since)s

-- name: count_failed
SELECT count(*) AS count, (array_agg(event_id ORDER BY created))[1:5] AS sample_ids
FROM {events} WHERE status = 'failed' AND livemode = %(livemode)s AND created >= %(since)s

-- name: cursors
SELECT type, read_until FROM meterctl.cursors WHERE account = %(account)s AND livemode = %(livemode)s

-- name: advance
-- Never backwards: of two that read at once, one was slower.
INSERT INTO meterctl.cursors AS cursor (type, account, livemode, read_until)
SELECT type, %(account)s, %(livemode)s, %(read_until)s FROM unnest(%(types)s::text[]) AS type
ON CONFLICT (type, account, livemode)
DO UPDATE SET read_until = greatest(cursor.read_until, excluded.read_until)
