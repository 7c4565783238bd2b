-- name: next_hour
-- The first hour at or behind an instant that holds uncollected usage.
SELECT date_bin('1 hour', min(occurred_at), timestamptz 'epoch') AS hour
FROM meterctl.usage_outbox
WHERE meter = %(meter)s AND event_id IS NULL AND occurred_at BETWEEN %(since)s AND %(until)s
  AND (occurred_at >= %(fresh_from)s OR occurred_at < %(expired_before)s)

-- name: classify
-- Hours of uncollected usage as events: a line for each customer, subject and part of an hour that a billing period's
-- bounds leave, and for each subject that has no customer. `outcome` is pending, expired, refused or skipped;
-- `row_ids` are what the event stands for. Parts that are still open are left out.
-- {lock} keeps two runs from collecting the same row: the second one finds it collected.
WITH page AS MATERIALIZED (
    SELECT row_number() OVER (ORDER BY free.id) AS n, free.*, free.subject AS payer_0,
           date_bin('1 hour', free.occurred_at, timestamptz 'epoch') AS hour
    FROM (
        SELECT id, subject, occurred_at, quantity
        FROM meterctl.usage_outbox
        WHERE meter = %(meter)s AND event_id IS NULL
          AND occurred_at >= %(hour_from)s AND occurred_at < %(hour_until)s
          AND occurred_at BETWEEN %(since)s AND %(until)s
          AND (occurred_at >= %(fresh_from)s OR occurred_at < %(expired_before)s)
        ORDER BY id
        {lock}
    ) AS free
),
payer AS (
    {payers}
),
chosen AS (
    {chosen}
),
placed AS (
    SELECT page.id, page.subject, page.occurred_at, page.quantity, chosen.customer,
           page.occurred_at < %(expired_before)s AS is_expired,
           {customer_problem} AS code,
           {period_end} AS period_end,
           greatest(page.hour,
                    CASE WHEN chosen.period_start <= page.occurred_at THEN chosen.period_start END,
                    CASE WHEN chosen.period_end <= page.occurred_at THEN chosen.period_end END) AS window_start,
           least(page.hour + interval '1 hour',
                 CASE WHEN chosen.period_start > page.occurred_at THEN chosen.period_start END,
                 CASE WHEN chosen.period_end > page.occurred_at THEN chosen.period_end END) AS window_end
    -- Every line of `chosen` is of a line of `page`, so LEFT would do; but the planner takes the newest hour to be empty,
    -- and would then read `chosen` once for each row. FULL leaves it a hash or a merge only.
    FROM page FULL JOIN chosen USING (n)
),
summed AS (
    SELECT customer, subject, period_end, window_start, window_end, is_expired, code,
           trim_scale(sum(quantity)) AS value, min(occurred_at) AS occurred_at, min(id) AS first_id,
           array_agg(id) AS row_ids
    FROM placed
    WHERE code IS NOT NULL OR window_end + %(allowance)s <= %(now)s OR %(open_too)s
    GROUP BY customer, subject, period_end, window_start, window_end, is_expired, code
),
named AS (
    SELECT summed.*,
           greatest(least(date_trunc('second', window_end - interval '1 microsecond'), date_trunc('second', %(now)s)),
                    date_trunc('second', window_start + interval '999999 microseconds')) AS sent_timestamp,
           {event_identifier} AS identifier
    FROM summed CROSS JOIN LATERAL (
        SELECT %(event_name)s || '-' || summed.subject || '-'
               || to_char(summed.window_start AT TIME ZONE 'UTC', 'YYYYMMDD"T"HH24MISS"Z"') || '-' || first_id AS text
    ) AS template
),
judged AS (
    SELECT named.*,
           coalesce(named.code, CASE
               WHEN %(whole)s AND value <> trunc(value) THEN 'local:value_fractional'
               WHEN length(ltrim(replace(value::text, '.', ''), '0')) > %(digits_max)s THEN 'local:value_too_many_digits'
               WHEN scale(value) > %(places_max)s THEN 'local:value_too_many_places'
               WHEN EXISTS (SELECT FROM meterctl.meter_events AS other WHERE other.identifier = named.identifier)
                   THEN 'local:identifier_collision'
           END) AS problem
    FROM named
)
SELECT customer, subject, period_end, window_start, value, occurred_at, sent_timestamp, identifier, row_ids,
       problem AS code,
       CASE WHEN problem = 'no_subscription' THEN 'skipped'
            WHEN problem IS NOT NULL THEN 'refused'
            WHEN is_expired THEN 'expired'
            ELSE 'pending' END AS outcome
FROM judged

