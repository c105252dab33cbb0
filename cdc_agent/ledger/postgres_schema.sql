-- What the ledger keeps in Postgres, step by step. A step that was released is never changed.
-- Ids are text of collation "C" (the order of their bytes), spelt as postgres_server.spelt says.

-- step_1 --
create table meta (
    key   text primary key,
    value text not null
);
create table identity (
    id              smallint primary key check (id = 1),
    system_id       text     not null,
    timeline        bigint   not null,
    database_oid    bigint   not null,
    slot_name       text     not null,
    plugin          text     not null,
    slot_ready      smallint not null check (slot_ready in (0, 1)),
    publication_oid bigint   not null
);
-- Every time that a lost place in the log was mended; the last one is under way while it is not done.
create table mending (
    id       bigint generated always as identity primary key,
    state    text    not null,
    began_at double precision not null,
    done     boolean not null
);
-- The watched tables as they were when their rows were last known to be complete (see tables).
create table source_table (
    name  text   primary key,
    oid   bigint not null,
    shape text   not null
);
create table collection (
    name        text primary key,
    fingerprint text not null
);
create table generation (
    collection  text    collate "C" not null,
    number      integer not null check (number > 0),
    physical    text    not null unique,
    agent       text    not null,
    fingerprint text    not null,
    spec        text    not null,
    state       text    not null check (state in ('building', 'live', 'retired', 'dropping', 'dropped')),
    created_at  double precision not null,
    switched_at double precision,
    primary key (collection, number)
);
create table checkpoint (
    agent         text   primary key,
    stream_offset bigint not null check (stream_offset >= 0),
    applied_lsn   bigint not null check (applied_lsn >= 0)
) with (fillfactor = 50);
-- What the index holds of each document. A chunk is live if and only if it is named here.
create table manifest (
    collection    text     collate "C" not null,
    document_id   text     collate "C" not null,
    commit_lsn    bigint   not null,
    ordinal       bigint   not null,
    xid           bigint   not null,
    relation_oid  bigint   not null,
    chunks        bytea    not null,
    chunk_count   integer  not null check (chunk_count >= 0),
    column_hashes bytea    not null,
    metadata_hash bytea    not null,
    snapshot      text,
    epoch         bigint   not null,
    deleted       smallint not null check (deleted in (0, 1)),
    -- Of everything above (see rows.seal).
    checksum      bigint   not null,
    primary key (collection, document_id),
    check (deleted = 0 or chunk_count = 0)
);
-- Live documents, live chunks, and how often any of them changed: one row for each agent that writes a collection, so
-- that agents do not wait for each other; the sum over the agents is the truth.
create table tally (
    collection text   collate "C" not null,
    agent      text   collate "C" not null,
    turns      bigint not null,
    documents  bigint not null,
    chunks     bigint not null,
    primary key (collection, agent)
) with (fillfactor = 50);
-- Ids that are being written to the store; after a crash the write may be there or not, or land later.
create table intent (
    collection text   collate "C" not null,
    chunk_id   text   collate "C" not null,
    generation bigint not null,
    agent      text   not null,
    primary key (collection, chunk_id)
);
create index intent_agent on intent (agent);
-- Ids to delete from the store.
create table garbage (
    collection text collate "C" not null,
    chunk_id   text collate "C" not null,
    primary key (collection, chunk_id)
);
create table dead_letter (
    id          bigint generated always as identity primary key,
    agent       text    not null,
    collection  text    collate "C" not null,
    document_id text    collate "C" not null,
    table_name  text    not null,
    key         text    not null,
    commit_lsn  bigint  not null,
    ordinal     bigint  not null,
    reason      text    not null,
    error       text    not null,
    attempts    integer not null,
    parked_at   double precision not null,
    unique (agent, collection, document_id)
);
create index dead_letter_document on dead_letter (collection, document_id);
create table resync (
    id             bigint generated always as identity primary key,
    table_name     text     not null,
    collections    text     not null,
    keys           text     not null,
    predicate      text     not null,
    rewrite        smallint not null check (rewrite in (0, 1)),
    reason         text     not null,
    state          text     not null check (state in ('running', 'paused', 'done', 'failed', 'cancelled')),
    snapshot       text,
    last_key       text,
    rows_done      bigint   not null,
    rows_estimated bigint   not null,
    started_at     double precision not null,
    finished_at    double precision,
    error          text     not null
);
-- Vectors by content, in the order of their coming. The last four bytes of one are its checksum.
create table vector_cache (
    id          bigint generated by default as identity unique,
    fingerprint text  not null,
    text_hash   bytea not null,
    vector      bytea not null,
    primary key (text_hash, fingerprint)
);
alter table vector_cache alter column vector set storage external;
-- Whose texts the cache knows: a vector goes with the last document that had its text. `dropped` is null while the
-- document has the text, then the stream's offset at which it lost it.
create table vector_use (
    collection  text  collate "C" not null,
    document_id text  collate "C" not null,
    text_hash   bytea not null,
    dropped     bigint,
    primary key (collection, document_id, text_hash)
);
create index vector_use_text on vector_use (text_hash);
create index vector_use_dropped on vector_use (dropped) where dropped is not null;
-- When each generation number was taken: that is when its chunks were written. The last thousand are here, and of those
-- before them the first of each minute.
create table writing (
    generation bigint primary key,
    began_at   double precision not null
);
-- Numbers are never given back, whatever becomes of the transaction that took one.
create sequence generation_number;
insert into meta values ('uuid', replace(gen_random_uuid()::text, '-', ''));

-- find_schema --
select has_schema_privilege(oid, 'usage') and has_schema_privilege(oid, 'create') from pg_namespace where nspname = %s

-- create_schema --
create schema {schema}

-- lock --
-- Who makes the tables, or brings them up to date, does so alone. Ends with the transaction.
select pg_advisory_xact_lock(hashtextextended('cdc_agent ledger ' || %s, 0))

-- tables --
select c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = %s and c.relkind in ('r', 'S')

-- version --
select value::integer from meta where key = 'schema_version'

-- save_version --
insert into meta values ('schema_version', %s) on conflict (key) do update set value = excluded.value

-- rename_schema --
alter schema {schema} rename to {aside}
