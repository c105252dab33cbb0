-- schema --
create table if not exists event (
    number         integer primary key autoincrement,
    source         text    not null,
    id             text    not null,
    type           text    not null,
    key            text    not null,
    -- Microseconds since 1970, to be compared; the time with its offset is in the text.
    time_us        integer not null,
    time           text    not null,
    recorded_us    integer not null,
    correlation_id text    not null,
    causation_id   text    not null,
    hops           integer not null,
    data           blob    not null,
    -- Of everything above but the number: a byte that flipped must not pass for a fact.
    checksum       integer not null,
    unique (source, id)
);
create index if not exists event_type on event (type, number);
create index if not exists event_key on event (key, number);
create index if not exists event_time on event (time_us);
-- Facts are not for changing, by nobody.
create trigger if not exists event_is_final before update on event
begin select raise(abort, 'an event does not change'); end;
create trigger if not exists event_stays before delete on event
begin select raise(abort, 'an event stays'); end;

-- insert --
insert into event
    (source, id, type, key, time_us, time, recorded_us, correlation_id, causation_id, hops, data, checksum)
values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
on conflict (source, id) do nothing

-- find --
select number, source, id, type, key, time_us, time, recorded_us, correlation_id, causation_id, hops, data, checksum
from event
where number > :after
    and (:type = '' or type = :type)
    and (:type_from = '' or type >= :type_from and type < :type_to)
    and (:key = '' or key = :key)
    and (:source = '' or source = :source)
    and (:since_us is null or time_us >= :since_us)
    and (:until_us is null or time_us < :until_us)
order by number limit :limit
