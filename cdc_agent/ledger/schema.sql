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
    finished_at    real
);
create table if not exists vector_cache (
    fingerprint text not null,
    text_hash   blob not null,
    vector      blob not null,
    unique (fingerprint, text_hash)
);
insert or ignore into meta values ('schema_version', '1'), ('generation', '0'), ('uuid', lower(hex(randomblob(16))));

-- meta --
select value from meta where key = ?

-- next_generation --
update meta set value = cast(value as integer) + 1 where key = 'generation' returning cast(value as integer)

-- load_identity --
select system_id, timeline, database_oid, slot_name, plugin, slot_ready, publication_oid from identity where id = 1

-- save_identity --
insert or replace into identity values (1, ?, ?, ?, ?, ?, ?, ?)

-- load_source_tables --
select name, oid, shape from source_table order by name

-- save_source_table --
insert or replace into source_table values (?, ?, ?)

-- load_collection --
select fingerprint from collection where name = ?

-- save_collection --
insert or replace into collection values (?, ?)

-- load_checkpoint --
select stream_offset, applied_lsn from checkpoint where agent = ?

-- save_checkpoint --
insert into checkpoint values (?, ?, ?) on conflict (agent) do update set
    stream_offset = max(stream_offset, excluded.stream_offset),
    applied_lsn = max(applied_lsn, excluded.applied_lsn)

-- load_manifest --
select commit_lsn, ordinal, xid, relation_oid, chunks, column_hashes, metadata_hash, snapshot, epoch, deleted
from manifest where collection = ? and document_id = ?

-- save_manifest --
insert or replace into manifest values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- documents --
select document_id from manifest
where collection = ?1 and deleted = 0 and (?2 is null or relation_oid = ?2) order by document_id

-- unseen --
select document_id from manifest where collection = ? and deleted = 0 and epoch < ?

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

-- has_intent --
select 1 from intent where collection = ? and chunk_id = ?

-- insert_garbage --
insert or ignore into garbage values (?, ?)

-- garbage --
select collection, chunk_id from garbage limit ?

-- has_garbage --
select 1 from garbage where collection = ? and chunk_id = ?

-- clear_garbage --
delete from garbage where collection = ? and chunk_id = ?

-- cached_vector --
select vector from vector_cache where fingerprint = ? and text_hash = ?

-- cache_vector --
insert or replace into vector_cache values (?, ?, ?)

-- cache_bytes --
select coalesce(sum(length(vector) + 64), 0) from vector_cache

-- trim_cache --
-- Oldest first.
delete from vector_cache where rowid in (select rowid from vector_cache order by rowid limit ?)

-- park --
insert or replace into dead_letter
    (agent, collection, document_id, table_name, key, commit_lsn, ordinal, reason, error, attempts, parked_at)
values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- dead_letters --
select id, agent, collection, document_id, table_name, key, commit_lsn, ordinal, reason, error, attempts, parked_at
from dead_letter where ?1 is null or id = ?1 order by id

-- discard --
delete from dead_letter where id = ?

-- settle --
-- The document got past the version that was parked.
delete from dead_letter
where agent = ?1 and collection = ?2 and document_id = ?3 and (commit_lsn, ordinal) <= (?4, ?5)

-- insert_resync --
insert into resync
    (table_name, collections, keys, predicate, rewrite, reason, state, snapshot, last_key, rows_done, rows_estimated,
     started_at, finished_at)
values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- save_resync --
update resync set state = ?, snapshot = ?, last_key = ?, rows_done = ?, rows_estimated = ?, finished_at = ? where id = ?

-- resyncs --
select id, table_name, collections, keys, predicate, rewrite, reason, state, snapshot, last_key, rows_done, rows_estimated, started_at,
       finished_at
from resync where ?1 = 0 or state = 'running' order by id
