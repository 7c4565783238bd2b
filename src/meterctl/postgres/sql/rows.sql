-- name: classify
-- One keyset page of usage rows, each with what collecting it means: `outcome` is pending, rejected (locally),
-- expired or skipped (no subscription at that instant). Rows that have an event already come with its id and state.
-- `page` is limited before anything is joined, or the planner would sort the whole remainder for every page.
-- {payers} is a UNION of one SELECT per lookup, in order: (n, lookup, started, tiebreak, customer, period bounds).
-- {zone} makes an instant of a value of `occurred_at` whose type lacks the zone. Rows are paged by the column's own values
-- (`page_key`), as the index has them: they alone are in its order where clocks are set forward.
WITH page AS MATERIALIZED (
    SELECT row_number() OVER (ORDER BY limited.page_key, limited.id) AS n, limited.*
    FROM (
        SELECT u.{id} AS id,
               u.{id}::text AS row_id,
               u.{occurred_at} AS page_key,
               u.{occurred_at}{zone} AS occurred_at,
               {quantity} AS quantity,
               {identifier} AS identifier_text,
               {payload} AS own_payload,
               {payer_columns}
        FROM {table} AS u
        WHERE {page_filter}
        ORDER BY u.{occurred_at}, u.{id}
        LIMIT %(batch_size)s
    ) AS limited
),
payer AS (
    {payers}
),
chosen AS (
    {chosen}
),
known AS (
    -- LIMIT keeps this a probe for each row: before the ledger's first ANALYZE the planner takes it to be empty, and
    -- would read all its events for every page.
    -- An event of the meter under a former key is this row's if it is of the same instant, too. So is an open one of a
    -- meter that the configuration no longer has: whoever renamed it altogether must decide about that event first.
    SELECT page.n, event.event_id, event.event_state, event.is_another_row
    FROM page CROSS JOIN LATERAL (
        SELECT event.id AS event_id, event.state AS event_state,
               event.occurred_at IS NOT NULL AND event.occurred_at IS DISTINCT FROM page.occurred_at AS is_another_row
        FROM meterctl.meter_events AS event
        WHERE event.source_row_id = page.row_id AND event.state <> 'replaced'
          AND (event.meter = %(meter)s
               OR event.occurred_at = page.occurred_at
                  AND (event.event_name = %(event_name)s OR {left_behind}))
        ORDER BY event.meter = %(meter)s DESC
        LIMIT 1
    ) AS event
),
prepared AS (
    SELECT page.n, page.id, page.row_id, page.page_key, page.occurred_at, page.quantity, page.own_payload,
           trim_scale(page.quantity) AS value,
           {event_identifier} AS identifier,
           chosen.n IS NULL AS unsubscribed, chosen.subject, chosen.customer, chosen.ambiguous,
           {period_end} AS period_end,
           known.event_id, known.event_state, known.is_another_row
    FROM page
    LEFT JOIN chosen USING (n)
    LEFT JOIN known USING (n)
),
judged AS (
    SELECT prepared.*,
           CASE
               WHEN unsubscribed THEN NULL
               WHEN occurred_at IS NULL THEN 'local:no_occurred_at'
               WHEN identifier IS NULL THEN 'local:no_identifier'
               WHEN ambiguous THEN 'local:ambiguous_customer'
               WHEN customer IS NULL THEN 'local:no_customer_id'
               WHEN length(customer) > 100 THEN 'local:customer_id_too_long'
               WHEN value IS NULL THEN 'local:value_missing'
               WHEN value = 'NaN' THEN 'local:value_not_a_number'
               WHEN value IN ('Infinity', '-Infinity') THEN 'local:value_infinite'
               WHEN %(whole)s AND value <> trunc(value) THEN 'local:value_fractional'
               WHEN %(whole)s AND value < 0 THEN 'local:value_negative'
               WHEN length(ltrim(replace(abs(value)::text, '.', ''), '0')) > %(digits_max)s
                   THEN 'local:value_too_many_digits'
               WHEN scale(value) > %(places_max)s THEN 'local:value_too_many_places'
               WHEN own_payload <> '{{}}'
                    AND EXISTS (SELECT FROM jsonb_each_text(own_payload) AS pair WHERE length(pair.value) > 100)
                   THEN 'local:payload_too_long'
               WHEN identifier_taken THEN 'local:identifier_collision'
           END AS code
    FROM (
        SELECT prepared.*,
               EXISTS (
                   SELECT FROM meterctl.meter_events AS other
                   WHERE other.identifier = prepared.identifier
                     AND (other.meter, other.source_row_id) IS DISTINCT FROM (%(meter)s, prepared.row_id)
               ) OR row_number() OVER (PARTITION BY identifier, unsubscribed, event_id IS NULL ORDER BY n) > 1
               AS identifier_taken
        FROM prepared
    ) AS prepared
)
SELECT judged.n, judged.row_id, judged.page_key, judged.occurred_at, judged.subject, judged.customer, judged.period_end,
       judged.event_id, judged.event_state, judged.is_another_row, judged.code,
       CASE WHEN identifier_taken THEN NULL ELSE identifier END AS identifier,
       CASE WHEN value IN ('NaN', 'Infinity', '-Infinity') THEN NULL ELSE value END AS value,
       CASE WHEN value IN ('NaN', 'Infinity', '-Infinity') THEN NULL ELSE quantity END AS quantity,
       date_trunc('second', occurred_at) AS sent_timestamp,
       CASE WHEN judged.code IS NULL THEN own_payload || jsonb_build_object(
           %(customer_payload_key)s::text, customer, %(value_payload_key)s::text, value::text) END AS payload,
       'row ' || row_id || ' of ' || %(table_name)s || ' ' || problem.sentence AS message,
       CASE
           WHEN unsubscribed THEN 'skipped'
           WHEN judged.code IS NOT NULL THEN 'rejected'
           WHEN occurred_at < %(expired_before)s THEN 'expired'
           ELSE 'pending'
       END AS outcome
