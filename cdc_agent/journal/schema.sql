-- schema --
create table if not exists event (
    number         integer primary key autoincrement,
    source         text    not null,
    id             text    not null,
    kind           text    not null,
    type           text    not null,
    key            text    not null,
    -- Microseconds since 1970, to be compared; the time with its offset is in the text.
    time_us        integer not null,
    time           text    not null,
    recorded_us    integer not null,
    correlation_id text    not null,
    causation_id   text    not null,
    hops           integer not null,
    trail          text    not null,
    data           blob    not null,
    -- Of everything above but the number: a byte that flipped must not pass for a fact.
    checksum       integer not null,
    unique (source, id)
);
create index if not exists event_type on event (type, number);
create index if not exists event_key on event (key, number);
create index if not exists event_time on event (time_us);
create index if not exists event_passing on event (number) where kind not in ('fact', 'command');
create index if not exists event_correlation on event (correlation_id, number) where correlation_id <> '';
-- Facts are not for changing, by nobody.
create trigger if not exists event_is_final before update on event
begin select raise(abort, 'an event does not change'); end;
create trigger if not exists event_stays before delete on event when old.kind in ('fact', 'command')
begin select raise(abort, 'an event stays'); end;
-- Where each agent is: it has dealt with everything up to this number, and with what handled names beyond it.
create table if not exists agent (
    name   text    primary key,
    number integer not null
) without rowid;
create table if not exists handled (
    agent  text    not null,
    number integer not null,
    primary key (agent, number)
) without rowid;
-- What an agent remembers about a key, as JSON.
create table if not exists memory (
    agent text not null,
    key   text not null,
    value blob not null,
    primary key (agent, key)
) without rowid;
-- What an agent could not handle; with the event itself, which may be gone from above by the time somebody looks.
create table if not exists letter (
    agent     text    not null,
    number    integer not null,
    state     text    not null,
    reason    text    not null,
    error     text    not null,
    attempts  integer not null,
    parked_us integer not null,
    event     blob    not null,
    primary key (agent, number)
) without rowid;
-- How far the stream of row changes has been looked through, and whose transaction that was in the middle of.
create table if not exists reading (
    one        integer primary key check (one = 1),
    offset     integer not null,
    commit_lsn integer not null,
    origin     blob
);
-- One row for each saga that ever began; ``steps`` is the shape of its declaration by then, as JSON.
create table if not exists saga (
    number      integer primary key autoincrement,
    id          text    not null unique,
    name        text    not null,
    state       text    not null,
    steps       text    not null,
    cursor      integer not null,
    alternative integer not null,
    attempt     integer not null,
    doubtful    integer not null,
    due_us      integer,
    results     blob    not null,
    reason      text    not null,
    error       text    not null,
    version     integer not null,
    started_us  integer not null,
    changed_us  integer not null,
    -- The command that began it.
    start       blob    not null,
    -- Of everything above but the number: nothing is done in the world because of a byte that flipped.
    checksum    integer not null,
    -- Whether nobody declares it as it was when it began.
    orphaned    integer not null
);
create index if not exists saga_due on saga (due_us) where due_us is not null and orphaned = 0;
create index if not exists saga_open on saga (state, orphaned) where state not in ('completed', 'compensated');

-- insert --
insert into event
    (source, id, kind, type, key, time_us, time, recorded_us, correlation_id, causation_id, hops, trail, data, checksum)
values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
on conflict (source, id) do nothing

-- find --
select number, source, id, kind, type, key, time_us, time, recorded_us,
    correlation_id, causation_id, hops, trail, data, checksum
from event
where number > :after
    and (kind = :kind or :kind = '' and (kind in ('fact', 'command') or :correlation <> ''))
    and (:type = '' or type = :type)
    and (:type_from = '' or type >= :type_from and type < :type_to)
    and (:key = '' or key = :key)
    and (:source = '' or source = :source)
    and (:correlation = '' or correlation_id = :correlation or id = :correlation)
    and (:since_us is null or time_us >= :since_us)
    and (:until_us is null or time_us < :until_us)
order by number limit :limit

-- glance --
select number, kind, type from event where number > ? order by number limit ?

-- load --
select number, source, id, kind, type, key, time_us, time, recorded_us,
    correlation_id, causation_id, hops, trail, data, checksum
from event where number in (select value from json_each(?)) order by number

-- head --
select coalesce(max(seq), 0) from sqlite_sequence where name = 'event'

-- agent --
select number from agent where name = ?

-- agents --
select name, number from agent order by name

-- place --
insert into agent (name, number) values (?, ?) on conflict (name) do nothing

-- advance --
update agent set number = max(number, ?) where name = ?

-- forget --
delete from agent where name = ?

-- forget_handled --
delete from handled where agent = ?

-- forget_memory --
delete from memory where agent = ?

-- forget_letters --
delete from letter where agent = ?

-- handled --
select number from handled where agent = ? order by number

-- is_handled --
select 1 from handled where agent = ? and number = ?

-- handle --
insert into handled (agent, number) values (?, ?)

-- handled_passed --
delete from handled where agent = :agent and number <= (select number from agent where name = :agent)

-- recall --
select value from memory where agent = ? and key = ?

-- remember --
insert into memory (agent, key, value) values (?, ?, ?)
on conflict (agent, key) do update set value = excluded.value

-- unremember --
delete from memory where agent = ? and key = ?

-- park --
insert or replace into letter (agent, number, state, reason, error, attempts, parked_us, event)
values (?, ?, 'parked', ?, ?, ?, ?, ?)

-- letters --
select agent, number, state, reason, error, attempts, parked_us, event from letter
where (:agent = '' or agent = :agent) and (:state = '' or state = :state)
    and (:number = 0 or number = :number)
order by agent, number limit :limit

-- letter_counts --
select agent, count(*) from letter where state = 'parked' group by agent

-- replay --
update letter set state = 'replay' where agent = ? and number = ? and state = 'parked'

-- discard --
delete from letter where agent = ? and number = ? and state = 'parked'

-- replayed --
delete from letter where agent = ? and number = ? and state = 'replay'

-- tidy --
delete from event where kind not in ('fact', 'command')
    and number <= (select coalesce(min(number), 0) from agent where name in (select value from json_each(?)))
    and recorded_us < ?

-- reading --
select offset, commit_lsn, origin from reading

-- read_to --
insert into reading (one, offset, commit_lsn, origin) values (1, ?, ?, ?)
on conflict (one) do update
    set offset = excluded.offset, commit_lsn = excluded.commit_lsn, origin = excluded.origin
