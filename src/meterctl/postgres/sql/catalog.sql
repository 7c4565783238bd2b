-- name: tables
-- The named tables as this role finds them, one line per column. Not by to_regclass, which raises where the role has no
-- USAGE on the schema: that is to be told together with everything else.
-- A domain counts as the type below it.
SELECT wanted.n, c.oid, ns.nspname AS schema, c.relname AS name, quote_ident(ns.nspname) AS schema_quoted,
       quote_ident(ns.nspname) || '.' || quote_ident(c.relname) AS quoted,
       c.relkind::text AS kind, has_schema_privilege(ns.oid, 'USAGE') AS schema_usable,
       row_security_active(c.oid) AS filtered,
       a.attname AS column, quote_ident(a.attname) AS column_quoted, format_type(a.atttypid, NULL) AS type,
       format_type(CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END, NULL) AS base_type,
       NOT a.attnotnull AS nullable, has_column_privilege(c.oid, a.attnum, 'SELECT') AS readable,
       has_column_privilege(c.oid, a.attnum, 'UPDATE') AS writable,
       has_column_privilege(c.oid, a.attnum, 'INSERT') AS insertable,
       pg_column_is_updatable(c.oid, a.attnum, true) AS updatable, a.atthasdef OR a.attidentity <> '' AS defaulted
FROM unnest(%(schemas)s::text[], %(names)s::text[]) WITH ORDINALITY AS wanted (schema, name, n)
JOIN pg_class AS c ON c.relname = wanted.name AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
JOIN pg_namespace AS ns ON ns.oid = c.relnamespace
LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_type AS t ON t.oid = a.atttypid
WHERE CASE WHEN wanted.schema IS NULL THEN pg_table_is_visible(c.oid) ELSE ns.nspname = wanted.schema END
ORDER BY wanted.n, a.attnum

-- name: unique_columns
-- Columns each of whose values stands in one row at most, and by which ON CONFLICT finds it.
SELECT a.attname AS column
FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
WHERE i.indrelid = %(table)s AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indnkeyatts = 1
  AND i.indpred IS NULL

-- name: closed_sequences
-- Sequences that a default of the table counts by and that this role may not use. Those of identity columns, which have no
-- default, need no right.
SELECT quote_ident(n.nspname) || '.' || quote_ident(s.relname) AS name
FROM pg_attrdef AS ad
JOIN pg_depend AS d ON d.classid = 'pg_attrdef'::regclass AND d.objid = ad.oid AND d.refclassid = 'pg_class'::regclass
JOIN pg_class AS s ON s.oid = d.refobjid AND s.relkind = 'S'
JOIN pg_namespace AS n ON n.oid = s.relnamespace
WHERE ad.adrelid = %(table)s
  AND CASE WHEN s.relkind = 'S' THEN NOT has_sequence_privilege(s.oid, 'USAGE, UPDATE') ELSE false END
ORDER BY 1

-- name: table_names
-- What a name that was not found could mean.
SELECT CASE WHEN pg_table_is_visible(c.oid) THEN c.relname ELSE n.nspname || '.' || c.relname END AS name,
       has_schema_privilege(n.oid, 'USAGE') AS schema_usable, quote_ident(n.nspname) AS schema_quoted,
       pg_table_is_visible(c.oid) AS visible
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT c.relispartition
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'meterctl') AND n.nspname NOT LIKE 'pg\_%'
ORDER BY 1

-- name: role
SELECT quote_ident(current_user)

-- name: comparable
-- Whether `=` exists between two types, implicit casts included, without touching any row.
SELECT NULL::{left} = NULL::{right}

-- name: zone
-- Whether the server knows a time zone.
SELECT timestamptz 'epoch' AT TIME ZONE %(time_zone)s

-- name: zone_names
SELECT name FROM pg_timezone_names WHERE name LIKE '%%/%%' AND name NOT LIKE 'posix/%%' ORDER BY 1

-- name: ledger_privileges
-- What a run needs on the ledger and the role lacks. The tables' identity columns need no privilege on a sequence.
SELECT has_schema_privilege(n.oid, 'USAGE') AS schema_usable, lacking.relname AS table, lacking.privilege
FROM pg_namespace AS n
LEFT JOIN (
    SELECT t.relnamespace, t.relname, p.privilege
    FROM pg_class AS t CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS p (privilege)
    WHERE t.relkind IN ('r', 'p') AND NOT has_table_privilege(t.oid, p.privilege)
      AND (t.relname <> 'schema_migrations' OR p.privilege = 'SELECT')
      AND (p.privilege <> 'DELETE' OR t.relname IN ('usage_outbox', 'usage_keys'))
) AS lacking ON lacking.relnamespace = n.oid
WHERE n.nspname = 'meterctl'
ORDER BY 2, 3

-- name: schema_record
-- Whether the record of migrations is there and may be read; asked of the catalogs, which everybody may read.
SELECT has_schema_privilege(n.oid, 'USAGE') AS usable, pg_get_userbyid(n.nspowner)::text AS owner,
       has_schema_privilege(n.oid, 'CREATE') AS may_create,
       c.oid IS NOT NULL AS recorded, coalesce(has_table_privilege(c.oid, 'SELECT'), false) AS readable
FROM pg_namespace AS n
LEFT JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = 'schema_migrations' AND c.relkind = 'r'
WHERE n.nspname = 'meterctl'

-- name: schema_version
SELECT coalesce(max(version), 0) FROM meterctl.schema_migrations

-- name: may_create_schema
SELECT has_database_privilege(current_database(), 'CREATE') AS allowed, quote_ident(current_database()) AS database,
       quote_ident(current_user) AS role