FROM judged
LEFT JOIN unnest(%(problem_codes)s::text[], %(problem_sentences)s::text[]) AS problem (code, sentence)
    ON problem.code = judged.code

-- name: collect
-- Insert the page's new events and say what the page held: the key to go on from, rows whose stamp is missing though
-- their event is accepted, and one line per kind of event. A row whose event is of another instant is another row under
-- a used id (a table that was emptied and counts from 1 again): neither billed nor stamped, but named.
-- A conflict can only come from another run that collected the same row meanwhile: it is that run's event then.
-- Where `room` is given, the page ends before the first row that would make one pending event too many.
WITH whole AS MATERIALIZED (
    {classify}
),
counted AS (
    SELECT whole.*, count(*) FILTER (WHERE outcome = 'pending' AND event_id IS NULL) OVER (ORDER BY n) AS pending_count
    FROM whole
),
classified AS MATERIALIZED (
    SELECT * FROM counted WHERE pending_count <= coalesce(%(room)s, pending_count)
),
inserted AS (
    INSERT INTO meterctl.meter_events (
        meter, event_name, identifier, customer, value, quantity, occurred_at, sent_timestamp, payload, subject,
        source_row_id, period_end, state, error_code, error_message, collected_at, livemode, account)
    SELECT %(meter)s, %(event_name)s, identifier, customer, value, quantity, occurred_at, sent_timestamp, payload,
           subject, row_id, period_end, outcome, code, message, %(now)s, %(livemode)s, %(account)s
    FROM classified
    WHERE outcome <> 'skipped' AND event_id IS NULL
    ORDER BY n
    ON CONFLICT DO NOTHING
    RETURNING state, error_code, source_row_id, quantity
),
page AS (
    SELECT (SELECT count(*) FROM whole) AS row_count, count(*) < (SELECT count(*) FROM whole) AS is_cut,
           (array_agg(page_key ORDER BY n DESC))[1] AS last_key,
           (array_agg(row_id ORDER BY n DESC))[1] AS last_id,
           array_agg(row_id) FILTER (WHERE event_state = 'accepted' AND NOT is_another_row) AS unstamped_ids
    FROM classified
),
kinds AS (
    SELECT outcome, code, count(*) AS event_count, sum(quantity) AS units, (array_agg(row_id))[1:5] AS sample_ids
    FROM (
        SELECT state AS outcome, error_code AS code, source_row_id AS row_id, quantity FROM inserted
        UNION ALL
        SELECT outcome, NULL, row_id, NULL FROM classified WHERE outcome = 'skipped' AND event_id IS NULL
        UNION ALL
        SELECT 'conflict', 'row_reused', row_id, NULL FROM classified WHERE is_another_row
    ) AS seen
    GROUP BY outcome, code
)
SELECT page.*, kinds.* FROM page LEFT JOIN kinds ON true

-- name: preview
-- What collecting everything and delivering it would do, without writing: the same classification, plus the events
-- the ledger already holds for the same meter.
WITH classified AS MATERIALIZED (
    {classify}
)
SELECT outcome, code, count(*) AS event_count, sum(quantity) AS units, count(DISTINCT customer) AS customer_count,
       min(occurred_at) AS oldest, (array_agg(row_id))[1:5] AS sample_ids,
       count(*) FILTER (WHERE period_end < %(late_before)s::timestamptz) AS late_count
