-- A small company's month, relative to now: who pays, and what was used. One of everything the job must handle.

INSERT INTO organizations (id, name) VALUES ('acme', 'Acme'), ('globex', 'Globex'), ('hooli', 'Hooli');

INSERT INTO subscriptions (user_id, organization_id, stripe_customer_id, status, started_at, ended_at,
                           current_period_start, current_period_end)
VALUES
    -- users with a subscription of their own
    ('ada',   NULL,     'cus_ada',    'active',   now() - interval '200 days', NULL,
     now() - interval '12 days', now() + interval '18 days'),
    ('bob',   NULL,     'cus_bob',    'trialing', now() - interval '20 days', NULL,
     now() - interval '20 days', now() + interval '10 days'),
    -- organisations that pay for the users of their workspace
    (NULL,    'acme',   'cus_acme',   'active',   now() - interval '90 days', NULL,
     now() - interval '5 days', now() + interval '25 days'),
    -- its period ended three hours ago, and the invoice with it: what was used before is late
    (NULL,    'globex', 'cus_globex', 'active',   now() - interval '90 days', NULL,
     now() - interval '30 days', now() - interval '3 hours'),
    -- ended ten days ago: usage before that is billed, usage after it is not
    ('carol', NULL,     'cus_carol',  'canceled', now() - interval '60 days', now() - interval '10 days',
     now() - interval '30 days', now() + interval '1 day'),
    -- Stripe does not know this customer
    ('ghost', NULL,     'cus_ghost',  'active',   now() - interval '60 days', NULL, NULL, NULL);

INSERT INTO usage_events (workspace_id, user_id, quantity, created_at)
SELECT 'home', 'ada', numeric '1', now() - n * interval '3 hours' FROM generate_series(1, 80) AS n
UNION ALL
SELECT 'home', 'bob', 2, now() - n * interval '5 hours' FROM generate_series(1, 40) AS n
UNION ALL
SELECT 'acme', (ARRAY['erin', 'frank', 'grace'])[1 + n % 3], 3, now() - n * interval '1 hour'
FROM generate_series(1, 100) AS n
UNION ALL
SELECT 'globex', 'heidi', 5, now() - interval '4 hours' - n * interval '1 hour' FROM generate_series(1, 10) AS n
UNION ALL
SELECT 'home', 'carol', 1, now() - n * interval '1 day' FROM generate_series(1, 20) AS n
UNION ALL
SELECT 'free', 'ivan', 1, now() - n * interval '6 hours' FROM generate_series(1, 15) AS n
UNION ALL
SELECT 'home', 'ada', 1, now() - interval '40 days'         -- older than the 35 days Stripe takes
UNION ALL
SELECT 'home', 'ghost', 4, now() - interval '2 hours'
UNION ALL
SELECT 'home', 'bob', numeric 'NaN', now() - interval '2 hours';

-- Sensors of two organisations that pay and one that does not, and what the application recorded of their readings.
INSERT INTO sensors (id, organization_id, is_active)
SELECT o || '-' || n, o, n > 1
FROM (VALUES ('acme', 5), ('globex', 3), ('hooli', 2)) AS organization (o, count) CROSS JOIN generate_series(1, count) AS n;

SELECT count(meterctl.record_usage('temperature_readings', o, per_hour, now() - n * interval '1 hour'))
FROM (VALUES ('acme', 240), ('globex', 120), ('hooli', 60)) AS organization (o, per_hour)
CROSS JOIN generate_series(2, 13) AS n;
