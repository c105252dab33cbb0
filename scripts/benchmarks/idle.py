"""What a daemon costs that has nothing to do: CPU of its own and of its Chroma server, transactions on the source.

CPU is the time of all threads as a share of one core. Transactions are what ``pg_stat_database`` counts for the
daemon's database, compared with another database of the same server that nobody uses.
"""

from __future__ import annotations

import time
from typing import Any

import psycopg
from database import connect, create_database, server, wal_position
from figures import Figure, at_most
from machine import cpu_seconds, say
from running_daemon import daemon
from sizes import Sizes

__all__ = ["measure"]

_COLLECTION = {"name": "notes", "table": "public.notes", "text": "{body}"}
_CREATE = "create table notes (id int primary key, body text)"
_COMMITS = "select sum(xact_commit + xact_rollback) from pg_stat_database where datname = %s"
#: Percent of one core that an idle daemon may take. Our own aim; there is nothing to compare with.
_CPU_AIM = 1.0


def measure(sizes: Sizes) -> list[Figure]:
    with server() as (postgres, _installation):
        used, unused = create_database(postgres, "idle_used"), create_database(postgres, "idle_unused")
        for dsn in (used, unused):
            with connect(dsn) as connection:
                connection.execute(_CREATE)
        with connect(used) as connection, daemon(used, _COLLECTION) as running:
            connection.execute("insert into notes select i, 'note ' || i from generate_series(1, 20) i")
            running.wait_applied(wal_position(connection))
            connection.close()
            # Counts of the work before reach pg_stat_database up to ten seconds late.
            time.sleep(sizes.idle_settle_s)
            with connect(postgres.dsn()) as onlooker:
                return _watch(sizes.idle_s, onlooker, running.pid, running.chroma_pid)


def _watch(seconds: float, onlooker: psycopg.Connection[Any], daemon_pid: int, chroma_pid: int) -> list[Figure]:
    def state() -> tuple[float, float, int, int]:
        commits = [int(onlooker.execute(_COMMITS, (name,)).fetchone()[0]) for name in ("idle_used", "idle_unused")]
        return cpu_seconds(daemon_pid), cpu_seconds(chroma_pid), commits[0], commits[1]

    began = time.monotonic()
    before = state()
    time.sleep(seconds)
    after = state()
    took = time.monotonic() - began
    daemon_cpu, chroma_cpu, commits, control = (b - a for a, b in zip(before, after, strict=True))
    say(
        f"  {took:.1f} s: daemon {daemon_cpu:.2f} s CPU, Chroma {chroma_cpu:.2f} s CPU,"
        f" {commits} transactions, control {control}"
    )
    return [
        at_most("idle CPU, daemon", "% of a core", 100 * daemon_cpu / took, _CPU_AIM),
        Figure(measure="idle CPU, Chroma", unit="% of a core", ours=100 * chroma_cpu / took),
        at_most(f"idle transactions in {took:.0f} s", "", commits - control, 0),
    ]
