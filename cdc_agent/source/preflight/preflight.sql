-- What the preflight asks of the catalogs. Nothing here writes, but for a temporary slot that ends with its session.
-- to_jsonb(row) ->> 'column' reads a column that older servers do not have as null.

-- calm_session --
-- A session that cannot write, cannot hang, and finds only built-in names.
select
    set_config('default_transaction_read_only', 'on', false),
    set_config('statement_timeout', '15s', false),
    set_config('lock_timeout', '5s', false),
    set_config('search_path', 'pg_catalog', false);

-- server --
-- The settings and counters that decide whether this server can feed us.
select
    current_setting('server_version_num')::int as version_num,
    current_setting('server_version') as version,
    pg_is_in_recovery() as in_recovery,
    current_setting('wal_level') as wal_level,
    current_setting('effective_wal_level', true) is not null as raises_wal_level,
    current_setting('max_replication_slots')::int as max_slots,
    (select count(*) from pg_replication_slots) as used_slots,
    array(select slot_name::text from pg_replication_slots where not active order by slot_name) as idle_slots,
    current_setting('max_wal_senders')::int as max_senders,
    (select count(*) from pg_stat_get_wal_senders()) as used_senders,
    current_setting('max_slot_wal_keep_size') as max_slot_wal_keep_size,
    -- Null where there is no such setting, and for a role that may not see it: current_setting() would fail for that one.
    (select setting from pg_settings where name = 'output_plugin_libraries') as plugin_libraries;

-- role --
-- Who we are. rds_replication is what Amazon hands out in place of REPLICATION.
select
    r.rolname::text as name,
    r.rolsuper as is_superuser,
    r.rolcreatedb as may_create_databases,
    r.rolcreaterole as may_create_roles,
    r.rolbypassrls as bypasses_rls,
    r.rolreplication as may_replicate,
    exists (select from pg_roles as a where a.rolname = 'rds_replication') as on_rds,
    exists (
        select from pg_roles as a where a.rolname = 'rds_replication' and pg_has_role(r.oid, a.oid, 'usage')
    ) as has_rds_replication,
    current_database()::text as database,
    has_database_privilege(current_database(), 'create') as may_create
from pg_roles as r
where r.rolname = session_user;

-- slot --
-- The slot of the configured name, whoever made it.
select
    s.slot_type as type,
    s.plugin::text as plugin,
    s.database::text as database,
    s.active_pid,
    s.wal_status,
    to_jsonb(s) ->> 'invalidation_reason' as invalidation_reason
from pg_replication_slots as s
where s.slot_name = %(slot)s;

-- relations --
-- The wanted tables, as far as they exist, and every leaf partition under each.
with wanted as (
    select c.oid
    from unnest(%(schemas)s::text[], %(names)s::text[]) as w (schema, name)
    join pg_namespace as n on n.nspname = w.schema
    join pg_class as c on c.relnamespace = n.oid and c.relname = w.name
),
members as (
    select oid as root_oid, oid from wanted
    union
    select w.oid, p.relid from wanted as w, pg_partition_tree(w.oid) as p where p.isleaf
)
select
    m.root_oid,
    m.oid,
    n.nspname::text as schema,
    c.relname::text as name,
    c.relkind::text as kind,
    c.relpersistence::text as persistence,
    c.relreplident::text as identity,
    pg_relation_is_publishable(m.oid::regclass) as is_publishable,
    pg_get_userbyid(c.relowner)::text as owner,
    pg_has_role(c.relowner, 'usage') as is_ours,
    has_schema_privilege(n.oid, 'usage') and has_table_privilege(m.oid, 'select') as may_select,
    row_security_active(m.oid) as hides_rows,
    a.oids as ancestor_oids,
    a.schema_oids as ancestor_schema_oids,
    array(
        select i.inhrelid::regclass::text from pg_inherits as i where i.inhparent = m.oid and c.relkind = 'r'
    ) as children,
    (select i.inhparent::regclass::text from pg_inherits as i where i.inhrelid = m.oid limit 1) as parent,
    array(
        select k.attname::text
        from pg_partitioned_table as p
        join pg_attribute as k on k.attrelid = p.partrelid and k.attnum = any(p.partattrs::int2[])
        where p.partrelid = m.oid
    ) as partition_columns
from members as m
join pg_class as c on c.oid = m.oid
join pg_namespace as n on n.oid = c.relnamespace
cross join lateral (
    select array_agg(x.oid) as oids, array_agg(x.relnamespace) as schema_oids
    from pg_class as x
    where x.oid = m.oid or x.oid in (select relid from pg_partition_ancestors(m.oid))
) as a
order by n.nspname, c.relname;

