-- The statements of the ledger in Postgres. Every session's search_path is the ledger's schema alone.

-- begin_session --
-- Durable on return, whatever the server or the role says; and nobody waits for ever for who stopped in the middle.
select
    set_config('search_path', quote_ident(%(schema)s), false),
    set_config('synchronous_commit',
        case current_setting('synchronous_commit') when 'off' then 'on' else current_setting('synchronous_commit') end,
        false),
    set_config('idle_in_transaction_session_timeout', %(stall)s, false),
    set_config('lock_timeout', '60s', false),
    set_config('idle_session_timeout', '0', false),
    -- A machine that died is noticed within a minute, and what it held is free.
    set_config('tcp_keepalives_idle', '30', false),
    set_config('tcp_keepalives_interval', '10', false),
    set_config('tcp_keepalives_count', '3', false),
    set_config('statement_timeout', '0', false)

-- wait_briefly --
select set_config('lock_timeout', %s, false)

-- hold --
-- As long as the session lives. The lock that makers of tables take is another one.
select pg_advisory_lock(hashtextextended('cdc_agent daemon ' || %s, 0))

-- server --
select system_identifier::text || '/' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8),
    current_setting('server_encoding'), current_setting('server_version_num')::integer
from pg_control_system()

-- meta --
select value from meta where key = %s

-- note --
insert into meta values (%s, %s) on conflict (key) do update set value = excluded.value

-- forget_note --
delete from meta where key = %s

-- skip_generations --
select setval('generation_number', nextval('generation_number') + %s)

-- lock_manifests --
-- Waits for every flip that is under way, and holds the next ones back until the end of the transaction.
lock table manifest in share row exclusive mode

-- load_identity --
select system_id, timeline, database_oid, slot_name, plugin, slot_ready, publication_oid from identity where id = 1

-- save_identity --
insert into identity values (1, %s, %s, %s, %s, %s, %s, %s) on conflict (id) do update set
    system_id = excluded.system_id, timeline = excluded.timeline, database_oid = excluded.database_oid,
    slot_name = excluded.slot_name, plugin = excluded.plugin, slot_ready = excluded.slot_ready,
    publication_oid = excluded.publication_oid

-- begin_mending --
insert into mending (state, began_at, done) values (%s, %s, false)

-- end_mendings --
update mending set done = true where not done

-- mending --
select state from mending where not done order by id desc limit 1

-- mendings_since --
select count(*) from mending where state = %s and began_at >= %s

-- rebase_manifests --
-- Older than any change and any read to come.
update manifest set commit_lsn = 0, ordinal = 0, xid = 0, snapshot = null, epoch = 0

-- rebase_tombstones --
delete from manifest where deleted = 1

-- rebase_checkpoints --
update checkpoint set applied_lsn = 0

-- rebase_dead_letters --
update dead_letter set commit_lsn = 0, ordinal = 0

-- rebase_resyncs --
update resync set state = 'failed', finished_at = %s, snapshot = null, last_key = null where finished_at is null

-- rebase_source_tables --
delete from source_table

-- load_source_tables --
select name, oid, shape from source_table order by name

-- save_source_table --
insert into source_table values (%s, %s, %s)
on conflict (name) do update set oid = excluded.oid, shape = excluded.shape

-- load_collection --
select fingerprint from collection where name = %s

-- save_collection --
insert into collection values (%s, %s) on conflict (name) do update set fingerprint = excluded.fingerprint

-- generations --
select collection, number, physical, agent, fingerprint, spec, state, created_at, switched_at
from generation order by collection, number

-- save_generation --
insert into generation values (%s, %s, %s, %s, %s, %s, %s, %s, %s) on conflict (collection, number) do update set
    physical = excluded.physical, agent = excluded.agent, fingerprint = excluded.fingerprint, spec = excluded.spec,
    state = excluded.state, created_at = excluded.created_at, switched_at = excluded.switched_at

-- switch_generation --
update generation set state = case when number = %(number)s then 'live' else 'retired' end, switched_at = %(at)s
where collection = %(collection)s and (number = %(number)s or state = 'live')

-- register_agent --
insert into checkpoint values (%s, %s, 0) on conflict (agent) do nothing

-- forget_agent --
delete from checkpoint where agent = %s

-- forget_manifests --
delete from manifest where collection = %s

-- forget_intents --
delete from intent where collection = %s

-- forget_garbage --
delete from garbage where collection = %s

-- forget_dead_letters --
delete from dead_letter where collection = %s

-- forget_resyncs --
delete from resync where collections = %s

-- forget_collection --
delete from collection where name = %s

-- load_checkpoint --
select stream_offset, applied_lsn from checkpoint where agent = %s

