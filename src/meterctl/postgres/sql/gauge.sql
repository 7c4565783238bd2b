-- name: classify
-- Levels at an instant, a line for each customer, and for each subject that has none: `outcome` is pending, held (fell
-- to 0 together with most others), known (this step was reported), newer (a later level of the period was sent),
-- refused or skipped. Whoever had a level the last time and has no line now, has the level 0, as long as a subscription
-- is in force. A subject's subscription that knows no period has that of the customer's others.
-- {explicit} stands in for what the table says of one subject. {payers} is as for rows.
WITH RECURSIVE page AS MATERIALIZED (
    SELECT row_number() OVER () AS n, counted.*, %(at)s::timestamptz AS occurred_at
    FROM (
        SELECT {payer_names}, count(*)::numeric AS level, false AS is_explicit
        FROM (
            SELECT {payer_columns} FROM {table} AS u WHERE (
{own}
            )
        ) AS u
        WHERE {not_explicit}
        GROUP BY {payer_names}
        {explicit}
    ) AS counted
),
payer AS (
    {payers}
),
chosen AS (
    {chosen}
),
asked AS (
    SELECT page.n, page.level, page.is_explicit, chosen.customer, chosen.period_start, chosen.period_end,
           coalesce(chosen.subject, page.{last_payer}::text) AS subject,
           {customer_problem} AS code
    FROM page LEFT JOIN chosen USING (n)
),
level AS (
    SELECT customer, sum(level) AS value, CASE WHEN count(*) = 1 THEN min(subject) END AS subject,
           max(period_start) AS period_start, max(period_end) AS period_end
    FROM asked
    WHERE code IS NULL
    GROUP BY customer
    HAVING bool_or(is_explicit) OR NOT %(is_explicit)s
),
reported AS (
    (SELECT customer FROM meterctl.meter_events
     WHERE event_name = %(event_name)s AND window_start IS NOT NULL ORDER BY customer LIMIT 1)
    UNION ALL
    SELECT following.customer
    FROM reported CROSS JOIN LATERAL (
        SELECT event.customer FROM meterctl.meter_events AS event
        WHERE event.event_name = %(event_name)s AND event.window_start IS NOT NULL AND event.customer > reported.customer
        ORDER BY event.customer LIMIT 1
    ) AS following
),
last_level AS MATERIALIZED (
    SELECT reported.customer, event.value, event.sent_timestamp, event.period_end
    FROM reported CROSS JOIN LATERAL (
        SELECT event.value, event.sent_timestamp, event.period_end FROM meterctl.meter_events AS event
        WHERE event.event_name = %(event_name)s AND event.window_start IS NOT NULL
          AND event.customer = reported.customer AND event.state IN ('pending', 'sending', 'in_doubt', 'accepted')
        ORDER BY event.sent_timestamp DESC LIMIT 1
    ) AS event
),
candidate AS MATERIALIZED (
    -- Not among them who may have the level that cannot be told apart.
    SELECT customer, %(at)s::timestamptz AS occurred_at
    FROM (SELECT customer FROM level
          UNION SELECT customer FROM last_level WHERE value <> 0 AND NOT %(is_explicit)s) AS one
    WHERE NOT EXISTS (
        SELECT FROM payer JOIN chosen USING (n) WHERE chosen.ambiguous AND payer.customer = one.customer)
),
period AS (
    SELECT customer, max(period_start) AS period_start, max(period_end) AS period_end
    FROM ({customers}) AS subscription
    GROUP BY customer
),
due AS (
    SELECT level.customer, level.value, level.subject,
           coalesce(level.period_start, period.period_start) AS period_start,
           coalesce(level.period_end, period.period_end) AS period_end
    FROM level LEFT JOIN period USING (customer)
    UNION ALL
    SELECT customer, 0, NULL, period_start, period_end FROM period
    WHERE customer NOT IN (SELECT customer FROM level)
),
timed AS (
    SELECT due.customer, due.subject,
           CASE WHEN %(whole)s THEN greatest(floor(due.value), 0) ELSE trim_scale(due.value) END AS value,
           {period_end} AS period_end,
           CASE WHEN turn.instant > %(step_start)s AND turn.instant <= %(at)s
                THEN date_trunc('second', turn.instant + interval '999999 microseconds')
                ELSE %(step_start)s END AS sent_timestamp
    FROM due CROSS JOIN LATERAL (
        -- The application may not have written down yet that a period has ended, and when the next one ends.
        SELECT CASE WHEN due.period_end <= %(at)s THEN due.period_end ELSE due.period_start END AS instant
    ) AS turn
),
named AS (
    SELECT timed.*, last_level.value AS last_value, last_level.sent_timestamp AS last_timestamp,
           {event_identifier} AS identifier
    FROM timed
    LEFT JOIN last_level USING (customer)
    CROSS JOIN LATERAL (
        SELECT %(event_name)s || '-' || timed.customer || '-'
               || to_char(timed.sent_timestamp AT TIME ZONE 'UTC', 'YYYYMMDD"T"HH24MISS"Z"') AS text
    ) AS template
),
judged AS (
    SELECT named.*, known.value AS known_value, known.id IS NOT NULL AS is_known,
           EXISTS (
               SELECT FROM meterctl.meter_events AS event
               WHERE event.event_name = %(event_name)s AND event.window_start IS NOT NULL
                 AND event.customer = named.customer
                 AND event.sent_timestamp >= %(gap_since)s::timestamptz
                 AND event.sent_timestamp < %(gap_until)s::timestamptz
                 AND event.state IN ('pending', 'sending', 'in_doubt', 'accepted')) AS is_no_gap,
           known.meter IS DISTINCT FROM %(meter)s AND known.event_name IS DISTINCT FROM %(event_name)s
               AND known.id IS NOT NULL AS is_taken,
           EXISTS (
               SELECT FROM meterctl.meter_events AS newer
               WHERE newer.event_name = %(event_name)s AND newer.window_start IS NOT NULL
                 AND newer.customer = named.customer AND newer.sent_timestamp > named.sent_timestamp
                 AND newer.period_end IS NOT DISTINCT FROM named.period_end
                 AND newer.state IN ('pending', 'sending', 'in_doubt', 'accepted')) AS is_older,
           coalesce(named.value = 0 AND named.last_value <> 0, false) AS falls
    FROM named LEFT JOIN meterctl.meter_events AS known USING (identifier)
),
weighed AS (
    SELECT judged.*, count(*) FILTER (WHERE falls AND NOT is_known) OVER () * 2
                         > count(*) FILTER (WHERE last_value <> 0) OVER () AS most_fall
    FROM judged
)
SELECT customer, subject, value, period_end, sent_timestamp, identifier, known_value,
       CASE outcome WHEN 'refused' THEN 'local:identifier_collision' WHEN 'held' THEN 'fell_to_zero' END AS code,
       outcome
