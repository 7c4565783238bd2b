-- name: acquire
SELECT pg_try_advisory_xact_lock(hashtextextended('meterctl:' || %(event_name)s, 0))

-- name: holder
SELECT activity.application_name, activity.pid
FROM pg_locks AS lock JOIN pg_stat_activity AS activity USING (pid)
WHERE lock.locktype = 'advisory' AND lock.granted AND lock.objsubid = 1
  AND (lock.classid::bigint << 32 | lock.objid::bigint) = hashtextextended('meterctl:' || %(event_name)s, 0)
  AND lock.database = (SELECT oid FROM pg_database WHERE datname = current_database())
