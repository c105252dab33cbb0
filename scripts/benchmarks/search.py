"""How long a search takes while nothing else happens, and while the indexer has more to embed than it can.

Real model, Chroma's server, ``POST /search`` over one open connection, five questions a second, no two the same: none
is answered from the memory of questions. Under load somebody commits documents ahead of the indexer all the time, so it
embeds and writes without a pause; how busy the model was is printed. The two alternate in rounds, so a machine that
changes its mood changes it for both.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import psycopg
from database import connect, create_database, server, wal_position
from figures import Figure, at_most, percentile
from machine import load_average, say
from running_daemon import RunningDaemon, daemon
from sizes import Sizes
from texts import documents, short_texts

__all__ = ["measure"]

_PER_SECOND = 5
_AIM = 3
_COLLECTION = {"name": "documents", "table": "public.documents", "text": "{title}\n\n{body}"}
_INSERT = "insert into documents values (%s, %s, %s)"
#: Documents of one commit, and how many the indexer is kept behind.
_COMMIT, _AHEAD = 20, 100
_POLL_S = 0.1
_ROUNDS = 3
#: Searches before the clock counts.
_WARM_UP = 10


def measure(sizes: Sizes) -> list[Figure]:
    with server() as (postgres, _installation):
        dsn = create_database(postgres, "search")
        with connect(dsn) as connection:
            connection.execute("create table documents (id int primary key, title text, body text)")
            with daemon(dsn, _COLLECTION) as running, httpx.Client(base_url=running.url, timeout=60.0) as client:
                _fill(connection, running, sizes.search_documents)
                _search(client, short_texts(_WARM_UP, seed=-1))
                return _figures(*_alternate(sizes.search_queries, running, dsn, client))


def _alternate(queries: int, running: RunningDaemon, dsn: str, client: httpx.Client) -> tuple[list[float], list[float]]:
    """Milliseconds of each search of an idle daemon, and of each of a busy one."""
    idle: list[float] = []
    busy: list[float] = []
    each = queries // _ROUNDS
    for number in range(_ROUNDS):
        idle += _search(client, short_texts(each, seed=1_000 + number))
        with _load(dsn, running, first=(number + 1) * 1_000_000):
            busy += _search(client, short_texts(each, seed=2_000 + number))
        say(
            f"  round {number + 1}: {_words(idle[-each:])} idle, {_words(busy[-each:])} busy, load {load_average():.2f}"
        )
    return idle, busy


def _fill(connection: psycopg.Connection[Any], running: RunningDaemon, count: int) -> None:
    with connection.cursor() as cursor, connection.transaction():
        cursor.executemany(_INSERT, [(i, title, body) for i, (title, body) in enumerate(documents(count, seed=0))])
    running.wait_indexed(wal_position(connection), timeout_s=900)


def _search(client: httpx.Client, queries: Sequence[str]) -> list[float]:
    taken = []
    start = time.perf_counter()
    for number, query in enumerate(queries):
        time.sleep(max(0.0, start + number / _PER_SECOND - time.perf_counter()))
        began = time.perf_counter()
        answer = client.post("/search", json={"collection": "documents", "query": query, "k": 5})
        taken.append((time.perf_counter() - began) * 1000)
        if answer.status_code != 200 or len(answer.json()["hits"]) != 5:
            raise RuntimeError(f"a search was answered {answer.status_code}: {answer.text[:300]}")
    return taken


@contextmanager
def _load(dsn: str, running: RunningDaemon, first: int) -> Iterator[None]:
    """New documents are committed ahead of the indexer until the block ends, then it catches up."""
    over = threading.Event()
    began, embedding = time.perf_counter(), running.metric("cdc_agent_embed_batch_seconds_sum")

    def feed() -> None:
        texts = documents(20_000, seed=first)
        with connect(dsn) as connection, httpx.Client(base_url=running.url) as client:
            while not over.is_set() and texts:
                stream = client.get("/status").json()["stream"]
                if stream["head_offset"] - stream["applied_offset"] >= _AHEAD:
                    over.wait(_POLL_S)
                    continue
                part, texts = texts[:_COMMIT], texts[_COMMIT:]
                with connection.cursor() as cursor, connection.transaction():
                    start = first + 20_000 - len(texts)
                    cursor.executemany(_INSERT, [(start + i, *text) for i, text in enumerate(part)])

    feeder = threading.Thread(target=feed)
    feeder.start()
    _until_busy(running, embedding)
    try:
        yield
        share = (running.metric("cdc_agent_embed_batch_seconds_sum") - embedding) / (time.perf_counter() - began)
        say(f"  under load the model was at work {share:.0%} of the time")
    finally:
        over.set()
        feeder.join()
    with connect(dsn) as connection:
        running.wait_indexed(wal_position(connection), timeout_s=600)


def _until_busy(running: RunningDaemon, embedding: float) -> None:
    deadline = time.monotonic() + 60
    while running.metric("cdc_agent_embed_batch_seconds_sum") == embedding:
        if time.monotonic() > deadline:
            raise RuntimeError("the indexer never began to embed")
        time.sleep(_POLL_S)


def _words(values: Sequence[float]) -> str:
    return f"p50 {percentile(values, 50):.1f}, p99 {percentile(values, 99):.1f} ms"


def _figures(idle: Sequence[float], busy: Sequence[float]) -> list[Figure]:
    calm, worst = percentile(idle, 99), percentile(busy, 99)
    return [
        Figure(
            measure="search p50 while indexing", unit="ms", ours=percentile(busy, 50), reference=percentile(idle, 50)
        ),
        at_most("search p99 while indexing", "ms", worst, _AIM * calm, reference=calm, why=f"{_AIM} × idle p99"),
    ]