FROM weighed CROSS JOIN LATERAL (
    SELECT CASE WHEN is_taken THEN 'refused'
                WHEN is_known OR is_no_gap THEN 'known'
                WHEN is_older AND NOT %(insisted)s THEN 'newer'
                WHEN falls AND most_fall AND NOT %(accept_zeros)s AND NOT %(is_explicit)s THEN 'held'
                ELSE 'pending' END AS outcome
) AS judgement
UNION ALL
SELECT NULL, subject, NULL, NULL, NULL, NULL, NULL, code,
       CASE WHEN code = 'no_subscription' THEN 'skipped' ELSE 'refused' END
FROM asked
WHERE code IS NOT NULL AND (is_explicit OR NOT %(is_explicit)s)

-- name: explicit
UNION ALL
SELECT {subjects}, %(level)s::numeric, true

-- name: collect
-- Insert the levels that are due and say what there was. A conflict can only come from another run's equal step.
WITH classified AS MATERIALIZED (
    SELECT * FROM ({classify}) AS found
),
inserted AS (
    INSERT INTO meterctl.meter_events (
        meter, event_name, identifier, customer, value, quantity, occurred_at, sent_timestamp, payload, subject,
        window_start, period_end, state, insisted, collected_at, livemode, account)
    SELECT %(meter)s, %(event_name)s, identifier, customer, value, value, sent_timestamp, sent_timestamp,
           jsonb_build_object(%(customer_payload_key)s::text, customer, %(value_payload_key)s::text, value::text),
           subject, %(step_start)s, period_end, 'pending', %(insisted)s, %(now)s, %(livemode)s, %(account)s
    FROM classified
    WHERE outcome = 'pending'
    ORDER BY customer
    ON CONFLICT DO NOTHING
    RETURNING customer, value
)
SELECT outcome, code, count(*) AS event_count, coalesce(sum(value), 0) AS units,
       (array_agg(coalesce(subject, customer)))[1:5] AS sample_ids
FROM (
    SELECT 'pending' AS outcome, NULL AS code, value, NULL AS subject, customer FROM inserted
    UNION ALL
    SELECT outcome, code, value, subject, customer FROM classified WHERE outcome <> 'pending'
) AS seen
GROUP BY outcome, code

-- name: preview
-- What reporting now would do, without writing; and what the ledger already holds for the meter.
SELECT outcome, code, count(*) AS event_count, coalesce(sum(value), 0) AS units,
       count(DISTINCT customer) AS customer_count, min(sent_timestamp) AS oldest,
       (array_agg(coalesce(subject, customer)))[1:5] AS sample_ids,
       count(*) FILTER (WHERE period_end < %(late_before)s::timestamptz) AS late_count
FROM (
    SELECT outcome, code, value, subject, customer, sent_timestamp, period_end FROM ({classify}) AS found
    UNION ALL
    SELECT CASE WHEN held_reason IS NOT NULL THEN 'held' ELSE 'pending' END, NULL, value, subject, customer,
           sent_timestamp, period_end
    FROM meterctl.meter_events AS e
    WHERE event_name = %(event_name)s AND state IN ('pending', 'sending', 'in_doubt') AND {only}
) AS due
GROUP BY outcome, code
ORDER BY outcome, code
