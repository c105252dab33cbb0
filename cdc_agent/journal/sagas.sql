-- begin --
insert into saga
    (id, name, state, steps, cursor, alternative, attempt, doubtful, due_us, results, reason, error,
     version, started_us, changed_us, start, checksum, orphaned)
values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
on conflict (id) do nothing

-- version --
select version from saga where id = ?

-- save --
update saga
set id = ?, name = ?, state = ?, steps = ?, cursor = ?, alternative = ?, attempt = ?, doubtful = ?, due_us = ?,
    results = ?, reason = ?, error = ?, version = ?, started_us = ?, changed_us = ?, start = ?, checksum = ?,
    orphaned = ?
where id = ?

-- load --
select id, name, state, steps, cursor, alternative, attempt, doubtful, due_us, results, reason, error,
    version, started_us, changed_us, start, checksum, orphaned, number
from saga where id = ?

-- find --
select id, name, state, steps, cursor, alternative, attempt, doubtful, due_us, results, reason, error,
    version, started_us, changed_us, start, checksum, orphaned, number
from saga
where number > :after and (:name = '' or name = :name) and (:state = '' or state = :state)
order by number limit :limit

-- find_open --
select id, name, state, steps, cursor, alternative, attempt, doubtful, due_us, results, reason, error,
    version, started_us, changed_us, start, checksum, orphaned, number
from saga indexed by saga_open
where state not in ('completed', 'compensated')
    and number > :after and (:name = '' or name = :name)
    and (:state = 'open' or orphaned = 0 and state = :state or :state = 'orphaned' and orphaned = 1)
order by number limit :limit

-- due --
select id, name, state, steps, cursor, alternative, attempt, doubtful, due_us, results, reason, error,
    version, started_us, changed_us, start, checksum, orphaned, number
from saga indexed by saga_due
where due_us is not null and orphaned = 0 and due_us <= ? and id not in (select value from json_each(?))
order by due_us, number limit ?

-- next_due --
select due_us from saga indexed by saga_due
where due_us is not null and orphaned = 0 and id not in (select value from json_each(?)) and (? or state <> 'waiting')
order by due_us limit 1

-- declare --
update saga
set orphaned = not exists (
    select 1 from json_each(?) as declared where declared.key = saga.name and declared.value = saga.steps
)
where state not in ('completed', 'compensated')

-- undecided --
select id, name, state, steps, cursor, alternative, attempt, doubtful, due_us, results, reason, error,
    version, started_us, changed_us, start, checksum, orphaned, number
from saga
where steps = '[]' and state not in ('completed', 'compensated') and name in (select value from json_each(?))
order by number

-- counts --
select case orphaned when 1 then 'orphaned' else state end as shown, count(*)
from saga indexed by saga_open where state not in ('completed', 'compensated') group by shown

-- history --
select number, source, id, kind, type, key, time_us, time, recorded_us,
    correlation_id, causation_id, hops, trail, data, checksum
from event where source = :source and id >= :first and id < :last order by number
