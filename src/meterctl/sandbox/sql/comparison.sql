-- Units per meter and customer: in the company's own tables, and in the ledger.
SELECT 'ai_suggestion', event.customer,
       coalesce(sum(usage.quantity) FILTER (WHERE usage.stripe_reported_at IS NOT NULL), 0), sum(event.quantity)
FROM meterctl.meter_events AS event JOIN usage_events AS usage ON usage.id::text = event.source_row_id
WHERE event.state = 'accepted'
GROUP BY event.customer
UNION ALL
SELECT 'temperature_readings', event.customer, sum(usage.units), sum(event.quantity)
FROM meterctl.meter_events AS event
JOIN (SELECT event_id, sum(quantity) AS units FROM meterctl.usage_outbox GROUP BY event_id) AS usage
    ON usage.event_id = event.id
WHERE event.state = 'accepted'
GROUP BY event.customer
UNION ALL
SELECT 'active_sensors', event.customer, max(sensors.level), (array_agg(event.value ORDER BY event.sent_timestamp DESC))[1]
FROM meterctl.meter_events AS event
JOIN (
    SELECT subscription.stripe_customer_id AS customer, count(*)::numeric AS level
    FROM sensors JOIN subscriptions AS subscription USING (organization_id)
    WHERE sensors.is_active
    GROUP BY 1
) AS sensors ON sensors.customer = event.customer
WHERE event.state = 'accepted' AND event.event_name = 'active_sensors'
GROUP BY event.customer
