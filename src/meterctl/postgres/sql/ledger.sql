-- name: record
-- Write down what attempts came to. A late or second writer matches nothing and changes nothing.
UPDATE meterctl.meter_events AS event
SET state = heard.state,
    answers_heard = heard.answers_heard,
    ever_in_doubt = event.ever_in_doubt OR heard.ever_in_doubt,
    doubt_since = CASE WHEN heard.state <> 'in_doubt' THEN NULL
                       WHEN heard.totals_only THEN 'epoch' ELSE event.doubt_since END,
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
    %(error_codes)s::text[], %(error_messages)s::text[], %(request_ids)s::text[],
    %(totals_onlys)s::bool[]
) AS heard (id, attempt_count, state, answers_heard, ever_in_doubt, settled_by, accepted_at, late, error_code,
            error_message, request_id, totals_only)
WHERE event.id = heard.id AND event.state = 'sending' AND event.run_id = %(run_id)s
  AND event.attempt_count = heard.attempt_count
RETURNING event.id

-- name: oldest_lanes
-- The lanes whose events have waited longest, those first: whom a limit serves.
SELECT e.customer
FROM meterctl.meter_events AS e
WHERE e.event_name = %(event_name)s AND e.state IN ('pending', 'in_doubt') AND e.held_reason IS NULL
  AND (e.doubt_since IS NULL OR e.doubt_since > %(doubt_horizon)s)
  AND {only}
GROUP BY e.customer
ORDER BY min(e.id)
LIMIT %(lanes_max)s

-- name: claim_fresh
-- Claim the oldest claimable event of each lane that has none under way: the lanes just answered, then the next lanes
-- behind the cursor, found by one index probe each, until `claims_max` is reached. One row comes back even when nothing
-- was claimed: it carries the cursor. `run_id` marks what this run has tried: it is tried again by id only.
-- A lane whose oldest event is locked is another run's for now. Ordering by customer as well, within a range of one,
-- leaves the planner no index but `claimable`: in a long lane it would else walk the whole ledger by id.
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
    UNION ALL
    SELECT customer FROM scan
),
head AS (
    SELECT event.id
    FROM lane CROSS JOIN LATERAL (
        SELECT e.id
        FROM meterctl.meter_events AS e
        WHERE e.event_name = %(event_name)s AND e.customer BETWEEN lane.customer AND lane.customer
          AND e.state IN ('pending', 'in_doubt') AND e.held_reason IS NULL
          AND e.run_id IS DISTINCT FROM %(run_id)s
          AND (e.doubt_since IS NULL OR e.doubt_since > %(doubt_horizon)s)
          AND (e.state = 'in_doubt' OR e.sent_timestamp >= %(expired_before)s)
          AND {only}
          AND {may_be_sent}
          AND NOT EXISTS (
              SELECT FROM meterctl.meter_events AS s
              WHERE s.event_name = %(event_name)s AND s.customer = lane.customer
                AND s.state = 'sending' AND s.transport = 'single')
        ORDER BY e.customer, e.id LIMIT 1
    ) AS oldest
    JOIN meterctl.meter_events AS event USING (id)
    WHERE event.state IN ('pending', 'in_doubt') AND event.held_reason IS NULL
    ORDER BY lane.customer
    LIMIT %(claims_max)s
    FOR UPDATE OF event SKIP LOCKED
),
claimed AS (
    {claim}
)
SELECT reached.*, claimed.*
FROM (
    SELECT CASE WHEN granted.n = %(claims_max)s THEN greatest(granted.last_customer, %(after_customer)s)
                ELSE coalesce(scanned.last_customer, %(after_customer)s) END AS reached_customer,
           granted.n < %(claims_max)s AND scanned.n < %(scan_max)s AS scan_ended
    FROM (SELECT count(*) AS n, max(customer) AS last_customer FROM claimed) AS granted,
         (SELECT count(*) AS n, max(customer) AS last_customer FROM scan) AS scanned
) AS reached
LEFT JOIN claimed ON true

