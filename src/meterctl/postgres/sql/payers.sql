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
-- The subscriptions in force of the customers of `gone` (customer, occurred_at), asked the other way round.
SELECT page.customer, {period_start} AS period_start, {period_end} AS period_end
FROM gone AS page
JOIN {table} AS s ON nullif(btrim(s.{customer}::text), '') = page.customer
WHERE {in_force}

-- name: chosen
-- Of the answers to each line of `page` the first lookup's newest subscription, and whether that is two customers.
SELECT DISTINCT ON (n) n, subject, customer, period_start, period_end,
       min(customer) OVER newest IS DISTINCT FROM max(customer) OVER newest AS ambiguous
FROM payer
WINDOW newest AS (PARTITION BY n, lookup, started)
ORDER BY n, lookup, started DESC, customer IS NULL, tiebreak
