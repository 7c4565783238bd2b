-- name: windows
-- Customers and minutes with an old doubt that nobody holds, longest in doubt first, unless their series began less than
-- an hour ago: reading again would cost a read and decide nothing. None while what was sent before a recovery, whenever
-- that was, may not show in the totals yet.
SELECT doubt.customer, doubt.minute
FROM (
    SELECT customer, date_trunc('minute', sent_timestamp) AS minute, min(doubt_since) AS since
    FROM meterctl.meter_events
    WHERE event_name = %(event_name)s AND state = 'in_doubt' AND held_reason IS NULL
      AND doubt_since <= %(doubt_horizon)s
    GROUP BY 1, 2
) AS doubt
LEFT JOIN meterctl.settlements AS series
    ON series.event_name = %(event_name)s AND series.customer = doubt.customer AND series.minute = doubt.minute
       AND series.decision IS NULL
WHERE (series.first_seen IS NULL OR series.first_seen <= %(series_before)s)
  AND NOT EXISTS (SELECT FROM meterctl.identity WHERE recovered_at > %(recovered_before)s)
ORDER BY doubt.since, doubt.customer, doubt.minute

-- name: books
-- What the ledger says of one customer and minute. What was cancelled is no longer in Stripe's total.
SELECT coalesce(sum({weight}) FILTER (WHERE state = 'accepted'), 0) AS accepted,
       coalesce(sum(abs({weight})) FILTER (WHERE state = 'accepted'), 0) AS accepted_size,
       coalesce(array_agg(id ORDER BY id) FILTER (WHERE state = 'in_doubt'), '{{}}') AS doubt_ids,
       coalesce(array_agg({weight} ORDER BY id) FILTER (WHERE state = 'in_doubt'), '{{}}') AS doubt_weights,
       coalesce(array_agg(period_end ORDER BY id) FILTER (WHERE state = 'in_doubt'), '{{}}') AS period_ends,
       max(last_attempt_at) AS last_attempt_at,
       coalesce(bool_or(state = 'sending'), false) AS is_sending
FROM meterctl.meter_events
WHERE event_name = %(event_name)s AND customer = %(customer)s
  AND sent_timestamp >= %(minute)s AND sent_timestamp < %(minute)s + interval '1 minute'

-- name: lock_doubts
SELECT id FROM meterctl.meter_events
WHERE event_name = %(event_name)s AND customer = %(customer)s AND state = 'in_doubt'
  AND sent_timestamp >= %(minute)s AND sent_timestamp < %(minute)s + interval '1 minute'
ORDER BY id
FOR UPDATE

-- name: break
-- A read unlike the last one ends the series: it decides nothing. So does an attempt made since: it may yet count.
UPDATE meterctl.settlements SET decision = 'broken', decided_at = %(read_at)s
WHERE event_name = %(event_name)s AND customer = %(customer)s AND minute = %(minute)s AND decision IS NULL
  AND ((stripe_total, accepted_total, doubt_ids)
      IS DISTINCT FROM (%(stripe_total)s::numeric, %(accepted_total)s::numeric, %(doubt_ids)s::bigint[])
       OR first_seen < %(admissible_from)s)

-- name: note
INSERT INTO meterctl.settlements AS series (
    event_name, customer, minute, stripe_total, accepted_total, doubt_ids, read_count, first_seen, last_seen, run_id)
VALUES (%(event_name)s, %(customer)s, %(minute)s, %(stripe_total)s, %(accepted_total)s, %(doubt_ids)s, 1, %(read_at)s,
        %(read_at)s, %(run_id)s)
ON CONFLICT (event_name, customer, minute) WHERE decision IS NULL
DO UPDATE SET read_count = series.read_count + 1, last_seen = greatest(series.last_seen, excluded.last_seen),
              run_id = excluded.run_id
RETURNING id, first_seen, last_seen

-- name: conclude
UPDATE meterctl.settlements
SET decision = %(decision)s, decided_at = %(now)s, present_ids = %(present_ids)s, absent_ids = %(absent_ids)s
WHERE id = %(series_id)s AND decision IS NULL