-- hold_checkpoint --
-- Flips of one agent come one after the other, whoever makes them.
select stream_offset, applied_lsn from checkpoint where agent = %s for update

-- save_checkpoint --
update checkpoint set
    stream_offset = greatest(stream_offset, %(offset)s), applied_lsn = greatest(applied_lsn, %(lsn)s)
where agent = %(agent)s

-- load_manifests --
select m.document_id, commit_lsn, ordinal, xid, relation_oid, chunks, column_hashes, metadata_hash, snapshot, epoch,
       deleted, checksum
from manifest m where m.collection = %s and m.document_id = any(%s::text[])

-- hold_manifests --
-- Always in the same order, so that two flips never wait for each other.
select m.collection, m.document_id, commit_lsn, ordinal, xid, relation_oid, chunks, column_hashes, metadata_hash,
       snapshot, epoch, deleted, checksum
from unnest(%s::text[], %s::text[]) as wanted (collection, document_id)
join manifest m on m.collection = wanted.collection and m.document_id = wanted.document_id
order by m.collection, m.document_id for update of m

-- page_of_manifests --
select m.collection, m.document_id, commit_lsn, ordinal, xid, relation_oid, chunks, column_hashes, metadata_hash,
       snapshot, epoch, deleted, checksum
from manifest m where (%(collection)s::text is null or collection = %(collection)s)
    and (collection, document_id) > (%(after_collection)s, %(after_document)s)
order by collection, document_id limit %(limit)s

-- empty_manifests --
-- Nothing of the collection is in the store any more. What is known of versions stays, and guards against older reads.
update manifest set chunks = %s, chunk_count = 0, column_hashes = '', metadata_hash = '', deleted = 1
where collection = %s

-- seal_manifest --
-- After a change of many rows at once.
update manifest set checksum = %s where collection = %s and document_id = %s

-- insert_manifests --
-- Fails if somebody else was quicker; the flip then looks again.
insert into manifest
    (collection, document_id, commit_lsn, ordinal, xid, relation_oid, chunks, chunk_count, column_hashes, metadata_hash,
     snapshot, epoch, deleted, checksum)
select * from unnest(
    %s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bytea[], %s::integer[],
    %s::bytea[], %s::bytea[], %s::text[], %s::bigint[], %s::smallint[], %s::bigint[])

-- update_manifests --
-- Of rows that are held. Were they not, the version would still guard them.
update manifest set
    commit_lsn = v.commit_lsn, ordinal = v.ordinal, xid = v.xid, relation_oid = v.relation_oid, chunks = v.chunks,
    chunk_count = v.chunk_count, column_hashes = v.column_hashes, metadata_hash = v.metadata_hash,
    snapshot = v.snapshot, epoch = v.epoch, deleted = v.deleted, checksum = v.checksum
from unnest(
    %s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bytea[], %s::integer[],
    %s::bytea[], %s::bytea[], %s::text[], %s::bigint[], %s::smallint[], %s::bigint[]) as v
    (collection, document_id, commit_lsn, ordinal, xid, relation_oid, chunks, chunk_count, column_hashes, metadata_hash,
     snapshot, epoch, deleted, checksum)
where manifest.collection = v.collection and manifest.document_id = v.document_id
    and (v.commit_lsn, v.ordinal) >= (manifest.commit_lsn, manifest.ordinal)

-- documents --
select document_id from manifest
where collection = %(collection)s and document_id > %(after)s and deleted = 0
    and (%(relation)s::bigint is null or relation_oid = %(relation)s)
order by document_id limit %(limit)s

-- unseen --
select document_id from manifest
where collection = %(collection)s and document_id > %(after)s and deleted = 0 and epoch < %(epoch)s
order by document_id limit %(limit)s

-- counts --
select coalesce(sum(documents), 0)::bigint, coalesce(sum(chunks), 0)::bigint from tally where collection = %s

-- turn --
select coalesce(sum(turns), 0)::bigint from tally where collection = %s

-- count --
insert into tally as t values (%s, %s, 1, %s, %s) on conflict (collection, agent) do update set
    turns = t.turns + 1, documents = t.documents + excluded.documents, chunks = t.chunks + excluded.chunks

-- begin_to_count_anew --
insert into tally values (%s, '', 0, 0, 0) on conflict (collection, agent) do nothing

-- count_anew --
-- After a change of the whole collection, while nobody flips. The turns only grow.
update tally set turns = turns + 1, documents = 0, chunks = 0 where collection = %s

-- prune_tombstones --
delete from manifest where collection = %s and deleted = 1 and xid < %s and commit_lsn < %s

-- next_generation --
select nextval('generation_number')