-- name: collect
-- Insert the hour's events, at most `room` to be sent, and bind their rows to them.
WITH classified AS MATERIALIZED (
    SELECT found.*, count(*) FILTER (WHERE outcome = 'pending') OVER (ORDER BY subject, window_start, identifier)
               AS pending_count
    FROM ({classify}) AS found
),
inserted AS (
    INSERT INTO meterctl.meter_events (
        meter, event_name, identifier, customer, value, quantity, occurred_at, sent_timestamp, payload, subject,
        window_start, period_end, state, collected_at, livemode, account)
    SELECT %(meter)s, %(event_name)s, identifier, customer, value, value, occurred_at, sent_timestamp,
           jsonb_build_object(%(customer_payload_key)s::text, customer, %(value_payload_key)s::text, value::text),
           subject, window_start, period_end, outcome, %(now)s, %(livemode)s, %(account)s
    FROM classified
    WHERE outcome IN ('pending', 'expired') AND pending_count <= coalesce(%(room)s, pending_count)
    ORDER BY subject, window_start
    RETURNING id, identifier, state, value
),
bound AS (
    UPDATE meterctl.usage_outbox AS usage SET event_id = made.id
    FROM (
        -- FULL and OFFSET for the planner, as above.
        SELECT inserted.id, classified.row_ids FROM inserted FULL JOIN classified USING (identifier) OFFSET 0
    ) AS made CROSS JOIN LATERAL unnest(made.row_ids) AS row (id)
    WHERE usage.id = row.id AND made.id IS NOT NULL
    RETURNING usage.id
)
SELECT outcome, code, count(*) AS event_count, coalesce(sum(value), 0) AS units, (array_agg(sample_id))[1:5] AS sample_ids,
       (SELECT count(*) FROM bound) AS row_count
FROM (
    SELECT state AS outcome, NULL AS code, value, identifier AS sample_id FROM inserted
    UNION ALL
    SELECT outcome, code, value, subject FROM classified WHERE outcome IN ('refused', 'skipped')
) AS seen
GROUP BY outcome, code

-- name: preview
-- What collecting would do, without writing; and what the ledger already holds for the meter.
SELECT outcome, code, count(*) AS event_count, coalesce(sum(value), 0) AS units,
       count(DISTINCT customer) AS customer_count, min(occurred_at) AS oldest, (array_agg(sample_id))[1:5] AS sample_ids,
       count(*) FILTER (WHERE period_end < %(late_before)s::timestamptz) AS late_count
FROM (
    SELECT outcome, code, value, customer, occurred_at, subject AS sample_id, period_end FROM ({classify}) AS found
    UNION ALL
    SELECT CASE WHEN held_reason IS NOT NULL OR doubt_since <= %(doubt_horizon)s THEN 'held'
                WHEN state = 'pending' AND sent_timestamp < %(expired_before)s THEN 'expired'
                ELSE 'pending' END,
           NULL, quantity, customer, occurred_at, coalesce(subject, identifier), period_end
    FROM meterctl.meter_events AS e
    WHERE event_name = %(event_name)s AND state IN ('pending', 'sending', 'in_doubt') AND {only}
) AS due
GROUP BY outcome, code
ORDER BY outcome, code

-- name: not_collected
-- What collecting would do with the usage alone.
SELECT outcome, code, count(*) AS event_count, coalesce(sum(value), 0) AS units, (array_agg(subject))[1:5] AS sample_ids
FROM ({classify}) AS found
WHERE outcome <> 'skipped'
GROUP BY outcome, code
ORDER BY outcome, code

-- name: backlog
-- Uncollected usage: of closed and of open windows, of free subjects too.
SELECT count(*) AS row_count, min(occurred_at) AS oldest
FROM meterctl.usage_outbox
WHERE meter = %(meter)s AND event_id IS NULL AND occurred_at BETWEEN %(since)s AND %(until)s
  AND (occurred_at >= %(fresh_from)s OR occurred_at < %(expired_before)s)

-- name: drop_done
-- Usage whose event is closed for good, and usage so old that no run looks at it any more, a batch at a time. LIMIT keeps
-- the event a probe for each row: the ledger's history is never read.
DELETE FROM meterctl.usage_outbox WHERE id IN (
    SELECT usage.id
    FROM meterctl.usage_outbox AS usage CROSS JOIN LATERAL (
        SELECT event.state, event.collected_at FROM meterctl.meter_events AS event WHERE event.id = usage.event_id LIMIT 1
    ) AS event
    WHERE usage.meter = %(meter)s AND usage.event_id IS NOT NULL
      AND event.collected_at < %(done_before)s AND event.state NOT IN ('pending', 'sending', 'in_doubt', 'rejected')
    UNION ALL
    SELECT id FROM meterctl.usage_outbox
    WHERE meter = %(meter)s AND event_id IS NULL AND occurred_at < %(too_old)s
    LIMIT %(batch_size)s
)

-- name: drop_keys
DELETE FROM meterctl.usage_keys WHERE (meter, dedup_key) IN (
    SELECT meter, dedup_key FROM meterctl.usage_keys WHERE recorded_at < %(known_since)s LIMIT %(batch_size)s
)

-- name: unknown_usage
-- Usage of meters that are not configured, or not enabled: nothing will ever send it.
SELECT meter AS event_name, count(*) AS event_count, (array_agg(DISTINCT subject))[1:5] AS sample_ids
FROM meterctl.usage_outbox
WHERE event_id IS NULL AND meter <> ALL (%(meters)s)
GROUP BY meter
ORDER BY meter
