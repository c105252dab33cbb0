"""One run: writers, readers and an observer all the time, one life of the daemon after the other, then the oracle."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.chaos.faults import DEATHS, DISTURBANCES, failpoint_of, unusable
from tests.support.chaos.readers import Readers
from tests.support.chaos.record import Record
from tests.support.chaos.schedule import Cycle, schedule
from tests.support.chaos.stage import Stage, stage
from tests.support.chaos.tables import ANCHORS, create
from tests.support.chaos.writers import Recent, Writers, seed_rows
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Kind, Servers
from tests.support.wait import until

__all__ = ["Wanted", "only_out_of_sight", "run"]

#: Every so many cycles writers rest, and the oracle compares everything.
_REST_EVERY = 25
#: How long a chunk may be out of sight of searches, and what an audit says of one.
_SIGHT_S = 60.0
_OUT_OF_SIGHT = "a search with its own vector does not find it"
#: What the oracle calls what it finds, and what we do.
_DEFECTS = {
    "missing": "lost",
    "doubled": "doubled",
    "stale": "stale",
    "wrong metadata": "stale",
    "torn": "orphaned",
    "orphaned": "orphaned",
    "vectors of": "stale",
}
#: What a daemon says that got no answer of the model in time, and how much of its log a report holds.
_GAVE_UP = "retrying component=embedding"
_LAST_WORDS = 6000
_DEFECT = re.compile(rf"({'|'.join(_DEFECTS)}) [^\\]{{1,300}}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is asked for. ``faults`` names deaths and disturbances; empty means all. ``rate``: transactions a second."""

    cycles: int
    seed: int
    plugin: str = "pgoutput"
    store: str = "managed"
    faults: Sequence[str] = ()
    rate: float = 8.0
    postgres: int = 15
    quiet: bool = False


def run(wanted: Wanted) -> dict[str, Any]:
    """Run to the end; returns the facts. Skips like a test where the server that is wanted is not there."""
    record = Record(quiet=wanted.quiet)
    servers = Servers()
    try:
        pg = servers.private_database(Kind(wanted.postgres, wanted.plugin))
        with tempfile.TemporaryDirectory(prefix="cdc-agent-chaos-", dir="/tmp") as folder:
            with stage(pg=pg, record=record, folder=Path(folder), store=wanted.store) as parts:
                with _whole_report(record):
                    _Run(wanted, parts, record).through()
                record.counts["transactions_redelivered"] = parts.tap.redelivered
                record.counts["chunks_embedded"] = parts.endpoint.embedded
                record.counts["chunks_embedded_again"] = parts.endpoint.again
                record.counts["chunks_embedded_for_a_life_that_was_over"] = parts.endpoint.again_for_another
    finally:
        servers.close()
    asked = {"seed": wanted.seed, "cycles": record.cycles, "plugin": wanted.plugin, "store": wanted.store}
    return asked | record.facts()