-- generation --
select case when is_called then last_value else 0 end from generation_number

-- note_writing --
insert into writing values (%s, %s) on conflict (generation) do nothing

-- thin_writings --
-- A thousand of them, up to the given one.
delete from writing where generation > %(last)s - 1000 and generation <= %(last)s and generation not in (
    select min(generation) from writing where generation > %(last)s - 1000 and generation <= %(last)s
    group by floor(began_at / 60))

-- written_at --
select began_at from writing where generation <= %s order by generation desc limit 1

-- insert_intents --
insert into intent (collection, chunk_id, generation, agent)
select begun.*, %s, %s from unnest(%s::text[], %s::text[]) as begun
on conflict (collection, chunk_id) do update set generation = excluded.generation, agent = excluded.agent

-- intents --
select collection, chunk_id, generation from intent where agent = %s

-- clear_intents --
delete from intent where agent = %s and generation <= %s

-- intents_of --
select chunk_id from intent where collection = %s and chunk_id = any(%s::text[])

-- insert_garbage --
insert into garbage select * from unnest(%s::text[], %s::text[]) on conflict (collection, chunk_id) do nothing

-- garbage --
select collection, chunk_id from garbage
where %(collections)s::text[] is null or collection = any(%(collections)s::text[]) limit %(limit)s

-- garbage_of --
select chunk_id from garbage where collection = %s and chunk_id = any(%s::text[])

-- clear_garbage --
delete from garbage using unnest(%s::text[], %s::text[]) as gone (collection, chunk_id)
where garbage.collection = gone.collection and garbage.chunk_id = gone.chunk_id

-- any_dead_letter --
select exists (select from dead_letter where agent = %s)

-- park --
-- An older letter never takes the place of a newer one, nor is one written of what the index got past.
insert into dead_letter as d
    (agent, collection, document_id, table_name, key, commit_lsn, ordinal, reason, error, attempts, parked_at)
select v.* from (values (%s::text, %s::text, %s::text, %s::text, %s::text, %s::bigint, %s::bigint, %s::text, %s::text,
                         %s::integer, %s::double precision)) as v
    (agent, collection, document_id, table_name, key, commit_lsn, ordinal, reason, error, attempts, parked_at)
where not exists (
    select from manifest m where m.collection = v.collection and m.document_id = v.document_id
        and (m.commit_lsn, m.ordinal) > (v.commit_lsn, v.ordinal))
on conflict (agent, collection, document_id) do update set
    id = default, table_name = excluded.table_name, key = excluded.key, commit_lsn = excluded.commit_lsn,
    ordinal = excluded.ordinal, reason = excluded.reason, error = excluded.error, attempts = excluded.attempts,
    parked_at = excluded.parked_at
where (excluded.commit_lsn, excluded.ordinal) >= (d.commit_lsn, d.ordinal)

-- dead_letters --
select id, agent, collection, document_id, table_name, key, commit_lsn, ordinal, reason, error, attempts, parked_at
from dead_letter
where id > %(after)s and (%(collection)s::text is null or collection = %(collection)s)
    and (%(reason)s::text is null or reason = %(reason)s)
order by id limit %(limit)s

-- dead_letter --
select id, agent, collection, document_id, table_name, key, commit_lsn, ordinal, reason, error, attempts, parked_at
from dead_letter where id = %s

-- dead_letter_counts --
select collection, count(*) from dead_letter group by collection

-- discard_many --
delete from dead_letter
where (%(collection)s::text is null or collection = %(collection)s)
    and (%(reason)s::text is null or reason = %(reason)s)

-- parked --
select document_id from dead_letter where collection = %s and document_id = any(%s::text[])

-- discard --
delete from dead_letter where id = %s

-- settle --
-- The documents got past the versions that were parked.
delete from dead_letter d
using unnest(%s::text[], %s::text[], %s::text[], %s::bigint[], %s::bigint[])
    as v (agent, collection, document_id, commit_lsn, ordinal)
where d.agent = v.agent and d.collection = v.collection and d.document_id = v.document_id
    and (d.commit_lsn, d.ordinal) <= (v.commit_lsn, v.ordinal)

-- insert_resync --
insert into resync
    (table_name, collections, keys, predicate, rewrite, reason, state, snapshot, last_key, rows_done, rows_estimated,
     started_at, finished_at, error)
values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) returning id

-- save_resync --
-- Progress that was on its way when somebody paused or cancelled must not undo that.
update resync set
    state = case when v.state = 'running' or resync.state = 'cancelled' then resync.state else v.state end,
    snapshot = v.snapshot, last_key = v.last_key, rows_done = v.rows_done, rows_estimated = v.rows_estimated,
    finished_at = coalesce(v.finished_at, resync.finished_at), error = v.error
