-- Units per customer: of the application's rows stamped as reported, and of the ledger's accepted events.
SELECT event.customer, coalesce(sum(usage.quantity) FILTER (WHERE usage.stripe_reported_at IS NOT NULL), 0),
       sum(event.quantity)
FROM meterctl.meter_events AS event JOIN usage_events AS usage ON usage.id::text = event.source_row_id
WHERE event.state = 'accepted'
GROUP BY event.customer
