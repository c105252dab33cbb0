-- relations --
-- The wanted tables (by name or by oid) and every partition below them. Reads pg_inherits itself: the functions that
-- walk a partition tree lock every table in it, and would wait behind an ALTER TABLE.
with recursive wanted as (
    select c.oid
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    join unnest(%(schemas)s::text[], %(names)s::text[]) as w (schema, name) on w.schema = n.nspname and w.name = c.relname
    where c.relkind in ('r', 'p')
    union
    select c.oid from pg_class c where c.oid = any (%(oids)s::bigint[]::oid[]) and c.relkind in ('r', 'p')
), tree as (
    select oid as root, oid, '0'::xid as link from wanted
    union
    select t.root, i.inhrelid, i.xmin
    from tree t
    join pg_inherits i on i.inhparent = t.oid
    join pg_class c on c.oid = i.inhrelid and c.relispartition
)
select t.root::bigint,
       c.oid::bigint,
       n.nspname,
       c.relname,
       c.relfilenode::bigint,
       t.link::text::bigint,
       coalesce((
           select json_agg(
               json_build_array(a.attnum, a.attname, a.atttypid::bigint, a.atttypmod, a.attgenerated)
               order by a.attnum
           )
           from pg_attribute a
           where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
       ), '[]'::json),
       c.relreplident::text,
       coalesce(i.indexrelid::bigint, 0),
       array(
           select k.attnum::int
           from unnest(i.indkey) with ordinality as k (attnum, place)
           where k.place <= i.indnkeyatts
           order by k.place
       )
from tree t
join pg_class c on c.oid = t.oid
join pg_namespace n on n.oid = c.relnamespace
left join pg_index i
    on i.indrelid = c.oid and case when c.relreplident = 'i' then i.indisreplident else i.indisprimary end
order by t.root, c.oid <> t.root, c.oid

-- members --
-- Through what each table is published: its own membership, that of an ancestor, of a schema, or the publication
-- itself when it is for all tables.
with recursive up as (
    select oid as root, oid from pg_class where oid = any (%(oids)s::bigint[]::oid[])
    union
    select u.root, i.inhparent
    from up u
    join pg_class c on c.oid = u.oid and c.relispartition
    join pg_inherits i on i.inhrelid = u.oid
)
select u.root::bigint, m.oid::bigint
from up u
join pg_class c on c.oid = u.oid
join pg_publication p on p.pubname = %(publication)s
cross join lateral (
    select r.oid from pg_publication_rel r where r.prpubid = p.oid and r.prrelid = u.oid
    union all
    select s.oid from pg_publication_namespace s where s.pnpubid = p.oid and s.pnnspid = c.relnamespace
    union all
    select p.oid where p.puballtables
) as m

-- members_14 --
-- The same where a publication has no schemas yet.
with recursive up as (
    select oid as root, oid from pg_class where oid = any (%(oids)s::bigint[]::oid[])
    union
    select u.root, i.inhparent
    from up u
    join pg_class c on c.oid = u.oid and c.relispartition
    join pg_inherits i on i.inhrelid = u.oid
)
select u.root::bigint, m.oid::bigint
from up u
join pg_publication p on p.pubname = %(publication)s
cross join lateral (
    select r.oid from pg_publication_rel r where r.prpubid = p.oid and r.prrelid = u.oid
    union all
    select p.oid where p.puballtables
) as m

-- conditions --
-- What is true of the rows of each partition. Waits for locks on them.
select pg_get_partition_constraintdef(oid) from pg_class where oid = any (%(oids)s::bigint[]::oid[])

-- snapshot --
select pg_current_snapshot()::text

-- running --
-- Every transaction that has an id holds this lock until readers see its end. A snapshot names only those that are
-- older than the last one that ended.
select transactionid::text::bigint
from pg_locks
where locktype = 'transactionid' and mode = 'ExclusiveLock' and granted
