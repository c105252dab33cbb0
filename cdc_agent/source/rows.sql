-- snapshot --
select pg_current_snapshot()::text

-- mark --
select pg_logical_emit_message(true, %s, %s)::text

-- patience --
set local lock_timeout = '3s'
