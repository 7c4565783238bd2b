-- name: system_identifier
SELECT system_identifier::text FROM pg_control_system()

-- name: timeline
-- Of what is written now; the control file would tell that of the last checkpoint.
SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)

-- name: database_oid
SELECT oid::text FROM pg_database WHERE datname = current_database()

-- name: read
SELECT account, livemode, system_identifier, timeline, database_oid, recover_since FROM meterctl.identity

-- name: claim
INSERT INTO meterctl.identity (account, livemode, since, system_identifier, timeline, database_oid)
VALUES (%(account)s, %(livemode)s, %(now)s, %(system_identifier)s, %(timeline)s, %(database_oid)s)
ON CONFLICT DO NOTHING

-- name: mark
-- A mark that the ledger has not yet, for it is older than that or could not read it, is taken where the others agree.
UPDATE meterctl.identity
SET system_identifier = coalesce(system_identifier, %(system_identifier)s),
    timeline = coalesce(timeline, %(timeline)s),
    database_oid = coalesce(database_oid, %(database_oid)s)
WHERE (system_identifier IS NULL AND %(system_identifier)s::text IS NOT NULL
       OR timeline IS NULL AND %(timeline)s::text IS NOT NULL
       OR database_oid IS NULL AND %(database_oid)s::text IS NOT NULL)
  AND coalesce(system_identifier = %(system_identifier)s, true)
  AND coalesce(timeline = %(timeline)s, true)
  AND coalesce(database_oid = %(database_oid)s, true)

-- name: begin_recovery
-- One that died has done part of it: the earlier instant stands.
UPDATE meterctl.identity SET recover_since = least(recover_since, %(since)s)

-- name: end_recovery
UPDATE meterctl.identity
SET recover_since = NULL, recovered_at = %(now)s, system_identifier = %(system_identifier)s, timeline = %(timeline)s,
    database_oid = %(database_oid)s

-- name: open_events
-- What `db recover` puts in doubt and `db adopt-copy` closes.
SELECT event_name, state, count(*) AS event_count, coalesce(sum(quantity), 0) AS units,
       count(DISTINCT customer) AS customer_count
FROM meterctl.meter_events
WHERE state IN ('pending', 'sending', 'in_doubt')
GROUP BY event_name, state
ORDER BY event_name, state

-- name: doubt
-- What had no answer in the past that the database is of, may have had one since. Held events are looked at again. The
-- lost calls used up Idempotency-Keys (identifier:answers_heard), under which Stripe keeps their answers for a day: further
-- ones begin well behind them, so that no answer to a lost call is taken for one of ours. What the recovery itself found
-- too old to be sent may have been sent in time: totals decide, and what is proven absent expires again.
UPDATE meterctl.meter_events
SET state = 'in_doubt', ever_in_doubt = true, held_reason = NULL,
    doubt_since = CASE WHEN sent_timestamp < %(expired_before)s THEN 'epoch'
                       ELSE least(doubt_since, %(doubt_since)s) END,
    claimed_from = NULL, claimed_at = NULL, attempt_count = attempt_count + 1000, answers_heard = answers_heard + 1000,
    error_code = NULL, error_message = NULL
WHERE state IN ('pending', 'sending', 'in_doubt')
   OR state = 'expired' AND collected_at >= (SELECT recover_since FROM meterctl.identity)

-- name: break_series
-- Totals that were read before the loss say nothing of what was sent in it.
UPDATE meterctl.settlements SET decision = 'broken', decided_at = %(now)s WHERE decision IS NULL

-- name: close
UPDATE meterctl.meter_events
SET state = 'waived', closed_reason = %(reason)s, doubt_since = NULL, held_reason = NULL, claimed_from = NULL,
    claimed_at = NULL
WHERE state IN ('pending', 'sending', 'in_doubt')

-- name: unprove
-- What was found equal was found on the books of the original's account.
UPDATE meterctl.reconciliations SET latest = false WHERE latest

-- name: may_forget
SELECT has_table_privilege('meterctl.identity', 'DELETE')

-- name: forget
DELETE FROM meterctl.identity