@contextmanager
def _whole_report(record: Record) -> Iterator[None]:
    """Ctrl-C ends a run, and what it saw by then is told. A second one is ignored: all parts are being ended."""
    try:
        yield
    except KeyboardInterrupt:
        record.interrupt()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Run:
    def __init__(self, wanted: Wanted, parts: Stage, record: Record) -> None:
        self._wanted = wanted
        self._parts = parts
        self._record = record
        recent = Recent()
        self._writers = Writers(parts.pg, record, recent, seed=wanted.seed, rate=wanted.rate)
        #: How much of each daemon's log was read.
        self._read_of_log: dict[Path, int] = {}
        self._readers = Readers(parts.pg, lambda: parts.daemon, record, recent, wanted.seed)

    def through(self) -> None:
        with self._busy():
            for cycle in self._cycles():
                self._live(cycle)
                if cycle.number % _REST_EVERY == 0:
                    self._rest(cycle.number)
        self._settle()

    @contextmanager
    def _busy(self) -> Iterator[None]:
        """Writers, readers and the observer at work; all of them have ended afterwards, whatever happens."""
        parts = self._parts
        create(parts.pg)
        seed_rows(parts.pg, [*ANCHORS, *range(20, 60)], self._wanted.seed)
        parts.start()
        parts.daemon.wait_ready()
        until(lambda: parts.daemon.status()["resyncs"] == [], 60.0, "the first copies to end")
        try:
            for part in (self._writers, self._readers, parts.observer):
                part.start()
            yield
        finally:
            # Whoever waits for the store or for Postgres must get an answer.
            parts.network.let_through()
            for part in (self._writers, self._readers, parts.observer):
                part.stop()

    def _cycles(self) -> Iterator[Cycle]:
        chosen = self._wanted.faults
        usable: dict[str, list[str]] = {}
        for kind, faults in (("deaths", DEATHS), ("disturbances", DISTURBANCES)):
            usable[kind] = []
            for name, fault in faults.items():
                if chosen and name not in chosen:
                    continue
                if why_not := unusable(fault, self._parts):
                    self._record.skip(name, why_not)
                else:
                    usable[kind].append(name)
        return schedule(self._wanted.seed, self._wanted.cycles, usable["deaths"], usable["disturbances"])

    def _live(self, cycle: Cycle) -> None:
        """One life of the daemon, from its start to its end."""
        parts, record = self._parts, self._record
        failpoint = failpoint_of(cycle.rng("failpoint")) if cycle.death == "failpoint" else None
        words = " ".join(filter(None, (cycle.disturbance, cycle.death, failpoint)))
        record.say(f"cycle {cycle.number}: {words}")
        if not parts.daemon.running:
            parts.start(failpoint)
        parts.recover("kill", indexed=False)
        if cycle.disturbance is not None:
            record.fault(cycle.disturbance)
            disturbance = DISTURBANCES[cycle.disturbance]
            disturbance.act(parts, cycle.rng("disturbance"))
            parts.recover(disturbance.name, indexed=disturbance.indexed)
        record.fault(cycle.death)
        record.cycles = cycle.number
        DEATHS[cycle.death].act(parts, cycle.rng("death"))
        self._check_embedding()

    def _check_embedding(self) -> None:
        again, said = self._parts.endpoint.again_undisturbed, self._said_since()
        if again and _GAVE_UP in said:
            # The endpoint had answered, too late on a machine with so much to do: the daemon asks once more.
            self._record.count("embedded_again_after_a_slow_answer", len(again))
            again.clear()
        if again:
            self._record.say(f"what the daemon said meanwhile:\n{said[-_LAST_WORDS:]}")
        while again:
            self._record.violation("embedded_again", again.pop())

    def _said_since(self) -> str:
        """What daemons have logged since this was asked last; one takes over from another."""
        said = []
        for daemon in self._parts.daemons:
            log = daemon.log
            said.append(log[self._read_of_log.get(daemon.log_path, 0) :])
            self._read_of_log[daemon.log_path] = len(log)
        return "".join(said)

    def _rest(self, number: int) -> None:
        self._record.say(f"cycle {number}: writers rest, the oracle compares")
        self._writers.pause()
        self._readers.pause()
        if not self._parts.daemon.running:
            self._parts.start()
        self._compare()
        self._readers.resume()
        self._writers.resume()

    def _settle(self) -> None:
        """No more writes: a last life, whose sweep removes what landed late; then all must be equal."""
        parts = self._parts
        self._record.say("the end: the oracle and verify")
        if parts.daemon.running:
            parts.daemon.kill()
        parts.start()
        self._compare()
        # Before the audit, which embeds a sample once more.
        self._check_embedding()
        if not parts.daemon.running:
            parts.start()
        self._verify()
        if parts.daemon.running and parts.daemon.terminate() != 0:
            self._record.violation("stuck", f"the last SIGTERM failed: {parts.daemon.log[-1500:]}")

    def _compare(self) -> None:
        parts = self._parts
        try:
            parts.wait_ready()
            letters = parts.daemon.get("/dead-letters").json()["dead_letters"]
            for letter in letters:
                self._record.violation("parked", str(letter))
            assert_index_equals_table(parts.daemon, parts.pg, vector_of=parts.endpoint.vector_of)
        except (AssertionError, pytest.fail.Exception) as exc:
            self._note(str(exc))

    def _note(self, words: str) -> None:
        """What the oracle found, one violation a line of its own."""
        found = list(_DEFECT.finditer(words))
        for defect in found:
            self._record.violation(_DEFECTS[defect[1]], defect[0])
        if not found:
            self._record.violation("stuck", words)

    def _verify(self) -> None:
        """What the daemon's own audit says. What Chroma has lost sight of is written anew within a minute."""
        deadline = time.monotonic() + _SIGHT_S
        while (said := self._audited()) is not None:
            if not only_out_of_sight(said) or time.monotonic() > deadline:
                self._record.violation("lost", said)
                return
            self._record.count("audits_with_documents_out_of_sight")

    def _audited(self) -> str | None:
        parts = self._parts
        parts.wait_ready()
        command = [sys.executable, "-m", "cdc_agent.cli", "verify", "-c", str(parts.daemon.path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        return None if done.returncode == 0 else f"verify ended with {done.returncode}: {done.stdout}{done.stderr}"


def only_out_of_sight(said: str) -> bool:
    """Whether every defect of an audit is a chunk that a search does not find."""
    defects = [line for line in said.splitlines() if line.count("\t") == 4 and not line.startswith("verify")]
    return bool(defects) and all(line.endswith(_OUT_OF_SIGHT) for line in defects)
