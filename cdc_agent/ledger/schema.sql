-- schema --
create table if not exists meta (
    key   text primary key,
    value text not null
) without rowid;
create table if not exists identity (
    id           integer primary key check (id = 1),
    system_id    text    not null,
    timeline     integer not null,
    database_oid integer not null,
    slot_name    text    not null,
    plugin       text    not null,
    slot_ready   integer not null,
    publication_oid integer not null
);
-- Every time that a lost place in the log was mended; the last one is under way while it is not done.
create table if not exists mending (
    id       integer primary key autoincrement,
    state    text    not null,
    began_at real    not null,
    done     integer not null
);
-- The watched tables as they were when their rows were last known to be complete (see tables).
create table if not exists source_table (
    name  text primary key,
    oid   integer not null,
    shape text    not null
) without rowid;
create table if not exists collection (
    name        text primary key,
    fingerprint text not null
) without rowid;
-- A configured collection is built in generations, each with all that is needed to keep it without the configuration.
-- Manifests, intents and the store know a generation by its physical name.
create table if not exists generation (
    collection  text    not null,
    number      integer not null,
    physical    text    not null unique,
    agent       text    not null,
    fingerprint text    not null,
    spec        text    not null,
    state       text    not null,
    created_at  real    not null,
    switched_at real,
    primary key (collection, number)
) without rowid;
create table if not exists checkpoint (
    agent         text primary key,
    stream_offset integer not null,
    applied_lsn   integer not null
) without rowid;
-- What the index holds of each document. A chunk is live if and only if it is named here.
create table if not exists manifest (
    collection    text    not null,
    document_id   text    not null,
    commit_lsn    integer not null,
    ordinal       integer not null,
    xid           integer not null,
    relation_oid  integer not null,
    chunks        blob    not null,
    chunk_count   integer not null,
    column_hashes blob    not null,
    metadata_hash blob    not null,
    snapshot      text,
    epoch         integer not null,
    deleted       integer not null,
    -- Of everything above (see rows.seal): a byte that flipped on its disk must not pass for content.
    checksum      integer not null,
    primary key (collection, document_id)
) without rowid;
-- Ids that are being written to the store; after a crash the write may be there or not, or land later.
create table if not exists intent (
    collection text not null,
    chunk_id   text not null,
    generation integer not null,
    agent      text not null,
    primary key (collection, chunk_id)
) without rowid;
-- Ids to delete from the store.
create table if not exists garbage (
    collection text not null,
    chunk_id   text not null,
    primary key (collection, chunk_id)
) without rowid;
create table if not exists dead_letter (
    id          integer primary key autoincrement,
    agent       text    not null,
    collection  text    not null,
    document_id text    not null,
    table_name  text    not null,
    key         text    not null,
    commit_lsn  integer not null,
    ordinal     integer not null,
    reason      text    not null,
    error       text    not null,
    attempts    integer not null,
    parked_at   real    not null,
    unique (agent, collection, document_id)
);
create index if not exists dead_letter_document on dead_letter (collection, document_id);
create table if not exists resync (
    id             integer primary key autoincrement,
    table_name     text    not null,
    collections    text    not null,
    keys           text    not null,
    predicate      text    not null,
    rewrite        integer not null,
    reason         text    not null,
    state          text    not null,
    snapshot       text,
    last_key       text,
    rows_done      integer not null,
    rows_estimated integer not null,
    started_at     real    not null,
    finished_at    real,
    error          text    not null
);
-- Vectors by content. The last four bytes of one are its checksum.
create table if not exists vector_cache (
    fingerprint text not null,
    text_hash   blob not null,
    vector      blob not null,
    unique (text_hash, fingerprint)
);
-- Whose texts the cache knows: a vector goes with the last document that had its text. `dropped` is null while the
-- document has the text, then the stream's offset at which it lost it.
create table if not exists vector_use (
    collection  text not null,
    document_id text not null,
    text_hash   blob not null,
    dropped     integer,
    primary key (collection, document_id, text_hash)
) without rowid;
create index if not exists vector_use_text on vector_use (text_hash);
create index if not exists vector_use_dropped on vector_use (dropped) where dropped is not null;
insert or ignore into meta values ('schema_version', '1'), ('generation', '0'), ('uuid', lower(hex(randomblob(16))));

-- since_2 --
-- When each generation number was taken: that is when its chunks were written. The last thousand are here, and of those
-- before them the first of each minute.
create table if not exists writing (
    generation integer primary key,
    began_at   real not null
);
update meta set value = '2' where key = 'schema_version';

-- meta --
select value from meta where key = ?

-- next_generation --
update meta set value = cast(value as integer) + 1 where key = 'generation' returning cast(value as integer)

-- note_writing --
insert into writing values (?, ?)

-- thin_writings --
-- A thousand of them, up to ?1.
delete from writing where generation > ?1 - 1000 and generation <= ?1 and generation not in (
    select min(generation) from writing where generation > ?1 - 1000 and generation <= ?1
    group by cast(began_at / 60 as integer))

