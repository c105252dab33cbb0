-- schema --
-- One row a block of events; offsets are contiguous: a block holds offsets first_offset .. first_offset + count - 1.
create table if not exists block (
    first_offset integer primary key,
    count        integer not null,
    written_at   real    not null,
    payload      blob    not null
);
-- One row: how much of the source is here. The version is that of this schema.
create table if not exists position (
    id              integer primary key check (id = 1),
    version         integer not null,
    captured_lsn    integer not null,
    partial_lsn     integer,
    partial_ordinal integer,
    head_offset     integer not null
);
-- What retention must keep: nobody reads at or before the smallest released offset again.
create table if not exists consumer (
    name     text primary key,
    released integer not null
);
insert or ignore into position values (1, 1, 0, null, null, 0);

-- insert_block --
insert into block values (?, ?, ?, ?)

-- save_position --
update position set captured_lsn = ?, partial_lsn = ?, partial_ordinal = ?, head_offset = ? where id = 1

-- load_position --
select version, captured_lsn, partial_lsn, partial_ordinal, head_offset from position where id = 1

-- block_after --
-- The block that holds the entry after an offset, or the first one behind a gap.
select first_offset, count, payload from block
where first_offset >= coalesce((select max(first_offset) from block where first_offset <= ?1 + 1), 0)
order by first_offset limit 1

-- first_offset --
select min(first_offset) from block

-- size --
select coalesce(sum(length(payload)), 0) from block

-- release --
insert into consumer values (?, ?) on conflict (name) do update set released = max(released, excluded.released)

-- released --
select min(released) from consumer

-- prunable --
-- Blocks that every consumer has released, oldest first.
select first_offset, written_at, length(payload) from block
where first_offset + count - 1 <= ? order by first_offset

-- delete_blocks --
delete from block where first_offset <= ?
