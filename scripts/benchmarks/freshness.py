"""How soon one committed row is in the index of an idle daemon, against the least that anybody could do for it.

Ours runs from the return of the commit until the daemon says that it is applied (``GET /wait``); what that promises is
then checked in Chroma. The reference encodes the same text and upserts one record into the same Chroma server, from a
process that does nothing else and knows the text already. The two alternate within every fifth of a second, so
neither works while the other is measured. Half of the commits insert a row, half change one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import chromadb
import psycopg
from database import connect, create_database, server, wal_position
from figures import Figure, at_most, percentile
from machine import load_average, say
from raw_model import RawModel
from running_daemon import RunningDaemon, daemon
from sizes import Sizes
from texts import short_texts

__all__ = ["measure"]

_PER_SECOND = 5
_COLLECTION = {"name": "notes", "table": "public.notes", "text": "{body}"}
_WRITE = "insert into notes values (%s, %s) on conflict (id) do update set body = excluded.body"
#: Commits before the clock counts: connections open, code paths load.
_WARM_UP = 5


def measure(sizes: Sizes) -> list[Figure]:
    with server() as (postgres, _installation):
        dsn = create_database(postgres, "freshness")
        with connect(dsn) as connection:
            connection.execute("create table notes (id int primary key, body text)")
            with RawModel() as raw, daemon(dsn, _COLLECTION) as running:
                raw.connect(running.chroma_port)
                notes = chromadb.HttpClient(host="127.0.0.1", port=running.chroma_port).get_collection(
                    "notes", embedding_function=None
                )
                _alternate(_WARM_UP, -1, connection, running, raw, notes)
                ours, theirs = _alternate(sizes.freshness_commits, 1, connection, running, raw, notes)
    return _figures(ours, theirs)


def _alternate(
    commits: int,
    sign: int,
    connection: psycopg.Connection[Any],
    running: RunningDaemon,
    raw: RawModel,
    notes: chromadb.Collection,
) -> tuple[list[float], list[float]]:
    """Milliseconds of each commit and of each reference, in turns."""
    ours: list[float] = []
    theirs: list[float] = []
    start = time.perf_counter()
    for number, text in enumerate(short_texts(commits, seed=sign)):
        _sleep_until(start + number / _PER_SECOND)
        row = sign * (1 + number // 2)
        ours.append(_commit(connection, running, row, text) * 1000)
        _check(notes, row, text)
        _sleep_until(start + (number + 0.5) / _PER_SECOND)
        theirs.append(raw.encode_and_upsert_s(str(row), text) * 1000)
    return ours, theirs


def _commit(connection: psycopg.Connection[Any], running: RunningDaemon, row: int, text: str) -> float:
    connection.execute(_WRITE, (row, text))
    began = time.perf_counter()
    running.wait_applied(wal_position(connection))
    return time.perf_counter() - began


def _check(notes: chromadb.Collection, row: int, text: str) -> None:
    """The new text is there. (An old text of the same row may still be: it is garbage that no search shows.)"""
    found = notes.get(where_document={"$contains": text.partition(".")[0] + "."}, include=["documents"])
    if text not in (found["documents"] or []):
        raise RuntimeError(f"row {row} is applied, yet its text is not in Chroma")


def _figures(ours: Sequence[float], theirs: Sequence[float]) -> list[Figure]:
    for name, values in (("ours", ours), ("raw", theirs)):
        words = ", ".join(f"p{percent} {percentile(values, percent):.1f}" for percent in (50, 95, 99))
        say(f"  {name}: {words}, max {max(values):.1f} ms, load {load_average():.2f}")
    middle = percentile(ours, 50)
    raw_middle = percentile(theirs, 50)
    return [
        at_most("freshness p50", "ms", middle, 1.5 * raw_middle + 15, reference=raw_middle, why="1.5 × raw + 15"),
        Figure(measure="freshness p95", unit="ms", ours=percentile(ours, 95), reference=percentile(theirs, 95)),
        at_most(
            "freshness p99", "ms", percentile(ours, 99), 4 * middle, reference=percentile(theirs, 99), why="4 × our p50"
        ),
    ]


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.perf_counter()))
