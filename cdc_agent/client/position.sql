-- position --
-- Where the log is, and how long its pages and segments are. A commit that was not waited for is not flushed yet.
select (case when current_setting('synchronous_commit') = 'off'
             then pg_current_wal_insert_lsn() else pg_current_wal_flush_lsn() end)::text,
       current_setting('wal_block_size')::int,
       pg_size_bytes(current_setting('wal_segment_size'))
