-- name: chosen
-- Who pays for each usage of `page` (n, occurred_at, payer_0, payer_1, ...): of the first lookup that has a subscription
-- in force then, the newest. Usage without any has no row here.
-- {payers} is a UNION of one SELECT per lookup, in order: (n, lookup, started, tiebreak, customer, period bounds).
SELECT DISTINCT ON (n) n, subject, customer, period_start, period_end,
       min(customer) OVER newest IS DISTINCT FROM max(customer) OVER newest AS ambiguous
FROM (
    {payers}
) AS payer
WINDOW newest AS (PARTITION BY n, lookup, started)
ORDER BY n, lookup, started DESC, customer IS NULL, tiebreak

-- name: payer
-- One lookup's answer for the usage of the page: the subscriptions that were in force when it happened.
SELECT page.n, {lookup} AS lookup, {started} AS started,
       rank() OVER (PARTITION BY page.n ORDER BY {tiebreak}) AS tiebreak,
       page.{payer}::text AS subject,
       nullif(btrim(s.{customer}::text), '') AS customer,
       {period_start} AS period_start,
       {period_end} AS period_end
FROM page
JOIN {table} AS s ON s.{subject} = page.{payer}
WHERE {in_force}
