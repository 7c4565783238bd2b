-- name: select
-- Events of a selection, newest first. {filters} are conditions on `event`.
SELECT event.*, successor.id AS replaced_by
FROM meterctl.meter_events AS event
LEFT JOIN meterctl.meter_events AS successor ON successor.replaces = event.id
WHERE {filters}
ORDER BY event.id DESC
LIMIT %(limit)s

-- name: groups
-- What a selection holds, by meter, state and code: ids instead of events, so that a million of them still fits.
WITH chosen AS MATERIALIZED (
    SELECT event.id, event.meter, event.state, event.quantity, event.customer,
           CASE WHEN event.state = 'expired' THEN 'expired' ELSE event.error_code END AS code
    FROM meterctl.meter_events AS event
    WHERE {filters}
)
SELECT meter, state, code, coalesce(sum(quantity), 0) AS units, array_agg(id ORDER BY id) AS ids,
       (SELECT count(DISTINCT customer) FROM chosen) AS customer_count
FROM chosen
GROUP BY meter, state, code
ORDER BY count(*) DESC, meter, state, code

-- name: existing
SELECT id FROM meterctl.meter_events WHERE id = ANY (%(ids)s::numeric[]::bigint[])

-- name: chains
-- All events of one usage row that replaced one another, for each event asked for, in the order they were issued.
WITH RECURSIVE link AS (
    SELECT event.id AS asked, event.id FROM meterctl.meter_events AS event WHERE event.id = ANY (%(ids)s)
    UNION
    SELECT link.asked, neighbour.id
    FROM link JOIN meterctl.meter_events AS event USING (id)
    CROSS JOIN LATERAL (
        SELECT event.replaces AS id WHERE event.replaces IS NOT NULL
        UNION ALL
        SELECT successor.id FROM meterctl.meter_events AS successor WHERE successor.replaces = event.id
    ) AS neighbour
)
SELECT link.asked, event.id, event.identifier, event.state
FROM link JOIN meterctl.meter_events AS event USING (id)
ORDER BY link.asked, event.id

-- name: rejected
-- {lock}: FOR UPDATE. Two operators at once: the second waits here, then finds the events no longer rejected, or (a
-- local rejection that was mended and sent meanwhile) rejected for another reason than the one that was shown.
SELECT id, meter, identifier, source_row_id, occurred_at, error_code
FROM meterctl.meter_events
WHERE id = ANY (%(ids)s) AND state = 'rejected' AND error_code = coalesce(%(code)s, error_code)
ORDER BY id
{lock}

-- name: recode
-- A local rejection that has another cause by now says so.
UPDATE meterctl.meter_events AS event
SET error_code = fresh.code, error_message = fresh.message
FROM unnest(%(ids)s::bigint[], %(codes)s::text[], %(messages)s::text[]) AS fresh (id, code, message)
WHERE event.id = fresh.id AND event.state = 'rejected' AND event.error_code LIKE 'local:%%'
  AND event.error_code <> fresh.code

-- name: taken
SELECT identifier FROM meterctl.meter_events WHERE identifier = ANY (%(identifiers)s)

-- name: mend
-- A local rejection was never sent: the event itself takes its row's values of today, and keeps its identity.
UPDATE meterctl.meter_events AS event
SET state = 'pending', event_name = %(event_name)s, identifier = fresh.identifier, customer = fresh.customer,
    value = fresh.value, quantity = fresh.quantity, occurred_at = fresh.occurred_at,
    sent_timestamp = fresh.sent_timestamp, payload = fresh.payload::jsonb, subject = fresh.subject,
    period_end = fresh.period_end, error_code = NULL, error_message = NULL, told = false, closed_reason = %(reason)s
FROM unnest(
    %(ids)s::bigint[], %(identifiers)s::text[], %(customers)s::text[], %(values)s::numeric[],
    %(quantities)s::numeric[], %(occurred_ats)s::timestamptz[], %(sent_timestamps)s::timestamptz[],
    %(payloads)s::text[], %(subjects)s::text[], %(period_ends)s::timestamptz[]
) AS fresh (id, identifier, customer, value, quantity, occurred_at, sent_timestamp, payload, subject, period_end)
WHERE event.id = fresh.id AND event.state = 'rejected' AND event.error_code LIKE 'local:%%'

-- name: replace
UPDATE meterctl.meter_events SET state = 'replaced', closed_reason = %(reason)s
WHERE id = ANY (%(ids)s) AND state = 'rejected'

-- name: reissue
INSERT INTO meterctl.meter_events (
    meter, event_name, identifier, customer, value, quantity, occurred_at, sent_timestamp, payload, subject,
    source_row_id, window_start, period_end, state, replaces, collected_at, livemode, account)
SELECT old.meter, %(event_name)s, fresh.identifier, fresh.customer, fresh.value, fresh.quantity, fresh.occurred_at,
       fresh.sent_timestamp, fresh.payload::jsonb, fresh.subject, old.source_row_id, old.window_start,
       fresh.period_end, 'pending', old.id, %(now)s, old.livemode, old.account
FROM unnest(
    %(ids)s::bigint[], %(identifiers)s::text[], %(customers)s::text[], %(values)s::numeric[],
    %(quantities)s::numeric[], %(occurred_ats)s::timestamptz[], %(sent_timestamps)s::timestamptz[],
    %(payloads)s::text[], %(subjects)s::text[], %(period_ends)s::timestamptz[]
) AS fresh (id, identifier, customer, value, quantity, occurred_at, sent_timestamp, payload, subject, period_end)
JOIN meterctl.meter_events AS old ON old.id = fresh.id

-- name: waive
UPDATE meterctl.meter_events SET state = 'waived', closed_reason = %(reason)s
WHERE id = ANY (%(ids)s) AND state IN ('rejected', 'expired')
  AND (%(code)s::text IS NULL OR CASE WHEN state = 'expired' THEN 'expired' ELSE error_code END = %(code)s)
RETURNING id