-- unique_indexes --
-- What could identify a row, and what keeps an index from being a replica identity (null: nothing does).
select
    i.indrelid as relation_oid,
    c.relname::text as name,
    i.indisprimary as is_primary,
    i.indisreplident as is_identity,
    k.columns,
    case
        when not i.indisvalid then 'is not valid'
        when not i.indimmediate then 'is deferrable'
        when i.indpred is not null then 'is partial'
        when i.indexprs is not null then 'is over an expression'
        when not k.not_null then 'has nullable columns'
    end as fault
from pg_index as i
join pg_class as c on c.oid = i.indexrelid
cross join lateral (
    select
        coalesce(array_agg(a.attname::text order by p.place), '{}') as columns,
        coalesce(bool_and(a.attnotnull), false) as not_null
    from unnest(i.indkey::int2[]) with ordinality as p (attnum, place)
    join pg_attribute as a on a.attrelid = i.indrelid and a.attnum = p.attnum
    where p.place <= i.indnkeyatts
) as k
where i.indisunique and i.indrelid = any(%(oids)s::oid[])
order by c.relname;

-- columns --
-- The columns of the wanted tables. generated: s stored, v virtual, '' neither.
select
    a.attrelid as relation_oid,
    a.attname::text as name,
    a.attgenerated::text as generated,
    case when a.attgenerated <> '' then pg_get_expr(d.adbin, d.adrelid) end as expression
from pg_attribute as a
left join pg_attrdef as d on d.adrelid = a.attrelid and d.adnum = a.attnum
where a.attrelid = any(%(oids)s::oid[]) and a.attnum > 0 and not a.attisdropped
order by a.attnum;

-- table_names --
-- Every table that somebody could have meant.
select n.nspname::text as schema, c.relname::text as name
from pg_class as c
join pg_namespace as n on n.oid = c.relnamespace
where c.relkind in ('r', 'p') and c.relpersistence <> 't'
    and n.nspname <> 'information_schema' and n.nspname not like 'pg\_%%'
order by n.nspname, c.relname;

-- publication --
-- Our publication, and the tables that are named in it one by one.
select
    p.puballtables as all_tables,
    p.pubinsert as inserts,
    p.pubupdate as updates,
    p.pubdelete as deletes,
    p.pubtruncate as truncates,
    p.pubviaroot as via_root,
    coalesce(to_jsonb(p) ->> 'pubgencols', 'n') = 's' as sends_generated,
    pg_has_role(p.pubowner, 'usage') as is_ours,
    array(
        select r.prrelid from pg_publication_rel as r
        where r.prpubid = p.oid and coalesce(to_jsonb(r) ->> 'prexcept', 'false') = 'false'
    ) as relation_oids
from pg_publication as p
where p.pubname = %(publication)s;

-- published_schemas --
-- The schemas that our publication holds as a whole. Postgres 15 and later.
select s.pnnspid as oid
from pg_publication_namespace as s
join pg_publication as p on p.oid = s.pnpubid
where p.pubname = %(publication)s;

-- published_tables --
-- What the publication sends of each table. Postgres 14 knows neither row filters nor column lists.
select
    c.oid,
    to_jsonb(t) ->> 'rowfilter' as row_filter,
    to_jsonb(t) -> 'attnames' as columns
from pg_publication_tables as t
join pg_namespace as n on n.nspname = t.schemaname
join pg_class as c on c.relnamespace = n.oid and c.relname = t.tablename
where t.pubname = %(publication)s and c.oid = any(%(oids)s::oid[]);

-- writers --
-- Open write transactions of all databases, oldest first: a new slot waits for every one of them.
-- Prepared transactions have no process, they are named by their gid.
select
    a.pid,
    null as gid,
    coalesce(a.usename, '?')::text as role,
    coalesce(a.datname, '?')::text as database,
    coalesce(a.application_name, '') as application,
    age(a.backend_xid) as age
from pg_stat_activity as a
where a.backend_xid is not null and a.pid <> pg_backend_pid()
union all
select null, p.gid, p.owner::text, p.database::text, 'prepared transaction', age(p.transaction)
from pg_prepared_xacts as p
order by age desc;

-- wait_briefly --
-- For the replication connection, whose own commands (IDENTIFY_SYSTEM and its like) stand in preflight.py. Creating a slot waits for writers under lock_timeout; statement_timeout never fires.
set lock_timeout = '2s';

-- place --
-- Which database of the world this is.
select (pg_control_system()).system_identifier::text as system_id, oid::bigint as database_oid
from pg_database where datname = current_database();

-- publishes_all --
select puballtables as all_tables from pg_publication where pubname = %(publication)s;

-- schema_named --
select oid from pg_namespace where nspname = %(schema)s;

-- published_of_schema --
select schemaname::text as schema, tablename::text as name
from pg_publication_tables where pubname = %(publication)s and schemaname = %(schema)s;
