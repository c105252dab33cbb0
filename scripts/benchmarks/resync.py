"""What a resync costs: its own rate where nothing changed, and what it does to the freshness of live changes.

Rate: a table of rows of about 1 KB is copied, then read again whole with nothing changed, so nothing is embedded. The
reference is ``COPY (SELECT the same columns) TO STDOUT`` into this process, the fastest that the rows can be had.
The embedder is the deterministic one and the store lies in memory: neither is used in a resync without changes.

Freshness: commits one after the other, from the return of the commit until ``GET /wait`` says that it is applied; first
with nothing else to do, then while resyncs of the whole table follow one another. Chroma's server, deterministic
embedder. The reference is our own figure without a resync.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psycopg
from database import connect, create_database, server, wal_position
from figures import Figure, at_least, at_most, percentile
from machine import cpu_seconds, load_average, say
from running_daemon import RunningDaemon, daemon
from sizes import Sizes

__all__ = ["measure"]

_COLUMNS = "id, title, body, lang"
_COLLECTION = {
    "name": "articles",
    "table": "public.articles",
    "text": "{title}\n\n{body}",
    "metadata": ["lang"],
}
_HASHING = {"embedding": {"backend": "hashing"}}
_IN_MEMORY = {**_HASHING, "vectorstore": {"backend": "memory"}}
#: Rows of the table that is read again while commits are measured.
_BEHIND = 20
_PAUSE_S = 0.05
_POLL_S = 0.05
_ROUNDS = 2
#: Commits before the clock counts.
_WARM_UP = 5
_TIMEOUT_S = 1_800.0


def measure(sizes: Sizes) -> list[Figure]:
    with server() as (postgres, _installation):
        rate = _rate(create_database(postgres, "resync_rate"), sizes.resync_rows)
        freshness = _freshness(create_database(postgres, "resync_freshness"), sizes)
    return [rate, *freshness]


def _rate(dsn: str, rows: int) -> Figure:
    with connect(dsn) as connection:
        _fill(connection, rows)
        with daemon(dsn, _COLLECTION, _IN_MEMORY) as running:
            copied = _until_done(running)
            say(f"  first copy: {rows / copied:,.0f} rows/s, load {load_average():.2f}")
            ours, theirs = [], []
            for _ in range(_ROUNDS):
                theirs.append(rows / _timed(lambda: _copy_out(connection)))
                before = cpu_seconds(running.pid)
                ours.append(rows / _resync(running))
                cpu = (cpu_seconds(running.pid) - before) / rows * 1e6
                words = f"resync {ours[-1]:,.0f} rows/s ({cpu:.0f} µs of CPU a row), COPY {theirs[-1]:,.0f} rows/s"
                say(f"  {words}, load {load_average():.2f}")
    return at_least("resync, no change", "rows/s", max(ours), max(theirs), 0.1)


def _fill(connection: psycopg.Connection[Any], rows: int) -> None:
    connection.execute("create table articles (id bigint primary key, title text, body text, lang text)")
    connection.execute(
        "insert into articles select i, 'title ' || i, (select string_agg(md5((i * 31 + j)::text), ' ') "
        f"from generate_series(1, 30) j), 'en' from generate_series(1, {rows}) i"
    )
    connection.execute("analyze articles")


def _copy_out(connection: psycopg.Connection[Any]) -> None:
    with connection.cursor().copy(f"copy (select {_COLUMNS} from articles) to stdout") as copy:
        for _ in copy:
            pass


def _resync(running: RunningDaemon) -> float:
    def whole() -> None:
        running.post("/resyncs", {"table": "public.articles"})
        _until_done(running)

    return _timed(whole)


def _until_done(running: RunningDaemon) -> float:
    """Seconds until no resync is left."""

    def wait() -> None:
        deadline = time.monotonic() + _TIMEOUT_S
        while any(resync["state"] == "running" for resync in running.get("/resyncs")["resyncs"]):
            if time.monotonic() > deadline:
                raise RuntimeError("the resync does not end")
            time.sleep(_POLL_S)

    return _timed(wait)


def _freshness(dsn: str, sizes: Sizes) -> list[Figure]:
    commits = sizes.resync_commits
    with connect(dsn) as connection:
        _fill(connection, commits * _BEHIND)
        with daemon(dsn, _COLLECTION, _HASHING) as running:
            _until_done(running)
            _commits(connection, running, _WARM_UP, busy=False)
            without = _commits(connection, running, commits, busy=False)
            during = _commits(connection, running, commits, busy=True)
    for name, values in (("without", without), ("during", during)):
        words = ", ".join(f"p{percent} {percentile(values, percent):.1f}" for percent in (50, 95))
        say(f"  {name}: {words}, max {max(values):.1f} ms, load {load_average():.2f}")
    calm, busy = percentile(without, 50), percentile(during, 50)
    return [
        at_most("freshness p50 in a resync", "ms", busy, 2 * calm, reference=calm, why="2 × without"),
        Figure(
            measure="freshness p95 in a resync",
            unit="ms",
            ours=percentile(during, 95),
            reference=percentile(without, 95),
        ),
    ]


def _commits(connection: psycopg.Connection[Any], running: RunningDaemon, count: int, *, busy: bool) -> list[float]:
    """Milliseconds of each; with ``busy`` a resync runs all the time."""
    taken: list[float] = []
    for number in range(count):
        if busy and not any(r["state"] == "running" for r in running.get("/resyncs")["resyncs"]):
            running.post("/resyncs", {"table": "public.articles"})
        time.sleep(_PAUSE_S)
        connection.execute("update articles set title = %s where id = %s", (f"changed {busy} {number}", number + 1))
        began = time.perf_counter()
        running.wait_applied(wal_position(connection))
        taken.append((time.perf_counter() - began) * 1000)
    return taken


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
