-- name: customers
-- Customers with any event in the range, or those that were named, who may have none: somebody else may have reported
-- for them. In a ledger that was adopted, another account's events are on that one's books.
SELECT %(event_name)s AS event_name, known.customer, proof.proven_until
FROM (
    SELECT DISTINCT customer FROM meterctl.meter_events
    WHERE event_name = %(event_name)s AND sent_timestamp >= %(start)s AND sent_timestamp < %(end)s
      AND customer IS NOT NULL AND %(only)s::text[] = '{}'
      AND (account, livemode) = (SELECT account, livemode FROM meterctl.identity)
    UNION ALL
    SELECT unnest(%(only)s::text[])
) AS known
LEFT JOIN meterctl.reconciliations AS proof
    ON proof.latest AND proof.event_name = %(event_name)s AND proof.customer = known.customer
ORDER BY known.customer

-- name: books
-- What the ledger says, by customer and window: of each kind how many events of which weight; of what is accepted, and
-- old enough for Stripe to show it, the sums alone. What was never attempted cannot be in Stripe's totals.
SELECT customer, greatest(date_trunc(%(unit)s, sent_timestamp), %(start)s) AS window_start, kind,
       CASE WHEN kind <> 'accepted' THEN weight END AS weight,
       count(*) AS event_count, sum(weight) AS total, sum(abs(weight)) AS size,
       count(*) FILTER (WHERE late) AS late_count, coalesce(sum(quantity) FILTER (WHERE late), 0) AS late_units
FROM (
    SELECT customer, sent_timestamp, {weight} AS weight, late, quantity,
           CASE
               WHEN state = 'accepted' AND last_attempt_at > %(fresh_since)s THEN 'fresh'
               WHEN state = 'accepted' THEN 'accepted'
               WHEN state = 'sending' THEN 'sending'
               WHEN state = 'in_doubt' AND held_reason IS NOT NULL THEN 'held'
               WHEN state = 'in_doubt' THEN 'in_doubt'
               WHEN state = 'cancelled' THEN 'cancelled'
               WHEN attempt_count > 0 AND state <> 'pending' THEN 'rejected'
           END AS kind
    FROM meterctl.meter_events
    WHERE event_name = %(event_name)s AND customer = ANY (%(customers)s)
      AND sent_timestamp >= %(start)s AND sent_timestamp < %(end)s
      AND (account, livemode) = (SELECT account, livemode FROM meterctl.identity)
) AS event
WHERE kind IS NOT NULL
GROUP BY 1, 2, 3, 4

-- name: one_at_a_time
-- Two comparisons of one customer are kept one after the other.
SELECT pg_advisory_xact_lock(hashtextextended('reconcile ' || %(event_name)s || ' ' || %(customer)s, 0))

-- name: supersede
UPDATE meterctl.reconciliations SET latest = false
WHERE latest AND event_name = %(event_name)s AND customer = %(customer)s
RETURNING proven_from, proven_until, proven_at

-- name: store
INSERT INTO meterctl.reconciliations (
    run_id, event_name, customer, range_start, range_end, ledger_total, stripe_total, read_count, differences, proven,
    read_at, proven_from, proven_until, proven_at, latest)
VALUES (%(run_id)s, %(event_name)s, %(customer)s, %(start)s, %(end)s, %(ledger_total)s, %(stripe_total)s,
        %(read_count)s, %(differences)s, %(proven)s, %(read_at)s, %(proven_from)s, %(proven_until)s, %(proven_at)s, true)
