-- name: role
SELECT quote_ident(rolname) AS role, rolsuper AS superuser FROM pg_roles WHERE rolname = current_user

-- name: update_triggers
-- What an UPDATE of the stamp alone fires, on the table and its partitions. Of a trigger that partitions inherited, the
-- parent's own line is enough.
SELECT t.tgname AS name, quote_ident(p.pronamespace::regnamespace::text) || '.' || quote_ident(p.proname) AS function,
       CASE WHEN t.tgtype & 1 = 1 THEN 'row' ELSE 'statement' END AS level, t.tgrelid::regclass::text AS table
FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
WHERE t.tgrelid = ANY (%(tables)s) AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A') AND t.tgparentid = 0
  AND t.tgtype & 16 = 16
  AND (t.tgattr::text = '' OR EXISTS (
      SELECT FROM pg_attribute AS a
      WHERE a.attrelid = t.tgrelid AND a.attname = %(reported_at)s AND a.attnum = ANY (t.tgattr)))
ORDER BY t.tgrelid, t.tgname

-- name: without_seqscan
-- A small table is read as a whole whatever its indexes are; whether one would serve shows where that is dear.
SET LOCAL enable_seqscan = off

-- name: renewals
-- Periods that end soon, by the minute of the UTC day, rounded up; without a minute: how many ends are not known.
SELECT ceil(extract(epoch FROM renewal.period_end) / 60)::bigint %% 1440 AS minute, count(*) AS count
FROM (
    {payers}
) AS renewal
WHERE renewal.period_end IS NULL OR renewal.period_end BETWEEN %(now)s AND %(until)s
GROUP BY 1

-- name: paying
-- One lookup's customers whose subscription is in force now.
SELECT nullif(btrim(s.{customer}::text), '') AS customer, {period_end} AS period_end
FROM (SELECT %(now)s::timestamptz AS occurred_at) AS page JOIN {table} AS s ON true
WHERE s.{subject} IS NOT NULL AND nullif(btrim(s.{customer}::text), '') IS NOT NULL AND {in_force}