from (values (%s::text, %s::text, %s::text, %s::bigint, %s::bigint, %s::double precision, %s::text, %s::bigint)) as v
    (state, snapshot, last_key, rows_done, rows_estimated, finished_at, error, id)
where resync.id = v.id

-- move_resync --
update resync set state = %s, finished_at = %s, error = '' where id = %s and state = any(%s::text[])

-- resyncs --
select id, table_name, collections, keys, predicate, rewrite, reason, state, snapshot, last_key, rows_done,
       rows_estimated, started_at, finished_at, error
from resync where (not %(running)s or state = 'running') and (%(id)s::bigint is null or id = %(id)s) order by id

-- cached_vectors --
select text_hash, vector from vector_cache where fingerprint = %s and text_hash = any(%s::bytea[])

-- cache_vectors --
insert into vector_cache (fingerprint, text_hash, vector)
select %s, new.* from unnest(%s::bytea[], %s::bytea[]) as new
on conflict (text_hash, fingerprint) do update set vector = excluded.vector, id = excluded.id

-- forget_vectors --
delete from vector_cache where fingerprint = %s and text_hash = any(%s::bytea[]) returning length(vector)

-- cache_bytes --
select coalesce(sum(length(vector) + 64), 0)::bigint from vector_cache

-- trim_cache --
-- Oldest first; what somebody else is removing is left to them.
delete from vector_cache where id in (select id from vector_cache order by id limit %s for update skip locked)
returning length(vector)

-- use_vectors --
insert into vector_use select used.*, null from unnest(%s::text[], %s::text[], %s::bytea[]) as used
on conflict (collection, document_id, text_hash) do update set dropped = null where vector_use.dropped is not null

-- drop_uses --
update vector_use u set dropped = %s
from unnest(%s::text[], %s::text[], %s::bytea[]) as lost (collection, document_id, text_hash)
where u.collection = lost.collection and u.document_id = lost.document_id and u.text_hash = lost.text_hash

-- forget_uses --
delete from vector_use using unnest(%s::text[], %s::text[]) as gone (collection, document_id)
where vector_use.collection = gone.collection and vector_use.document_id = gone.document_id
returning text_hash

-- hold_vectors --
-- Two documents that leave at the same time: the second looks once the first is gone.
select from vector_cache where text_hash = any(%s::bytea[]) order by text_hash, fingerprint for update

-- forget_unused --
delete from vector_cache c
where text_hash = any(%s::bytea[]) and not exists (select from vector_use u where u.text_hash = c.text_hash)
returning length(vector)

-- trim_uses --
-- Texts that their documents have lost, the longest ago first.
delete from vector_use where (collection, document_id, text_hash) in
    (select collection, document_id, text_hash from vector_use where dropped is not null order by dropped limit %s
     for update skip locked)
returning text_hash

-- trim_dropped --
delete from vector_cache c
where text_hash = any(%s::bytea[])
    and not exists (select from vector_use u where u.text_hash = c.text_hash and u.dropped is null)
returning length(vector)

-- forget_uses_of_gone --
-- Of documents that are not live and of which nothing is being written. Their chunks' ids begin with theirs and a '#'.
delete from vector_use u where not exists
    (select from manifest m where m.collection = u.collection and m.document_id = u.document_id and m.deleted = 0)
    and not exists
    (select from intent i where i.collection = u.collection
        and i.chunk_id > u.document_id || '#' and i.chunk_id < u.document_id || '$')

-- any_use_of_gone --
select 1 from vector_use u where not exists
    (select from manifest m where m.collection = u.collection and m.document_id = u.document_id and m.deleted = 0)
limit 1

-- begun_later --
-- Documents of which chunks are being written that a flip of this generation knows nothing of.
select gone.collection, gone.document_id from unnest(%s::text[], %s::text[]) as gone (collection, document_id)
where exists (select from intent i where i.collection = gone.collection
    and i.chunk_id > gone.document_id || '#' and i.chunk_id < gone.document_id || '$' and i.generation > %s)

-- forget_all_unused --
delete from vector_cache c where not exists (select from vector_use u where u.text_hash = c.text_hash)

-- database --
select (pg_control_system()).system_identifier::text, oid::bigint from pg_database where datname = current_database()

-- rights --
select current_setting('server_encoding'),
    n.oid is not null,
    n.oid is not null and has_schema_privilege(n.oid, 'usage') and has_schema_privilege(n.oid, 'create'),
    has_database_privilege(current_database(), 'create')
from (values (%(schema)s::text)) as wanted (name)
left join pg_namespace n on n.nspname = wanted.name
