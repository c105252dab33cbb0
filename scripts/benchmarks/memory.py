"""How far the daemon's memory grows while one transaction of a million rows arrives, until all of it is in the stream.

Memory is what the process has in RAM of its own (mapped files left out), looked at fifty times a second. The rows are
narrow and the collection's ``where`` keeps few of them, so that the figure is about capture, not about embedding.
"""

from __future__ import annotations

import time

from database import connect, create_database, server, wal_position
from figures import Figure, at_most
from machine import PeakMemory, say
from running_daemon import RunningDaemon, daemon
from sizes import Sizes

from cdc_agent.lsn import Lsn

__all__ = ["measure"]

_COLLECTION = {"name": "narrow", "table": "public.narrow", "text": "{body}", "where": "n < 10"}
_INSERT = "insert into narrow select i, i, 'row ' || i from generate_series(1, %s::int) i"
#: Megabytes of growth. Our own aim: the queue holds 32 MB of log, which is several times as much as objects.
_AIM_MB = 128.0
_TIMEOUT_S = 300.0


def measure(sizes: Sizes) -> list[Figure]:
    with server() as (postgres, _installation):
        dsn = create_database(postgres, "memory")
        with connect(dsn) as connection:
            connection.execute("create table narrow (id int primary key, n int, body text)")
            with daemon(dsn, _COLLECTION) as running:
                connection.execute("insert into narrow values (0, 0, 'warm up')")
                running.wait_applied(wal_position(connection))
                with PeakMemory(running.pid) as memory:
                    connection.execute(_INSERT, (sizes.memory_rows,))
                    began = time.perf_counter()
                    lsn = wal_position(connection)
                    _wait_captured(running, Lsn.parse(lsn))
                    captured_s, growth_mb = time.perf_counter() - began, memory.growth_mb
                    running.wait_indexed(lsn, timeout_s=_TIMEOUT_S)
                    applied_s = time.perf_counter() - began
    say(
        f"  {sizes.memory_rows:,} rows: from {memory.before_mb:.0f} MB by {growth_mb:.0f} MB until captured"
        f" ({captured_s:.1f} s), by {memory.growth_mb:.0f} MB until applied ({applied_s:.1f} s)"
    )
    return [at_most(f"memory, {sizes.memory_rows:,} rows at once", "MB", growth_mb, _AIM_MB)]


def _wait_captured(running: RunningDaemon, lsn: Lsn) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while running.metric("cdc_agent_captured_lsn") < lsn:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{lsn} was not captured within {_TIMEOUT_S:g} s")
        time.sleep(0.25)
