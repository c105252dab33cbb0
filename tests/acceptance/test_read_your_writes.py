"""A thousand commits of eight writers, each looked for at once by who made it: all are found, whatever else goes on."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
import psycopg

from cdc_agent.client import Answer, Index, IndexUnavailable
from tests.support.daemon import DaemonProcess
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database
from tests.support.wait import until

NOTES = {"name": "notes", "table": "public.notes", "text": "{body}"}
COMMITS, WRITERS = 1_000, 8
#: Rows that nobody changes, so that a resync has something to read.
BALLAST = 2_000
WORDS = (
    "amber",
    "basalt",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "garnet",
    "harbor",
    "indigo",
    "juniper",
    "krill",
    "lagoon",
)


@dataclass
class Tally:
    """What all writers saw."""

    found: Counter[str] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)
    retried: int = 0
    failed: list[BaseException] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, action: str, missed: str) -> None:
        with self.lock:
            if missed:
                self.missed.append(missed)
            else:
                self.found[action] += 1

    @property
    def commits(self) -> int:
        return self.found.total() + len(self.missed)


class Writer(threading.Thread):
    """Changes rows of its own, and searches for each change right after its commit."""

    def __init__(self, number: int, pg: Database, daemon: DaemonProcess, tally: Tally) -> None:
        super().__init__(name=f"writer {number}", daemon=True)
        self._number = number
        self._dsn = pg.dsn
        self._url = daemon.url
        self._tally = tally
        self._random = random.Random(number)
        self._rows: dict[int, str] = {}

    def run(self) -> None:
        try:
            with psycopg.connect(self._dsn, autocommit=True) as connection, Index(self._url, "notes") as index:
                for place in range(COMMITS // WRITERS):
                    self._change_and_search(place, connection, index)
        except BaseException as exc:
            self._tally.failed.append(exc)

    def _change_and_search(self, place: int, connection: psycopg.Connection, index: Index) -> None:
        action = self._random.choice(("insert", "update", "delete")) if len(self._rows) > 3 else "insert"
        text = f"{self._number}-{place} " + " ".join(self._random.choices(WORDS, k=6))
        row = self._number * 10_000 + place if action == "insert" else self._random.choice(list(self._rows))
        before = self._rows.get(row)
        match action:
            case "insert":
                connection.execute("insert into notes values (%s, %s)", (row, text))
            case "update":
                connection.execute("update notes set body = %s where id = %s", (text, row))
            case "delete":
                connection.execute("delete from notes where id = %s", (row,))
                text = self._rows.pop(row)
        if action != "delete":
            self._rows[row] = text
        answer = self._searched(index, text, connection)
        self._tally.note(action, self._wrong(action, row, text, before, answer))

    def _searched(self, index: Index, text: str, connection: psycopg.Connection) -> Answer:
        """A reader whose daemon is away for a moment asks again; that it is not fresh yet would end the test."""
        deadline = time.monotonic() + 60
        while True:
            try:
                return index.search(text, k=5, fresh_as_of=connection, timeout_s=50)
            except IndexUnavailable:
                if time.monotonic() > deadline:
                    raise
                self._tally.retried += 1
                time.sleep(0.05)

    def _wrong(self, action: str, row: int, text: str, before: str | None, answer: Answer) -> str:
        """What the answer has wrong about this row; "" when it is as it was committed."""
        wanted = [] if action == "delete" else [text]
        shown = [hit.text for hit in answer if hit.source.key == str(row)]
        if shown != wanted:
            return f"{self.name}: {action} of {row}: {before!r} is now {wanted}, found {shown}"
        return ""


def test_a_thousand_commits_are_found_across_a_crash_and_resyncs(
    pg: Database, new_daemon: Callable[..., DaemonProcess]
) -> None:
    # Given an index, and eight programs that write and search
    pg.execute("create table notes (id int primary key, body text)")
    pg.execute("insert into notes select i, 'ballast ' || i from generate_series(1, %s) i", (BALLAST,))
    daemon = new_daemon(pg, collections=[NOTES])
    daemon.start()
    tally = Tally()
    writers = [Writer(number, pg, daemon, tally) for number in range(1, WRITERS + 1)]
    #: How many commits there were whenever a resync was seen to run.
    beside_resyncs: list[int] = []
    for writer in writers:
        writer.start()

    # When tables are read again all the time, and the daemon is killed in the middle
    def gone_far(commits: int) -> bool:
        assert not tally.failed
        if _resyncs(daemon):
            beside_resyncs.append(tally.commits)
        return tally.commits >= commits

    until(lambda: gone_far(COMMITS * 2 // 5), 100.0, "two fifths of the commits")
    daemon.kill()
    daemon.start(ready=False)
    until(lambda: gone_far(COMMITS), 150.0, "all commits")
    for writer in writers:
        writer.join(60)

    # Then every commit was found by who made it, and none of what it replaced
    assert tally.failed == []
    assert tally.missed == []
    assert tally.found.total() == COMMITS
    assert min(tally.found[action] for action in ("insert", "update", "delete")) > 100
    assert tally.retried > 0, "nobody noticed the crash"
    assert max(beside_resyncs) - min(beside_resyncs) > COMMITS / 2
    assert_index_equals_table(daemon, pg)


def _resyncs(daemon: DaemonProcess) -> bool:
    """Whether a resync runs; if none does, begin one."""
    try:
        if any(resync["state"] == "running" for resync in daemon.get("/resyncs").json()["resyncs"]):
            return True
        daemon.post("/resyncs", {"table": "public.notes"})
    except httpx.TransportError:
        # It has just been killed.
        pass
    return False
