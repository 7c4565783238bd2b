-- name: facts
-- What is known, nothing at first. The row is written even so: of two processes with events of one subscription the second
-- waits here until the first has ended, and reads what that one has kept.
INSERT INTO meterctl.subscription_facts AS known (subscription_id, facts) VALUES (%(subscription)s, '{}')
ON CONFLICT (subscription_id) DO UPDATE SET facts = known.facts
RETURNING facts

-- name: keep_facts
UPDATE meterctl.subscription_facts SET facts = %(facts)s WHERE subscription_id = %(subscription)s

-- name: held
-- What the rows say that may be the subscription's; a second one is enough to know that it is not the only one. Instants
-- lie between bounds, since the application may have written infinity.
SELECT {status}::text AS status,
       greatest(least(coalesce({ended_at}::timestamptz, 'infinity'), timestamptz '9000-01-01'), '2000-01-01') AS ended_at,
       greatest(least(coalesce({event_at}::timestamptz, '-infinity'), timestamptz '9000-01-01'), '2000-01-01') AS event_at
FROM {table} WHERE {condition} LIMIT 2 FOR UPDATE

-- name: is_row
{subscription} = %(subscription)s

-- name: is_free_row
-- Of a customer whose subscription the application has not written down.
{customer} = %(customer)s AND {subscription} IS NULL

-- name: update
UPDATE {table} SET {assignments} WHERE {condition}

-- name: insert
INSERT INTO {table} ({columns}) VALUES ({values})
