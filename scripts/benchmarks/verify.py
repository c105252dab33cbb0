"""What an audit costs where nothing is wrong: its rate, its memory, and that the model is not asked for a single text.

A table of small rows is copied, then audited whole without a sample of vectors. The reference is ``COPY (SELECT the
same columns) TO STDOUT`` into this process, the fastest that the rows can be had. An audit reads them twice (page by
page, and once more by the keys of its documents), and every record of the store. The embedder is the deterministic one,
and the store lies in the daemon's memory, which is part of what the daemon has before the audit: what is said of memory
is how far it grows.
"""

from __future__ import annotations

import time
from typing import Any

import psycopg
from database import connect, create_database, server
from figures import Figure, at_least, at_most
from machine import PeakMemory, cpu_seconds, load_average, say
from running_daemon import RunningDaemon, daemon
from sizes import Sizes

__all__ = ["measure"]

_COLLECTION = {"name": "notes", "table": "public.notes", "text": "{body}", "metadata": ["n"]}
_SETTINGS = {
    "embedding": {"backend": "hashing", "dimensions": 16},
    "vectorstore": {"backend": "memory"},
}
_POLL_S = 0.2
_TIMEOUT_S = 7_200.0


def measure(sizes: Sizes) -> list[Figure]:
    rows = sizes.verify_rows
    with server() as (postgres, _installation):
        dsn = create_database(postgres, "verify")
        with connect(dsn) as connection:
            _fill(connection, rows)
            with daemon(dsn, _COLLECTION, _SETTINGS) as running:
                copied = _until(running, "/resyncs", "resyncs")
                say(f"  first copy: {rows / copied:,.0f} rows/s, load {load_average():.2f}")
                return _audit(connection, running, rows)


def _audit(connection: psycopg.Connection[Any], running: RunningDaemon, rows: int) -> list[Figure]:
    theirs = rows / _copied_out(connection)
    embedded = running.metric("cdc_agent_chunks_embedded_total")
    before = cpu_seconds(running.pid)
    with PeakMemory(running.pid) as memory:
        running.post("/verifies", {"sample": 0})
        took = _until(running, "/verifies", "verifies")
    cpu = (cpu_seconds(running.pid) - before) / rows * 1e6
    (report,) = running.get("/verifies")["verifies"]
    if report["state"] != "done" or report["rows"] != rows or any(report["found"].values()):
        raise RuntimeError(f"the audit did not go as it should: {report}")
    embeddings = running.metric("cdc_agent_chunks_embedded_total") - embedded
    words = f"audit {rows / took:,.0f} rows/s in {took:.1f} s ({cpu:.0f} µs of CPU a row), COPY {theirs:,.0f} rows/s"
    say(f"  {words}; the daemon has {memory.peak_mb:,.0f} MB, load {load_average():.2f}")
    return [
        at_least("audit, nothing wrong", "rows/s", rows / took, theirs, 0.01),
        at_most("audit, memory growth", "MB", memory.growth_mb, 64),
        at_most("audit, embeddings", "", embeddings, 0),
    ]


def _fill(connection: psycopg.Connection[Any], rows: int) -> None:
    connection.execute("create table notes (id bigint primary key, body text, n int)")
    connection.execute(
        f"insert into notes select i, 'note ' || md5(i::text), i % 100 from generate_series(1, {rows}) i"
    )
    connection.execute("analyze notes")


def _copied_out(connection: psycopg.Connection[Any]) -> float:
    began = time.perf_counter()
    with connection.cursor().copy("copy (select id, body, n from notes) to stdout") as copy:
        for _ in copy:
            pass
    return time.perf_counter() - began


def _until(running: RunningDaemon, path: str, name: str) -> float:
    """Seconds until nothing of this kind is under way."""
    began = time.perf_counter()
    while any(one["state"] in ("waiting", "running") for one in running.get(path)[name]):
        if time.perf_counter() - began > _TIMEOUT_S:
            raise RuntimeError(f"{path} does not end")
        time.sleep(_POLL_S)
    return time.perf_counter() - began
