"""Rows per second into the durable stream, against ``pg_recvlogical`` draining the same WAL to /dev/null.

Both read from copies of one slot, so both get the same bytes from the same server with the same plugin options. The
reference decodes nothing, keeps nothing and syncs nothing: it is how fast the server can send, and the most that any
client can do. Ours decodes every row, packs it and syncs it to disk before it counts. Rounds alternate, so a change
of the machine's mood meets both. CPU seconds are the client's alone; the server's walsender works beside it, and on
two cores the server, our reader and our writer share what the reference has for the server and itself.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson
from database import connect, create_database, server, wal_position, with_wal2json
from figures import Figure, at_least
from machine import load_average, say
from sizes import Sizes

from cdc_agent.demo.installations import Installation
from cdc_agent.source import slot
from cdc_agent.source.catalog import Catalog
from cdc_agent.source.replication import plugin_options

__all__ = ["measure"]

#: The ratios that we aim at. wal2json's server side is several times slower, so the client weighs less.
_AIMS = {"pgoutput": 0.4, "wal2json": 0.7}
_NAME = "bench"
_DRAIN = Path(__file__).with_name("drain.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A kind of traffic: a table, and statements that together change about ``rows`` of it, each its own commit."""

    name: str
    create: str
    fill: str = ""
    change: str
    rows_per_change: int


_SHAPES = (
    Shape(
        name="1 KB rows",
        create="create table t (id int primary key, a text, b text, n int, ts timestamptz default now())",
        change="insert into t select i, repeat(md5(i::text), 16), repeat(md5(i::text), 16), i"
        " from generate_series(%(from)s::int, %(to)s::int) i",
        rows_per_change=1_000,
    ),
    Shape(
        name="tiny updates",
        create="create table t (id int primary key, n int)",
        fill="insert into t select i, i from generate_series(1, 10000) i",
        change="update t set n = n + 1",
        rows_per_change=10_000,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One drain of the slot."""

    seconds: float
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What is drained in every round: one slot's WAL up to ``end``."""

    installation: Installation
    dsn: str
    plugin: str
    start: str
    end: str
    rows: int


def measure(sizes: Sizes) -> list[Figure]:
    figures: list[Figure] = []
    with server() as (postgres, installation):
        if not (installation.bin_dir / "pg_recvlogical").exists():
            say(f"left out: no pg_recvlogical beside Postgres {installation.release} ({installation.origin})")
            return []
        plugins = ["pgoutput", "wal2json"] if with_wal2json(installation) else ["pgoutput"]
        for number, shape in enumerate(_SHAPES):
            for plugin in plugins:
                dsn = create_database(postgres, f"capture_{number}_{plugin}")
                course = _lay(installation, dsn, plugin, shape, sizes.capture_rows)
                figures.append(_run(course, shape, sizes.capture_rounds))
                slot.drop(dsn, _NAME)
    return figures


def _lay(installation: Installation, dsn: str, plugin: str, shape: Shape, rows: int) -> Course:
    """Make the WAL that all rounds read."""
    with connect(dsn) as connection:
        connection.execute(shape.create)
        catalog = Catalog(dsn)
        oid = catalog.watch([("public", "t")])[0].oid
        catalog.close()
        slot.ensure_publication(dsn, name=_NAME, tables=[("public", "t")], table_oids=[oid])
        if shape.fill:
            connection.execute(shape.fill)
        start = slot.create_slot(dsn, slot_name=_NAME, plugin=plugin)
        step = min(shape.rows_per_change, rows)
        for first in range(0, rows, step):
            connection.execute(shape.change, {"from": first, "to": first + step - 1} if "%(" in shape.change else None)
        end = wal_position(connection)
    return Course(
        installation=installation, dsn=dsn, plugin=plugin, start=str(start), end=end, rows=rows // step * step
    )


def _run(course: Course, shape: Shape, rounds: int) -> Figure:
    say(f"{shape.name}, {course.plugin}: {course.rows:,} rows, Postgres {course.installation.release}")
    reference: list[Round] = []
    ours: list[Round] = []
    for number in range(1, rounds + 1):
        for name, drain, results in (("reference", _recvlogical, reference), ("ours", _ours, ours)):
            with _copied_slot(course.dsn, f"{_NAME}_{name}") as copy:
                results.append(drain(course, copy))
        say(
            f"  round {number}: pg_recvlogical {_speed(course, reference[-1])}, ours {_speed(course, ours[-1])},"
            f" ratio {reference[-1].seconds / ours[-1].seconds:.2f}, load {load_average():.2f}"
        )
    best = min(r.seconds for r in reference) / min(r.seconds for r in ours)
    figure = at_least(
        f"capture, {shape.name}, {course.plugin}",
        "rows/s",
        course.rows / statistics.median(r.seconds for r in ours),
        course.rows / statistics.median(r.seconds for r in reference),
        _AIMS[course.plugin],
    )
    say(f"  ratio of the medians {figure.ratio:.2f}, of the best rounds {best:.2f}")
    return figure


def _speed(course: Course, result: Round) -> str:
    return f"{course.rows / result.seconds:,.0f} rows/s ({result.seconds:.2f} s, CPU {result.cpu_s:.2f} s)"


@contextmanager
def _copied_slot(dsn: str, name: str) -> Iterator[str]:
    """A copy that starts where the slot stands, dropped afterwards; the slot itself is never read."""
    with connect(dsn) as connection:
        connection.execute("select pg_copy_logical_replication_slot(%s, %s)", (_NAME, name))
    try:
        yield name
    finally:
        slot.drop(dsn, name)


def _options(course: Course) -> dict[str, str]:
    return plugin_options(course.plugin, publication_name=_NAME, schemas=frozenset({"public"}))


def _recvlogical(course: Course, slot_name: str) -> Round:
    command = [str(course.installation.bin_dir / "pg_recvlogical"), "-d", course.dsn, "-S", slot_name, "--start"]
    # No syncs (-F 0): what it writes to goes nowhere anyway.
    command += ["-f", "/dev/null", "-F", "0", "--no-loop", "--endpos", course.end]
    for name, value in _options(course).items():
        command += ["-o", f"{name}={value}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return Round(seconds=seconds, cpu_s=cpu_s)


def _ours(course: Course, slot_name: str) -> Round:
    """In a process of its own, as in the daemon; the clock starts when everything is imported."""
    with tempfile.TemporaryDirectory(prefix="cdc-agent-bench-") as folder:
        wanted = {
            "dsn": course.dsn,
            "slot_name": slot_name,
            "plugin": course.plugin,
            "options": _options(course),
            "stream": f"{folder}/stream.sqlite",
            "start": course.start,
            "rows": course.rows,
        }
        done = subprocess.run(
            [sys.executable, str(_DRAIN)], input=orjson.dumps(wanted), check=True, stdout=subprocess.PIPE
        )
    return Round(**orjson.loads(done.stdout))
