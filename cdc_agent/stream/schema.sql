-- schema --
-- One row a block of events; offsets are contiguous: a block holds offsets first_offset .. first_offset + count - 1.
create table if not exists block (
    first_offset integer primary key,
    count        integer not null,
    written_at   real    not null,
    payload      blob    not null,
    checksum     integer not null
);
-- One row: how much of the source is here. The version is always 1: the file's number tells that of its schema.
create table if not exists position (
    id              integer primary key check (id = 1),
    version         integer not null,
    captured_lsn    integer not null,
    partial_lsn     integer,
    partial_ordinal integer,
    head_offset     integer not null,
    -- Entries up to here are void: they told of a history that never happened. Readers go on behind them.
    void_offset     integer not null,
    -- The ledger that this stream belongs to, empty before it has one.
    ledger          text    not null,
    -- Of everything above: a byte that flipped on its disk must not pass for a position.
    checksum        integer not null
);
-- What retention must keep: nobody reads at or before the smallest released offset again.
create table if not exists consumer (
    name     text primary key,
    released integer not null
);
insert or ignore into position values (1, 1, 0, null, null, 0, 0, '', 0);

-- insert_block --
insert into block values (?, ?, ?, ?, ?)

-- save_position --
update position set captured_lsn = ?, partial_lsn = ?, partial_ordinal = ?, head_offset = ? where id = 1

-- load_position --
select captured_lsn, partial_lsn, partial_ordinal, head_offset, void_offset, ledger, checksum from position
where id = 1

-- seal_position --
-- Ends every change of the position.
update position set checksum = seal(captured_lsn, partial_lsn, partial_ordinal, head_offset, void_offset, ledger)
where id = 1

-- tie --
update position set ledger = ? where id = 1

-- begin_at --
update position set head_offset = ?1, void_offset = ?1 where id = 1

-- consumers --
select name from consumer order by name

-- consumer --
select released from consumer where name = ?

-- checksums --
select first_offset, payload, checksum from block where first_offset + count - 1 > ? order by first_offset

-- rebase_position --
update position set captured_lsn = ?, partial_lsn = null, partial_ordinal = null, void_offset = head_offset where id = 1

-- rebase_blocks --
delete from block

-- block_after --
-- The block that holds the entry after an offset, or the first one behind a gap.
select first_offset, count, payload, checksum from block
where first_offset >= coalesce((select max(first_offset) from block where first_offset <= ?1 + 1), 0)
order by first_offset limit 1

-- first_offset --
select min(first_offset) from block

-- size --
select coalesce(sum(length(payload)), 0) from block

-- release --
insert into consumer values (?, ?) on conflict (name) do update set released = max(released, excluded.released)

-- forget --
delete from consumer where name = ?

-- released --
select min(released) from consumer

-- prunable --
-- Blocks that every consumer has released, oldest first.
select first_offset, written_at, length(payload) from block
where first_offset + count - 1 <= ? order by first_offset

-- delete_blocks --
delete from block where first_offset <= ?