-- written_at --
select began_at from writing where generation <= ? order by generation desc limit 1

-- note --
insert or replace into meta values (?, ?)

-- forget_note --
delete from meta where key = ?

-- load_identity --
select system_id, timeline, database_oid, slot_name, plugin, slot_ready, publication_oid from identity where id = 1

-- save_identity --
insert or replace into identity values (1, ?, ?, ?, ?, ?, ?, ?)

-- begin_mending --
insert into mending (state, began_at, done) values (?, ?, 0)

-- end_mendings --
update mending set done = 1

-- mending --
select state from mending where done = 0 order by id desc limit 1

-- mendings_since --
select count(*) from mending where state = ? and began_at >= ?

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
update resync set state = 'failed', finished_at = ?, snapshot = null, last_key = null where finished_at is null

-- rebase_source_tables --
delete from source_table

-- load_source_tables --
select name, oid, shape from source_table order by name

-- save_source_table --
insert or replace into source_table values (?, ?, ?)

-- load_collection --
select fingerprint from collection where name = ?

-- save_collection --
insert or replace into collection values (?, ?)

-- generations --
select collection, number, physical, agent, fingerprint, spec, state, created_at, switched_at
from generation order by collection, number

-- save_generation --
insert or replace into generation values (?, ?, ?, ?, ?, ?, ?, ?, ?)

-- switch_generation --
update generation set state = case when number = ?2 then 'live' else 'retired' end, switched_at = ?3
where collection = ?1 and (number = ?2 or state = 'live')

-- register_agent --
insert or ignore into checkpoint values (?, ?, 0)

-- forget_agent --
delete from checkpoint where agent = ?

-- forget_manifests --
delete from manifest where collection = ?

-- forget_intents --
delete from intent where collection = ?

-- forget_garbage --
delete from garbage where collection = ?

-- forget_dead_letters --
delete from dead_letter where collection = ?

-- forget_resyncs --
delete from resync where collections = ?

-- forget_collection --
delete from collection where name = ?

-- load_checkpoint --
select stream_offset, applied_lsn from checkpoint where agent = ?

-- save_checkpoint --
insert into checkpoint values (?, ?, ?) on conflict (agent) do update set
    stream_offset = max(stream_offset, excluded.stream_offset),
    applied_lsn = max(applied_lsn, excluded.applied_lsn)

-- load_manifest --
select commit_lsn, ordinal, xid, relation_oid, chunks, column_hashes, metadata_hash, snapshot, epoch, deleted, checksum
from manifest where collection = ? and document_id = ?

-- load_manifests --
select m.document_id, commit_lsn, ordinal, xid, relation_oid, chunks, column_hashes, metadata_hash, snapshot, epoch,
       deleted, checksum
from json_each(?2) wanted
cross join manifest m on m.collection = ?1 and m.document_id = wanted.value

-- every_manifest --
select collection, document_id, commit_lsn, ordinal, xid, relation_oid, chunks, column_hashes, metadata_hash, snapshot,
       epoch, deleted, checksum
from manifest

-- empty_manifests --
-- Nothing of the collection is in the store any more. What is known of versions stays, and guards against older reads.
update manifest set chunks = ?2, chunk_count = 0, column_hashes = x'', metadata_hash = x'', deleted = 1
where collection = ?1

-- seal_manifests --
-- After a change of many rows at once. The function is rows.seal.
update manifest set checksum = seal(collection, document_id, commit_lsn, ordinal, xid, relation_oid, chunks,
    column_hashes, metadata_hash, snapshot, epoch, deleted)
where ?1 is null or collection = ?1

-- save_manifest --
insert or replace into manifest values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- documents --
select document_id from manifest
where collection = ?1 and document_id > ?3 and deleted = 0 and (?2 is null or relation_oid = ?2)
order by document_id limit ?4

-- documents_after --
select document_id from manifest where collection = ? and deleted = 0 and document_id > ? order by document_id limit ?

-- unseen --
select document_id from manifest
where collection = ?1 and document_id > ?3 and deleted = 0 and epoch < ?2 order by document_id limit ?4

-- counts --
select count(*), coalesce(sum(chunk_count), 0) from manifest where collection = ? and deleted = 0

-- prune_tombstones --
delete from manifest where collection = ? and deleted = 1 and xid < ? and commit_lsn < ?

-- insert_intent --
insert or replace into intent values (?, ?, ?, ?)

-- intents --
select collection, chunk_id, generation from intent where agent = ?1 and (?2 is null or generation <= ?2)

-- clear_intents --
delete from intent where agent = ? and generation <= ?

-- intents_of --
-- Few: what is being written, and what a failed request may still change.
select chunk_id from intent where collection = ?

-- insert_garbage --
insert or ignore into garbage values (?, ?)

-- garbage --
select collection, chunk_id from garbage
where ?1 is null or collection in (select value from json_each(?1)) limit ?2

