-- name: record
-- Write down what attempts came to. A late or second writer matches nothing and changes nothing.
UPDATE meterctl.meter_events AS event
SET state = heard.state,
    answers_heard = heard.answers_heard,
    ever_in_doubt = event.ever_in_doubt OR heard.ever_in_doubt,
    doubt_since = CASE WHEN heard.state = 'in_doubt' THEN event.doubt_since END,
    settled_by = heard.settled_by,
    accepted_at = heard.accepted_at,
    late = heard.late,
    error_code = heard.error_code,
    error_message = heard.error_message,
    request_id = coalesce(heard.request_id, event.request_id),
    claimed_from = NULL,
    claimed_at = NULL
FROM unnest(
    %(ids)s::bigint[], %(attempt_counts)s::int[], %(states)s::text[], %(answers_heards)s::int[],
    %(ever_in_doubts)s::bool[], %(settled_bys)s::text[], %(accepted_ats)s::timestamptz[], %(lates)s::bool[],
    %(error_codes)s::text[], %(error_messages)s::text[], %(request_ids)s::text[]
) AS heard (id, attempt_count, state, answers_heard, ever_in_doubt, settled_by, accepted_at, late, error_code,
            error_message, request_id)
WHERE event.id = heard.id AND event.state = 'sending' AND event.run_id = %(run_id)s
  AND event.attempt_count = heard.attempt_count
RETURNING event.id

-- name: claim_fresh
-- Claim the oldest claimable event of each lane that has none under way: the lanes just answered, and the next lanes
-- behind the cursor, found by one index probe each. One row comes back even when nothing was claimed: it
-- carries the cursor. `run_id` marks what this run has tried: it is tried again by id only.
WITH RECURSIVE scan AS (
    (SELECT o.customer, 1 AS n
     FROM meterctl.meter_events AS o
     WHERE %(scan_max)s > 0 AND o.event_name = %(event_name)s AND o.customer > %(after_customer)s
       AND o.state IN ('pending', 'in_doubt') AND o.held_reason IS NULL
     ORDER BY o.customer LIMIT 1)
    UNION ALL
    SELECT following.customer, scan.n + 1
    FROM scan CROSS JOIN LATERAL (
        SELECT o.customer
        FROM meterctl.meter_events AS o
        WHERE o.event_name = %(event_name)s AND o.customer > scan.customer
          AND o.state IN ('pending', 'in_doubt') AND o.held_reason IS NULL
        ORDER BY o.customer LIMIT 1
    ) AS following
    WHERE scan.n < %(scan_max)s
),
lane AS (
    SELECT unnest(%(customers)s::text[]) AS customer
    UNION
    SELECT customer FROM scan
),
head AS (
    SELECT oldest.id
    FROM lane CROSS JOIN LATERAL (
        SELECT e.id
        FROM meterctl.meter_events AS e
        WHERE e.event_name = %(event_name)s AND e.customer = lane.customer
          AND e.state IN ('pending', 'in_doubt') AND e.held_reason IS NULL
          AND e.run_id IS DISTINCT FROM %(run_id)s
          AND (e.doubt_since IS NULL OR e.doubt_since > %(doubt_horizon)s)
          AND (e.state = 'in_doubt' OR e.sent_timestamp >= %(expired_before)s)
          AND {only}
        ORDER BY e.id LIMIT 1
        FOR UPDATE SKIP LOCKED
    ) AS oldest
    WHERE NOT EXISTS (
        SELECT FROM meterctl.meter_events AS s
        WHERE s.event_name = %(event_name)s AND s.customer = lane.customer
          AND s.state = 'sending' AND s.transport = 'single')
),
claimed AS (
    {claim}
)
SELECT scanned.*, claimed.*
FROM (SELECT count(*) AS lanes_scanned, max(customer) AS last_customer FROM scan) AS scanned
LEFT JOIN claimed ON true

-- name: claim_again
-- Claim events this run has tried before, whose wait is over, one per lane and only where the lane is free.
WITH head AS (
    SELECT e.id
    FROM meterctl.meter_events AS e
    WHERE e.id = ANY (%(ids)s)
      AND e.state IN ('pending', 'in_doubt') AND e.held_reason IS NULL
      AND (e.doubt_since IS NULL OR e.doubt_since > %(doubt_horizon)s)
      AND NOT EXISTS (
          SELECT FROM meterctl.meter_events AS s
          WHERE s.event_name = e.event_name AND s.customer = e.customer
            AND s.state = 'sending' AND s.transport = 'single')
      AND NOT EXISTS (
          SELECT FROM meterctl.meter_events AS earlier
          WHERE earlier.id = ANY (%(ids)s) AND earlier.id < e.id
            AND earlier.event_name = e.event_name AND earlier.customer = e.customer
            AND earlier.state IN ('pending', 'in_doubt'))
    FOR UPDATE SKIP LOCKED
)
{claim}

-- name: claim
-- The claim itself, committed before a byte goes out.
UPDATE meterctl.meter_events AS event
SET state = 'sending',
    claimed_from = event.state,
    claimed_at = %(now)s,
    last_attempt_at = %(now)s,
    attempt_count = event.attempt_count + 1,
    doubt_since = coalesce(event.doubt_since, %(doubt_since)s),
    run_id = %(run_id)s
FROM head
WHERE event.id = head.id
RETURNING event.id, event.event_name, event.customer, event.identifier, event.payload, event.sent_timestamp,
          event.attempt_count, event.answers_heard, event.claimed_from, event.ever_in_doubt, event.source_row_id,
          event.quantity, event.period_end

-- name: take_over
-- The run that holds the meter's lock comes back for what dead runs left: their attempts' fate is unknown.
UPDATE meterctl.meter_events
SET state = 'in_doubt', ever_in_doubt = true, claimed_from = NULL, claimed_at = NULL
WHERE event_name = %(event_name)s AND state = 'sending' AND run_id IS DISTINCT FROM %(run_id)s

-- name: expire
-- Never attempted, or every attempt proven unprocessed, and older than Stripe takes.
UPDATE meterctl.meter_events
SET state = 'expired', error_code = 'expired', error_message = 'older than 35 days before it could be sent'
WHERE event_name = %(event_name)s AND state = 'pending' AND sent_timestamp < %(expired_before)s
RETURNING coalesce(source_row_id, identifier) AS sample_id

-- name: count_open
-- What a run leaves: held for a person (by reason, or by the age of its doubt), and due but not tried by this run.
SELECT count(*) FILTER (WHERE held) AS held_count,
       (array_agg(id::text) FILTER (WHERE held))[1:5] AS held_ids,
       count(*) FILTER (WHERE NOT held AND run_id IS DISTINCT FROM %(run_id)s) AS untried_count
FROM (
    SELECT id, run_id, (held_reason IS NOT NULL OR (state = 'in_doubt' AND doubt_since <= %(doubt_horizon)s)) AS held
    FROM meterctl.meter_events AS e
    WHERE event_name = %(event_name)s AND state IN ('pending', 'in_doubt') AND {only}
) AS open

-- name: count_deliverable
SELECT count(*) FROM (
    SELECT FROM meterctl.meter_events
    WHERE event_name = %(event_name)s AND state IN ('pending', 'in_doubt') AND held_reason IS NULL
      AND (doubt_since IS NULL OR doubt_since > %(doubt_horizon)s)
    LIMIT %(limit)s
) AS waiting

-- name: identity
SELECT account, livemode FROM meterctl.identity

-- name: claim_identity
INSERT INTO meterctl.identity (account, livemode, since) VALUES (%(account)s, %(livemode)s, %(now)s)
ON CONFLICT DO NOTHING
