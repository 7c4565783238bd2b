-- name: select
-- Events of a selection, newest first. {filters} are conditions on `event`.
SELECT event.*, successor.id AS replaced_by
FROM meterctl.meter_events AS event
LEFT JOIN meterctl.meter_events AS successor ON successor.replaces = event.id
WHERE {filters}
ORDER BY event.id DESC
LIMIT %(limit)s

-- name: lock_rejected
-- Two operators at once: the second waits here, then finds the events no longer rejected.
SELECT id, meter, identifier, source_row_id, error_code
FROM meterctl.meter_events
WHERE id = ANY (%(ids)s) AND state = 'rejected'
ORDER BY id
FOR UPDATE

-- name: taken
SELECT identifier FROM meterctl.meter_events WHERE identifier = ANY (%(identifiers)s)

-- name: mend
-- A local rejection was never sent: the event itself takes its row's values of today, and keeps its identity.
UPDATE meterctl.meter_events AS event
SET state = 'pending', event_name = %(event_name)s, identifier = fresh.identifier, customer = fresh.customer,
    value = fresh.value, quantity = fresh.quantity, occurred_at = fresh.occurred_at,
    sent_timestamp = fresh.sent_timestamp, payload = fresh.payload::jsonb, subject = fresh.subject,
    period_end = fresh.period_end, error_code = NULL, error_message = NULL, closed_reason = %(reason)s
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
    source_row_id, period_end, state, replaces, collected_at, livemode, account)
SELECT old.meter, %(event_name)s, fresh.identifier, fresh.customer, fresh.value, fresh.quantity, fresh.occurred_at,
       fresh.sent_timestamp, fresh.payload::jsonb, fresh.subject, old.source_row_id, fresh.period_end, 'pending',
       old.id, %(now)s, old.livemode, old.account
FROM unnest(
    %(ids)s::bigint[], %(identifiers)s::text[], %(customers)s::text[], %(values)s::numeric[],
    %(quantities)s::numeric[], %(occurred_ats)s::timestamptz[], %(sent_timestamps)s::timestamptz[],
    %(payloads)s::text[], %(subjects)s::text[], %(period_ends)s::timestamptz[]
) AS fresh (id, identifier, customer, value, quantity, occurred_at, sent_timestamp, payload, subject, period_end)
JOIN meterctl.meter_events AS old ON old.id = fresh.id

-- name: waive
UPDATE meterctl.meter_events SET state = 'waived', closed_reason = %(reason)s
WHERE id = ANY (%(ids)s) AND state IN ('rejected', 'expired')
RETURNING id
