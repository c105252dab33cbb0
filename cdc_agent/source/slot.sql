-- describe_slot --
-- What the server says about one slot, and how much WAL it keeps.
select slot_name, plugin, database, active_pid, wal_status, confirmed_flush_lsn::text, restart_lsn::text,
       (pg_wal_lsn_diff(case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end,
                        restart_lsn))::bigint,
       (pg_wal_lsn_diff(case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end,
                        confirmed_flush_lsn))::bigint,
       coalesce(database = current_database(), false),
       -- No version before 17 has this column.
       to_jsonb(s) ->> 'invalidation_reason'
from pg_replication_slots s
where slot_name = %s

-- drop_slot --
select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = %s

-- blockers --
-- Sessions with an open write transaction: creating a slot waits for them.
select array_agg(pid order by pid) from pg_stat_activity where backend_xid is not null and pid <> pg_backend_pid()

-- publication --
-- Member tables and options of one publication; no row when it does not exist.
select p.oid::bigint, p.pubviaroot, p.puballtables,
       array(select r.prrelid::bigint from pg_publication_rel r where r.prpubid = p.oid)
from pg_publication p
where p.pubname = %s