FROM (
    SELECT outcome, code, quantity, customer, occurred_at, row_id, period_end FROM classified WHERE event_id IS NULL
    UNION ALL
    SELECT 'conflict', 'row_reused', quantity, customer, occurred_at, row_id, NULL FROM classified WHERE is_another_row
    UNION ALL
    SELECT CASE WHEN held_reason IS NOT NULL OR doubt_since <= %(doubt_horizon)s THEN 'held'
                WHEN state = 'pending' AND sent_timestamp < %(expired_before)s THEN 'expired'
                ELSE 'pending' END,
           NULL, quantity, customer, occurred_at, coalesce(source_row_id, identifier), period_end
    FROM meterctl.meter_events AS e
    WHERE event_name = %(event_name)s AND state IN ('pending', 'sending', 'in_doubt') AND {ledger_filter}
) AS due
GROUP BY outcome, code
ORDER BY outcome, code

-- name: span_counts
-- Of all rows of a span, whoever stamped them: how many Stripe has, and how many became too old for it.
SELECT count(*) FILTER (WHERE is_stamped OR state = 'accepted') AS reported,
       count(*) FILTER (WHERE NOT is_stamped AND state = 'expired') AS expired
FROM (
    SELECT u.{reported_at} IS NOT NULL AS is_stamped, event.state
    FROM {table} AS u LEFT JOIN LATERAL (
        SELECT event.state FROM meterctl.meter_events AS event
        WHERE u.{reported_at} IS NULL AND event.source_row_id = u.{id}::text AND event.meter = %(meter)s
          AND event.state IN ('accepted', 'expired')
        LIMIT 1
    ) AS event ON true
    WHERE {page_filter}
) AS row

-- name: uncollected
-- What the rows of a window are that have no event, without those that nobody pays for.
SELECT outcome, NULL AS code, count(*) AS event_count, sum(quantity) AS units, min(occurred_at) AS oldest,
       (array_agg(row_id))[1:5] AS sample_ids
FROM (
    {classify}
) AS classified
WHERE event_id IS NULL AND outcome <> 'skipped'
GROUP BY outcome
ORDER BY outcome

-- name: count_uncollected
-- Unreported rows behind a key that have no event: what a limit or a deadline left.
SELECT count(*), min(u.{occurred_at}{zone}) AS oldest FROM {table} AS u
WHERE {page_filter} AND NOT EXISTS (
    SELECT FROM meterctl.meter_events AS event
    WHERE event.source_row_id = u.{id}::text AND event.state <> 'replaced'
      AND (event.meter = %(meter)s
           OR event.occurred_at = u.{occurred_at}{zone} AND (event.event_name = %(event_name)s OR {left_behind})))

-- name: left_behind
-- An open event of a meter that is not configured. Where the configured meters are not named, there is none.
(cardinality(%(event_names)s::text[]) > 0 AND event.event_name <> ALL (%(event_names)s)
 AND event.state IN ('pending', 'sending', 'in_doubt'))

-- name: not_to_report
-- Of the rows asked for, those that no run would look at: unknown, too old or to be, or excluded by the meter's `since`
-- or `where`.
SELECT asked.id FROM unnest(%(row_ids)s::text[]) AS asked (id)
WHERE asked.id <> ALL (
    SELECT u.{id}::text FROM {table} AS u
    WHERE u.{id}::text = ANY (%(row_ids)s)
      AND (u.{reported_at} IS NOT NULL OR u.{occurred_at} IS NULL OR ({page_filter})))
ORDER BY asked.id

-- name: unstamp
-- Take off the stamps that these accepted events brought, and no older one: with the acceptance in doubt, a row that kept
-- its stamp could not be read anew by `ledger retry`, and its event would be forgotten without it by `db forget-test`.
UPDATE {table} AS u SET {reported_at} = NULL
FROM meterctl.meter_events AS event
WHERE event.id = ANY (%(event_ids)s) AND event.state = 'accepted'
  AND u.{id} = event.source_row_id::{id_type} AND u.{occurred_at} = event.occurred_at
  AND u.{reported_at} >= event.accepted_at - interval '1 second'

-- name: stamp
-- Locked rows are left for a later transaction: the ledger decides, the stamp is only its cache. Only the very row that
-- was billed is stamped, not another that came to have its id.
UPDATE {table} AS u SET {reported_at} = %(now)s{stamp_zone}
FROM (
    SELECT t.{id} AS id, t.{occurred_at} AS occurred_at FROM {table} AS t
    WHERE t.{id} = ANY (%(row_ids)s::text[]::{id_type}[]) AND t.{reported_at} IS NULL
      AND EXISTS (
          SELECT FROM meterctl.meter_events AS event
          WHERE event.source_row_id = t.{id}::text AND event.state = 'accepted'
            AND event.occurred_at = t.{occurred_at}{zone}
            AND (event.meter = %(meter)s OR event.event_name = %(event_name)s))
    ORDER BY t.{id}
    FOR NO KEY UPDATE OF t SKIP LOCKED
) AS free
WHERE u.{id} = free.id AND u.{occurred_at} = free.occurred_at
