-- schema --
-- What a feed holds, as far as it was looked at. The row is packed; a sequence number is that of its last change.
create table if not exists document (
    key      text    primary key,
    etag     text    not null,
    row      blob    not null,
    sequence integer not null,
    op       text    not null,
    at_us    integer not null
) without rowid;
create index if not exists document_sequence on document (sequence);
-- One row: the newest sequence number, and the last entry of the journal that was heeded.
create table if not exists place (
    id       integer primary key check (id = 1),
    version  integer not null,
    sequence integer not null,
    heeded   integer not null
);
insert or ignore into place values (1, 1, 0, 0);

-- etags --
select key, etag from document where op <> 'd'

-- put --
insert into document values (?, ?, ?, ?, ?, ?) on conflict (key) do update set
    etag = excluded.etag, row = excluded.row, sequence = excluded.sequence, op = excluded.op, at_us = excluded.at_us

-- restamp --
update document set etag = ? where key = ?

-- count_up --
update place set sequence = ? where id = 1

-- place --
select version, sequence, heeded from place where id = 1

-- heed --
update place set heeded = max(heeded, ?) where id = 1

-- since --
select sequence, key, row, op, at_us from document where sequence >= ? order by sequence, key

-- forget --
-- What is gone stays only until the stream has it.
delete from document where op = 'd' and sequence < ?

-- page --
select row from document where op <> 'd' and key > ? order by key limit ?

-- first_page --
select row from document where op <> 'd' order by key limit ?

-- one --
select row, op from document where key = ?

-- count --
select count(*) from document where op <> 'd'
