-- name: columns
SELECT c.relkind::text, a.attname::text, format_type(a.atttypid, NULL), NOT a.attnotnull
FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
WHERE c.oid = to_regclass(%(name)s) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum

-- name: tables
-- Names a misspelt table could mean.
SELECT CASE WHEN pg_table_is_visible(c.oid) THEN c.relname ELSE n.nspname || '.' || c.relname END
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'meterctl')
  AND n.nspname NOT LIKE 'pg\_%%'
ORDER BY 1

-- name: comparable
-- Whether `=` exists between two types, implicit casts included, without touching any row.
SELECT NULL::{left} = NULL::{right}

-- name: privileges
SELECT has_table_privilege(to_regclass(%(name)s)::oid, 'SELECT')

-- name: column_privilege
SELECT has_column_privilege(to_regclass(%(name)s)::oid, %(column)s, %(privilege)s)

-- name: invalid_indexes
-- What an interrupted CREATE INDEX CONCURRENTLY leaves behind: it costs every write and serves no read.
SELECT i.indexrelid::regclass::text
FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
WHERE i.indrelid = to_regclass(%(name)s) AND NOT i.indisvalid AND c.relkind = 'i'
  AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index AS p WHERE p.index_relid = i.indexrelid)
ORDER BY 1