-- has_garbage --
select 1 from garbage where collection = ? and chunk_id = ?

-- clear_garbage --
delete from garbage where collection = ? and chunk_id = ?

-- cached_vector --
select vector from vector_cache where fingerprint = ? and text_hash = ?

-- vector_size --
select length(vector) from vector_cache where fingerprint = ? and text_hash = ?

-- cache_vector --
insert or replace into vector_cache values (?, ?, ?)

-- forget_vector --
delete from vector_cache where fingerprint = ? and text_hash = ? returning length(vector)

-- cache_bytes --
select coalesce(sum(length(vector) + 64), 0) from vector_cache

-- trim_cache --
-- Oldest first.
delete from vector_cache where rowid in (select rowid from vector_cache order by rowid limit ?) returning length(vector)

-- use_vector --
insert or replace into vector_use values (?, ?, ?, null)

-- drop_use --
update vector_use set dropped = ?4 where collection = ?1 and document_id = ?2 and text_hash = ?3

-- forget_uses --
delete from vector_use where collection = ? and document_id = ? returning text_hash

-- forget_unused --
delete from vector_cache
where text_hash = ?1 and not exists (select 1 from vector_use where text_hash = ?1) returning length(vector)

-- trim_uses --
-- Texts that their documents have lost, the longest ago first.
delete from vector_use where (collection, document_id, text_hash) in
    (select collection, document_id, text_hash from vector_use where dropped is not null order by dropped limit ?)
returning text_hash

-- trim_dropped --
delete from vector_cache
where text_hash = ?1 and not exists (select 1 from vector_use where text_hash = ?1 and dropped is null)
returning length(vector)

-- forget_uses_of_gone --
-- Of documents that are not live and of which nothing is being written. Their chunks' ids begin with theirs and a '#'.
delete from vector_use where not exists
    (select 1 from manifest m where m.collection = vector_use.collection
        and m.document_id = vector_use.document_id and m.deleted = 0)
    and not exists
    (select 1 from intent i where i.collection = vector_use.collection
        and i.chunk_id > vector_use.document_id || '#' and i.chunk_id < vector_use.document_id || '$')

-- any_use_of_gone --
select 1 from vector_use where not exists
    (select 1 from manifest m where m.collection = vector_use.collection
        and m.document_id = vector_use.document_id and m.deleted = 0)
limit 1

-- begun_later --
-- Whether chunks of a document are being written that a flip of this generation knows nothing of.
select 1 from intent where collection = ?1 and chunk_id > ?2 || '#' and chunk_id < ?2 || '$' and generation > ?3 limit 1

-- forget_all_unused --
delete from vector_cache where not exists (select 1 from vector_use u where u.text_hash = vector_cache.text_hash)

-- park --
insert or replace into dead_letter
    (agent, collection, document_id, table_name, key, commit_lsn, ordinal, reason, error, attempts, parked_at)
values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- dead_letters --
select id, agent, collection, document_id, table_name, key, commit_lsn, ordinal, reason, error, attempts, parked_at
from dead_letter
where id > ?1 and (?2 is null or collection = ?2) and (?3 is null or reason = ?3)
order by id limit ?4

-- dead_letter --
select id, agent, collection, document_id, table_name, key, commit_lsn, ordinal, reason, error, attempts, parked_at
from dead_letter where id = ?

-- dead_letter_counts --
select collection, count(*) from dead_letter group by collection

-- discard_many --
delete from dead_letter where (?1 is null or collection = ?1) and (?2 is null or reason = ?2)

-- is_parked --
select 1 from dead_letter where collection = ? and document_id = ?

-- discard --
delete from dead_letter where id = ?

-- any_dead_letter --
select 1 from dead_letter limit 1

-- settle --
-- The document got past the version that was parked.
delete from dead_letter
where agent = ?1 and collection = ?2 and document_id = ?3 and (commit_lsn, ordinal) <= (?4, ?5)

-- insert_resync --
insert into resync
    (table_name, collections, keys, predicate, rewrite, reason, state, snapshot, last_key, rows_done, rows_estimated,
     started_at, finished_at, error)
values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- save_resync --
-- Progress that was on its way when somebody paused or cancelled must not undo that.
update resync set
    state = case when ?1 = 'running' or state = 'cancelled' then state else ?1 end,
    snapshot = ?2, last_key = ?3, rows_done = ?4, rows_estimated = ?5,
    finished_at = coalesce(?6, finished_at), error = ?7
where id = ?8

-- move_resync --
update resync set state = ?2, finished_at = ?3, error = ''
where id = ?1 and state in (select value from json_each(?4))

-- resyncs --
select id, table_name, collections, keys, predicate, rewrite, reason, state, snapshot, last_key, rows_done,
       rows_estimated, started_at, finished_at, error
from resync where (?1 = 0 or state = 'running') and (?2 is null or id = ?2) order by id