-- name: claim_again
-- Claim events this run has tried before, whose wait is over, one per lane and only where the lane is free.
WITH head AS (
    SELECT e.id
    FROM meterctl.meter_events AS e
    WHERE e.id = ANY (%(ids)s)
      AND e.state IN ('pending', 'in_doubt') AND e.held_reason IS NULL
      AND (e.doubt_since IS NULL OR e.doubt_since > %(doubt_horizon)s)
      AND {may_be_sent}
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
          event.quantity, event.period_end, event.proven_absent

-- name: minute_is_settled
-- Totals can only tell about a minute in which nothing is sent, so its other events wait while an old doubt is decided.
NOT EXISTS (
    SELECT FROM meterctl.meter_events AS d
    WHERE d.event_name = e.event_name AND d.customer = e.customer AND d.state = 'in_doubt' AND d.held_reason IS NULL
      AND d.doubt_since <= %(doubt_horizon)s
      AND d.sent_timestamp >= date_trunc('minute', e.sent_timestamp)
      AND d.sent_timestamp < date_trunc('minute', e.sent_timestamp) + interval '1 minute')

-- name: nothing_newer_sent
-- Of a level only the period's newest is billed. An older one must not arrive behind a newer one: Stripe does not say
-- whether the later timestamp or the later arrival counts. Nor a second one of an instant, such as a rejected level that
-- is issued again. Unless a person insisted. A newer one that Stripe has reported may count all the same.
(e.insisted OR NOT EXISTS (
    SELECT FROM meterctl.meter_events AS newer
    WHERE newer.event_name = e.event_name AND newer.customer = e.customer AND newer.window_start IS NOT NULL
      AND newer.sent_timestamp >= e.sent_timestamp
      AND (newer.sent_timestamp > e.sent_timestamp OR newer.id < e.id)
      AND newer.period_end IS NOT DISTINCT FROM e.period_end
      AND newer.attempt_count > 0
      AND (newer.state IN ('sending', 'in_doubt', 'accepted')
           OR newer.sent_timestamp > e.sent_timestamp AND EXISTS (
               SELECT FROM meterctl.error_samples AS sample WHERE sample.meter_event_id = newer.id))))

-- name: supersede
UPDATE meterctl.meter_events AS e
SET state = 'superseded', doubt_since = NULL, held_reason = NULL
WHERE e.event_name = %(event_name)s AND e.state IN ('pending', 'in_doubt') AND {only} AND NOT {may_be_sent}

-- name: hold_too_old
-- A doubt about a level is settled by sending it again; when that is over, a person must say.
UPDATE meterctl.meter_events AS e SET held_reason = 'too_old'
WHERE event_name = %(event_name)s AND state = 'in_doubt' AND held_reason IS NULL
  AND sent_timestamp < %(expired_before)s AND {only}

-- name: take_over
-- The run that holds the meter's lock comes back for what dead runs left: their attempts' fate is unknown. Locked: one
-- of them is not dead, but only slow to commit.
UPDATE meterctl.meter_events
SET state = 'in_doubt', ever_in_doubt = true, claimed_from = NULL, claimed_at = NULL
WHERE state = 'sending' AND id IN (
    SELECT id FROM meterctl.meter_events
    WHERE event_name = %(event_name)s AND state = 'sending' AND run_id IS DISTINCT FROM %(run_id)s
    FOR UPDATE SKIP LOCKED)

-- name: expire
-- Never attempted, or every attempt proven unprocessed, and older than Stripe takes.
UPDATE meterctl.meter_events
SET state = 'expired', error_code = 'expired', error_message = 'older than 35 days before it could be sent'
WHERE state = 'pending' AND id IN (
    SELECT id FROM meterctl.meter_events AS e
    WHERE event_name = %(event_name)s AND state = 'pending' AND sent_timestamp < %(expired_before)s AND {only}
    FOR UPDATE SKIP LOCKED)
RETURNING coalesce(source_row_id, identifier) AS sample_id

-- name: count_open
-- What a run leaves: held up by an old doubt, its own or one of its minute, held for a person (by reason, or after days
-- without a decision), and due but not tried by this run.
SELECT count(*) FILTER (WHERE held OR NOT may_be_sent) AS held_count,
       count(*) FILTER (WHERE for_a_person) AS problem_count,
       (array_agg(id::text) FILTER (WHERE for_a_person))[1:5] AS problem_ids,
       count(*) FILTER (WHERE NOT held AND run_id IS DISTINCT FROM %(run_id)s AND may_be_sent) AS untried_count
FROM (
    SELECT id, run_id, held_reason IS NOT NULL OR (state = 'in_doubt' AND doubt_since <= %(doubt_horizon)s) AS held,
           held_reason IS NOT NULL OR (state = 'in_doubt' AND doubt_since <= %(undecided_before)s
                                       AND NOT {reported_lately}) AS for_a_person,
           {may_be_sent} AS may_be_sent
    FROM meterctl.meter_events AS e
    WHERE event_name = %(event_name)s AND state IN ('pending', 'in_doubt') AND {only}
) AS open

-- name: span_counts
-- Of a span's events, how many Stripe has, and how many became too old for it. What is accepted was accepted since.
SELECT count(*) FILTER (WHERE e.state = 'accepted') AS reported, count(*) FILTER (WHERE e.state = 'expired') AS expired
FROM meterctl.meter_events AS e
WHERE e.event_name = %(event_name)s AND {only}
  AND (e.state = 'expired' OR e.state = 'accepted' AND e.accepted_at >= %(span_since)s)

-- name: untold
-- What runs found that did not live to say so: of this meter, whatever it and its event_name were called then.
SELECT CASE WHEN late THEN 'late' ELSE state END AS outcome, error_code AS code, count(*) AS event_count,
       coalesce(sum(quantity), 0) AS units, (array_agg(coalesce(source_row_id, identifier)))[1:5] AS sample_ids
FROM meterctl.meter_events
WHERE NOT told AND (state IN ('rejected', 'expired') OR late)
  AND (event_name = %(event_name)s OR meter = %(meter)s)
GROUP BY 1, error_code
UNION ALL
SELECT 'error_report', NULL, sum(error_count - (
           SELECT count(*) FROM meterctl.error_samples AS sample
           WHERE sample.event_id = report.event_id AND sample.verdict = 'foreign'))::bigint,
       0, (array_agg(event_id ORDER BY created))[1:5]
FROM meterctl.error_reports AS report
WHERE NOT told AND event_name = %(event_name)s
HAVING count(*) > 0

-- name: note_told
-- A run has printed what there was; what another has found since is that one's to tell.
UPDATE meterctl.meter_events SET told = true
WHERE NOT told AND (state IN ('rejected', 'expired') OR late)
  AND (event_name = ANY (%(event_names)s) OR meter = ANY (%(meters)s))
  AND coalesce(run_id, 0) <= %(run_id)s
  AND collected_at <= (SELECT finished_at FROM meterctl.runs WHERE id = %(run_id)s)

-- name: note_reports_told
-- Those that were there when the run began: it looked for them then.
UPDATE meterctl.error_reports SET told = true
WHERE NOT told AND event_name = ANY (%(event_names)s)
  AND noted_at <= (SELECT started_at FROM meterctl.runs WHERE id = %(run_id)s)

-- name: undeliverable
-- Open events of meters that no longer exist: nothing will ever send them.
SELECT event_name, count(*) AS event_count, (array_agg(coalesce(source_row_id, identifier)))[1:5] AS sample_ids
FROM meterctl.meter_events
WHERE state IN ('pending', 'sending', 'in_doubt') AND event_name <> ALL (%(event_names)s)
GROUP BY event_name
ORDER BY event_name
