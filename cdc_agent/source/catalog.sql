-- table_by_oid --
-- One table: its columns in order (name, type, number), its key, and the ancestors that a partition belongs to.
select c.oid::bigint,
       n.nspname,
       c.relname,
       c.relreplident,
       array(select a.relid::oid::bigint from pg_partition_ancestors(c.oid) a),
       coalesce((
           select json_agg(json_build_array(a.attname, a.atttypid::bigint, a.attnum) order by a.attnum)
           from pg_attribute a
           where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
       ), '[]'::json),
       array(
           select a.attname::text
           from pg_index i
           cross join unnest(i.indkey) with ordinality as k(attnum, place)
           join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
           where i.indrelid = c.oid
             and case when c.relreplident = 'i' then i.indisreplident else i.indisprimary end
             and k.place <= i.indnkeyatts
           order by k.place
       ),
       greatest(c.reltuples, 0)::bigint,
       c.relkind = 'p'
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
where c.oid = %s::oid

-- table_oid --
-- The oid of a table by its exact schema and name.
select c.oid::bigint
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
where n.nspname = %s and c.relname = %s and c.relkind in ('r', 'p')

-- family --
-- Names of a table and of every partition below it. (pg_partition_tree would lock them all, and wait for an ALTER TABLE.)
with recursive tree as (
    select %(oid)s::bigint::oid as oid
    union
    select i.inhrelid from tree t join pg_inherits i on i.inhparent = t.oid
)
select c.oid::bigint, n.nspname, c.relname
from tree t
join pg_class c on c.oid = t.oid
join pg_namespace n on n.oid = c.relnamespace

-- base_type --
-- What a domain is made of, however many domains deep; any other type is its own.
with recursive made_of as (
    select oid, typtype, typbasetype from pg_type where oid = %s::oid
    union all
    select t.oid, t.typtype, t.typbasetype from pg_type t join made_of m on m.typtype = 'd' and t.oid = m.typbasetype
)
select oid::bigint from made_of where typtype <> 'd'

-- leaves --
-- Estimated rows of a partitioned table: the sum over its leaves.
select coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint
from pg_partition_tree(%s::oid::regclass) t
join pg_class c on c.oid = t.relid
where t.isleaf

-- server --
-- Who the server is, and where its transaction counter stands.
select current_setting('server_version_num')::int,
       (select oid::bigint from pg_database where datname = current_database()),
       pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
       current_database()::text
