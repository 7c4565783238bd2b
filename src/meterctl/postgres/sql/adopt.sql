-- name: relations
-- A table and, where it is partitioned, all partitions below it, parents first.
WITH RECURSIVE tree AS (
    SELECT %(oid)s::oid AS oid, NULL::oid AS parent, 0 AS depth
    UNION ALL
    SELECT below.inhrelid, below.inhparent, tree.depth + 1
    FROM tree
    JOIN pg_inherits AS below ON below.inhparent = tree.oid
    JOIN pg_class AS c ON c.oid = below.inhrelid AND c.relispartition
)
SELECT tree.oid, tree.parent, c.relkind::text AS kind, n.nspname AS schema, c.relname AS name,
       pg_get_userbyid(c.relowner)::text AS owner, pg_has_role(c.relowner, 'USAGE') AS owned,
       quote_ident(n.nspname) AS schema_quoted, has_schema_privilege(n.oid, 'CREATE') AS may_create
FROM tree JOIN pg_class AS c ON c.oid = tree.oid JOIN pg_namespace AS n ON n.oid = c.relnamespace
ORDER BY tree.depth, n.nspname, c.relname

-- name: indexes
-- Indexes by which unreported rows are found in order, recognised by what they are and not by their name:
-- btree (occurred_at, id, ...) WHERE reported_at IS NULL, in the columns' own collations, forwards or backwards.
SELECT i.indrelid AS table_oid, n.nspname AS schema, c.relname AS name, i.indexrelid AS oid,
       i.indisvalid AND i.indisready AS valid,
       (SELECT up.inhparent FROM pg_inherits AS up WHERE up.inhrelid = i.indexrelid) AS parent,
       EXISTS (SELECT FROM pg_stat_progress_create_index AS p WHERE p.index_relid = i.indexrelid) AS being_built
FROM pg_index AS i
JOIN pg_class AS c ON c.oid = i.indexrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_am AS am ON am.oid = c.relam AND am.amname = 'btree'
JOIN pg_attribute AS instant ON instant.attrelid = i.indrelid AND instant.attname = %(occurred_at)s
JOIN pg_attribute AS key ON key.attrelid = i.indrelid AND key.attname = %(id)s
WHERE i.indrelid = ANY (%(tables)s::oid[]) AND i.indnkeyatts >= 2
  AND i.indkey[0] = instant.attnum AND i.indkey[1] = key.attnum AND i.indcollation[1] = key.attcollation
  AND (SELECT bool_and(o.opcdefault) FROM pg_opclass AS o WHERE o.oid IN (i.indclass[0], i.indclass[1]))
  AND (i.indoption[0], i.indoption[1]) IN ((0, 0), (3, 3))
  AND pg_get_expr(i.indpred, i.indrelid) = format('(%%I IS NULL)', %(reported_at)s::text)
ORDER BY c.relname

-- name: leftovers
-- What an interrupted CREATE INDEX CONCURRENTLY leaves behind: it costs every write and serves no read.
SELECT i.indrelid AS table_oid, i.indexrelid AS oid, n.nspname AS schema, c.relname AS name
FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE i.indrelid = ANY (%(tables)s::oid[]) AND NOT (i.indisvalid AND i.indisready) AND c.relkind = 'i'
  AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index AS p WHERE p.index_relid = i.indexrelid)
ORDER BY c.relname

-- name: counting_body
-- A reading of nobody is kept as well, and named as nobody's.
BEGIN
    INSERT INTO meterctl.usage_outbox (meter, subject, quantity, occurred_at)
    SELECT {meter}, coalesce(inserted.{subject}::text, ''), count(*), now() FROM inserted GROUP BY 2;
    RETURN NULL;
END

-- name: counting_body_that_warns
BEGIN
    INSERT INTO meterctl.usage_outbox (meter, subject, quantity, occurred_at)
    SELECT {meter}, coalesce(inserted.{subject}::text, ''), count(*), now() FROM inserted GROUP BY 2;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'meterctl: rows inserted into % were not counted for meter %: %', TG_RELID::regclass, {meter}, SQLERRM;
    RETURN NULL;
END

-- name: counting_triggers
-- Tables on which the trigger stands and fires.
SELECT t.tgrelid AS table_oid
FROM pg_trigger AS t
JOIN pg_proc AS f ON f.oid = t.tgfoid AND f.proname = %(function)s
JOIN pg_namespace AS n ON n.oid = f.pronamespace AND n.nspname = 'meterctl'
WHERE t.tgrelid = ANY (%(tables)s::oid[]) AND t.tgname = %(trigger)s AND t.tgenabled IN ('O', 'A')
  AND t.tgnewtable = 'inserted'

-- name: counting_function
SELECT f.prosrc AS body,
       f.prosecdef AND 'search_path=pg_catalog, pg_temp' = ANY (coalesce(f.proconfig, '{}')) AS is_safe
FROM pg_proc AS f JOIN pg_namespace AS n ON n.oid = f.pronamespace
WHERE n.nspname = 'meterctl' AND f.proname = %(function)s AND f.pronargs = 0

-- name: counting_rights
-- Whether this role may make the function, and whether the function's owner, as whom it runs whoever inserts, may count:
-- this role where there is none yet.
SELECT quote_ident(owner) AS owner, has_schema_privilege('meterctl', 'CREATE') AS may_create,
       has_schema_privilege(owner, 'meterctl', 'USAGE')
           AND has_table_privilege(owner, 'meterctl.usage_outbox', 'INSERT') AS may_count
FROM (
    SELECT coalesce((
        SELECT pg_get_userbyid(f.proowner) FROM pg_proc AS f JOIN pg_namespace AS n ON n.oid = f.pronamespace
        WHERE n.nspname = 'meterctl' AND f.proname = %(function)s AND f.pronargs = 0), current_user)::text
) AS function (owner)

-- name: count_unreported
SELECT count(*) FROM {table} WHERE {reported_at} IS NULL

-- name: try_lock
-- Two adoptions at once would build the same index: the second one is told so. Without parameters, or the portal of
-- this statement would stay open with its snapshot, and CREATE INDEX CONCURRENTLY would wait for it for ever.
SELECT pg_try_advisory_xact_lock(x'61646F7074'::bigint)