-- name: accept
-- Late is judged by the last attempt: no later than that did Stripe get it.
UPDATE meterctl.meter_events
SET state = 'accepted', settled_by = %(settled_by)s, accepted_at = %(now)s, doubt_since = NULL, held_reason = NULL,
    late = coalesce(last_attempt_at > period_end + %(grace)s, false), error_code = NULL, error_message = NULL,
    closed_reason = %(reason)s
WHERE id = ANY (%(ids)s) AND state = 'in_doubt'
RETURNING id, source_row_id, quantity, late

-- name: return
-- Proven absent. What Stripe's own report named it has rejected, for the reason that it gave. All else is due again under
-- the same identifier, a second guard that costs nothing: should Stripe say that it knows it, the event is in doubt once
-- more. Too old for Stripe: expired. All attempts are answered for: under the Idempotency-Key of one that had no answer
-- Stripe might repeat the 200 of what it has dropped, so further ones have another.
UPDATE meterctl.meter_events AS event
SET state = fate.state, doubt_since = NULL, held_reason = NULL, closed_reason = %(reason)s, told = false,
    proven_absent = true, answers_heard = event.attempt_count,
    error_code = coalesce(fate.code, nullif(fate.state, 'pending')), error_message = fate.message
FROM (
    SELECT doubt.id, report.code,
           CASE WHEN report.code IS NOT NULL THEN 'rejected'
                WHEN doubt.sent_timestamp < %(expired_before)s THEN 'expired' ELSE 'pending' END AS state,
           CASE WHEN report.code IS NOT NULL THEN report.message
                WHEN doubt.sent_timestamp < %(expired_before)s
                THEN 'proven absent from Stripe, and older than the 35 days it takes' END AS message
    FROM meterctl.meter_events AS doubt
    LEFT JOIN LATERAL (
        SELECT sample.code, sample.message FROM meterctl.error_samples AS sample
        WHERE sample.meter_event_id = doubt.id AND sample.verdict IS NULL
        ORDER BY sample.id DESC LIMIT 1
    ) AS report ON true
    WHERE doubt.id = ANY (%(ids)s)
) AS fate
WHERE event.id = fate.id AND event.state = 'in_doubt'
RETURNING event.id, event.state, coalesce(event.source_row_id, event.identifier) AS sample_id, event.quantity,
          event.error_code

-- name: explain
-- What Stripe's reports said of these events is decided.
UPDATE meterctl.error_samples SET verdict = %(verdict)s
WHERE meter_event_id = ANY (%(ids)s) AND verdict IS NULL

-- name: hold
UPDATE meterctl.meter_events SET held_reason = %(held_reason)s WHERE id = ANY (%(ids)s) AND state = 'in_doubt'

-- name: held
-- What a person has to decide, each with the last reading of its minute.
SELECT event.id, event.event_name, event.customer, event.value, event.occurred_at, event.held_reason,
       event.identifier, event.source_row_id, series.stripe_total, series.accepted_total, series.read_count,
       series.first_seen, series.last_seen
FROM meterctl.meter_events AS event
LEFT JOIN LATERAL (
    SELECT * FROM meterctl.settlements AS series
    WHERE series.event_name = event.event_name AND series.customer = event.customer
      AND series.minute = date_trunc('minute', event.sent_timestamp)
    ORDER BY series.id DESC LIMIT 1
) AS series ON true
WHERE event.state = 'in_doubt' AND event.held_reason IS NOT NULL AND event.event_name = ANY (%(event_names)s)
ORDER BY event.event_name, event.customer, event.sent_timestamp, event.id
LIMIT %(limit)s

-- name: doubtable
-- What a person may put in doubt: what the ledger takes for accepted in one customer and minute.
SELECT id, customer, quantity, identifier, source_row_id FROM meterctl.meter_events
WHERE event_name = %(event_name)s AND customer = %(customer)s AND state = 'accepted'
  AND sent_timestamp >= %(minute)s AND sent_timestamp < %(minute)s + interval '1 minute'
ORDER BY id

-- name: doubt
-- In doubt since ever: only totals settle it, and no report sends it again on account of its age.
UPDATE meterctl.meter_events
SET state = 'in_doubt', ever_in_doubt = true, doubt_since = 'epoch', accepted_at = NULL, settled_by = NULL,
    late = false, closed_reason = %(reason)s
WHERE id = ANY (%(ids)s) AND state = 'accepted'
RETURNING id
