-- name: payer
-- One lookup's answer for the lines of `page` (n, occurred_at, payer_0, payer_1, ...): the subscriptions that were in
-- force when the usage happened.
SELECT page.n, {lookup} AS lookup, {started} AS started,
       rank() OVER (PARTITION BY page.n ORDER BY {tiebreak}) AS tiebreak,
       page.{payer}::text AS subject,
       nullif(btrim(s.{customer}::text), '') AS customer,
       {period_start} AS period_start,
       {period_end} AS period_end
FROM page
JOIN {table} AS s ON {subject} = page.{payer}
WHERE {in_force}

-- name: payer_of_customer
-- The subscriptions in force of the customers of `candidate` (customer, occurred_at), asked the other way round.
SELECT page.customer, {period_start} AS period_start, {period_end} AS period_end
FROM candidate AS page
JOIN {table} AS s ON nullif(btrim(s.{customer}::text), '') = page.customer
WHERE {in_force}

-- name: chosen
-- Of the answers to each line of `page` the first lookup's newest subscription, and whether that is two customers.
SELECT DISTINCT ON (n) n, subject, customer, period_start, period_end,
       min(customer) OVER newest IS DISTINCT FROM max(customer) OVER newest AS ambiguous
FROM payer
WINDOW newest AS (PARTITION BY n, lookup, started)
ORDER BY n, lookup, started DESC, customer IS NULL, tiebreak

-- name: reread
-- Events of subjects, asked again who pays for them.
WITH page AS MATERIALIZED (
    SELECT event.id AS n, event.subject AS payer_0, event.*
    FROM meterctl.meter_events AS event WHERE event.id = ANY (%(ids)s)
),
payer AS (
    {payers}
),
chosen AS (
    {chosen}
)
SELECT found.*, 'its customer ' || problem.sentence AS message, false AS is_another_row,
       CASE WHEN found.code = 'no_subscription' THEN 'skipped'
            WHEN found.code IS NOT NULL THEN 'rejected'
            WHEN found.sent_timestamp < %(expired_before)s THEN 'expired'
            ELSE 'pending' END AS outcome
FROM (
    SELECT page.id, page.identifier, page.value, page.quantity, page.occurred_at, page.sent_timestamp, page.subject,
           page.period_end, coalesce(chosen.customer, page.customer) AS customer,
           page.payload || jsonb_build_object(
               %(customer_payload_key)s::text, coalesce(chosen.customer, page.customer)) AS payload,
           CASE WHEN page.subject IS NOT NULL THEN {customer_problem} END AS code
    FROM page LEFT JOIN chosen USING (n)
) AS found
LEFT JOIN unnest(%(problem_codes)s::text[], %(problem_sentences)s::text[]) AS problem (code, sentence)
    ON problem.code = found.code
