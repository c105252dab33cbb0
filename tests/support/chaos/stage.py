"""Everything that a run plays with: Postgres, the proxies, the endpoint, the disks, the store and the daemon."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cdc_agent.lsn import Lsn
from cdc_agent.vectorstore.chroma_server import ChromaServer
from tests.support.chaos.disks import Disk, disks
from tests.support.chaos.endpoint import Endpoint
from tests.support.chaos.observer import Observer
from tests.support.chaos.record import Record
from tests.support.chaos.tables import COLLECTIONS, MARK
from tests.support.chaos.tap import Tap
from tests.support.daemon import DaemonProcess, merged
from tests.support.postgres import Database
from tests.support.tcp_proxy import TcpProxy

__all__ = ["Stage", "stage", "wants_chroma_restarted"]

#: Exit code of a daemon that a supervisor starts again.
TRY_AGAIN = 75
#: How long anything may take to be back.
PATIENCE_S = 240.0
_POLL_S = 0.02
#: How long a store of somebody else's may say that it is locked before its operator reads that on /readyz and acts.
_OPERATOR_S = 60.0
_ASKED = "restart the Chroma server"
_LAST_WORDS = 1000
#: What a daemon says whose store came back unreadable, and what its hint says to start it with, once.
_CORRUPT = "error: STORE_CORRUPT"
_MENDING = {"CDC_AGENT_SOURCE__ON_MISMATCH": "resync"}


class Stage:
    """The parts, and what a supervisor does: the daemon is started again when it asks for that."""

    def __init__(self, *, pg: Database, record: Record, folder: Path, store: str) -> None:
        self.pg = pg
        self.record = record
        self.folder = folder
        self.store = store
        self.endpoint = Endpoint()
        self.tap = Tap()
        self.network = TcpProxy(pg.server.port, tap=self.tap.session)
        self.disks: dict[str, Disk] | str = {}
        #: With ``--store server``: Chroma, and the network in front of it.
        self.chroma: ChromaServer | None = None
        self.store_network: TcpProxy | None = None
        self.daemon: DaemonProcess
        self.observer: Observer
        #: A request that this life of the daemon has sent may still reach the store, whatever became of it.
        self.late = False
        #: Chroma was killed, which in rare cases leaves an index that it cannot read again.
        self.chroma_killed = False
        self.store_was_full = False
        self._offset_at_start = 0
        #: All that there were.
        self.daemons: list[DaemonProcess] = []
        self._lives = 0
        self._look_again_at = 0.0

    # -- the daemon -------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        dsn = self.network.dsn(self.pg.name) + "?options=-c%20wal_sender_timeout%3D2s"
        name = self.pg.slot_name
        source = {"dsn": dsn, "slot_name": name, "publication_name": name, "plugin": self.pg.plugin}
        timing = {"connect_timeout_s": 2.0, "schema_check_interval_s": 1.0}
        store: dict[str, Any] = {"mode": self.store, "timeout_s": 2.0}
        if self.store_network is not None:
            store["port"] = self.store_network.port
        embedding = {"backend": "openai", "url": self.endpoint.base_url, "model": "fake", "timeout_s": 2.0}
        settings: dict[str, Any] = {
            "source": source | timing,
            "collections": [*COLLECTIONS],
            "vectorstore": store,
            "embedding": embedding | {"dimensions": self.endpoint.dimension},
            "stream": {"retention_h": 0.02},
            "resync": {"rows_per_chunk": 40},
            "log": {"level": "info"},
        }
        return merged(settings, self._paths()) if isinstance(self.disks, dict) else settings

    def _paths(self) -> dict[str, Any]:
        assert isinstance(self.disks, dict)
        paths = {name: {"path": str(disk.path / f"{name}.sqlite")} for name, disk in self.disks.items()}
        paths["vectorstore"] = {"path": str(self.disks["store"].path / "chroma")}
        del paths["store"]
        return paths

    def new_daemon(self, settings: dict[str, Any]) -> DaemonProcess:
        """One more, not started yet. Whatever becomes of the run, it has ended when the stage is gone."""
        folder = self.folder / f"daemon{len(self.daemons) + 1}"
        folder.mkdir()
        self.daemons.append(DaemonProcess(folder, settings))
        return self.daemons[-1]

    def start(self, failpoint: str | None = None) -> None:
        self.endpoint.disturb()
        self.late = False
        self._offset_at_start = self.observer.offset()
        mending = _MENDING if self.record.mending else {}
        self.daemon.start(failpoint=failpoint, ready=False, env=self.new_life() | mending)

    def new_life(self) -> dict[str, str]:
        """What tells one life of a daemon from another at the endpoint, for its environment."""
        self._lives += 1
        return {"CDC_AGENT_EMBEDDING__API_KEY": f"life-{self._lives}"}

    def close(self) -> None:
        for daemon in self.daemons:
            daemon.close()

    def take_over(self, second: DaemonProcess) -> None:
        """The daemon is killed, and a second one that waits beside it has its place."""
        self.late = False
        self._offset_at_start = self.observer.offset()
        self.daemon.close()
        # Only now: until then it could embed what it did not live to keep.
        self.endpoint.disturb()
        self.daemon = second

    def may_hold_strays(self) -> bool:
        """Whether the store may hold what nothing names: until the sweep of this life, which comes before its first
        write, and after faults that hold requests up."""
        return self.late or self.observer.offset() <= self._offset_at_start

    def tick(self) -> None:
        """What a supervisor does meanwhile."""
        if self.chroma is not None:
            self.chroma.watch()
        if self.record.mending:
            self._see_whether_it_is_mended()
        code = self.daemon.returncode
        if code is None or code == -signal.SIGKILL:
            return
        if code == TRY_AGAIN:
            self.record.count("started_again_on_request")
        elif self.chroma_killed and not self.record.mending and _CORRUPT in self.daemon.log[-_LAST_WORDS:]:
            self.record.begin_mending()
        else:
            self.record.violation("stuck", f"the daemon ended with {code}: {self.daemon.log[-1500:]}")
        self.start()

    def _see_whether_it_is_mended(self) -> None:
        """The index is whole again when every table was read again and all of it is written."""
        if time.monotonic() < self._look_again_at or not self.daemon.running:
            return
        self._look_again_at = time.monotonic() + 0.5
        try:
            if self.daemon.problems() == [] and self.daemon.status()["resyncs"] == []:
                self.record.end_mending()
        except httpx.TransportError:
            pass  # It is on its way.

    def wait_ready(self) -> None:
        """What a supervisor waits for: a daemon that is ready, with nothing left to be mended."""
        deadline = time.monotonic() + PATIENCE_S
        while self.record.mending or self.daemon.problems() != []:
            self.tick()
            if time.monotonic() > deadline:
                pytest.fail(f"not ready after {PATIENCE_S:g} s: {self.why()}")
            time.sleep(_POLL_S)

    def sleep(self, seconds: float) -> None:
        """Let things happen for a while, or until the daemon is dead."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.daemon.returncode != -signal.SIGKILL:
            self.tick()
            time.sleep(min(_POLL_S, max(0.0, deadline - time.monotonic())))

    def recover(self, kind: str, *, indexed: bool = True) -> None:
        """Wait until what is committed now is durable here, and in the index; note how long it took."""
        began = looked = time.monotonic()
        self.pg.execute(MARK)
        lsn = int(Lsn.parse(self.pg.execute("select pg_current_wal_lsn()::text")[0][0]))
        steps = [("", lambda: self.observer.captured() >= lsn)]
        if indexed:
            steps.append((", indexed", lambda: self.is_applied(lsn)))
        for suffix, reached in steps:
            while not reached():
                self.tick()
                if self.daemon.returncode == -signal.SIGKILL:
                    return
                if time.monotonic() - looked > _OPERATOR_S:
                    self.operate_store()
                    looked = time.monotonic()
                if time.monotonic() - began > PATIENCE_S:
                    self.record.violation("stuck", f"{kind}{suffix}: not back after {PATIENCE_S:g} s: {self.why()}")
                    return
                time.sleep(_POLL_S)
            # Such a life ends at once, and is started again by hand.
            mended = ", store built again" if self.record.mending else ""
            self.record.recovered(kind + suffix + mended, time.monotonic() - began)

    def operate_store(self) -> None:
        """Do what the daemon asks of whoever runs the Chroma server."""
        if self.chroma is not None and self.store_was_full and wants_chroma_restarted(self.daemon):
            self.record.count("chroma_restarted_by_its_operator")
            self.record.say("restarting Chroma, as the daemon asks")
            self.chroma.restart()

    def is_applied(self, lsn: int) -> bool:
        """Whether the daemon says, within half a second, that the index is complete up to there."""
        try:
            return self.daemon.get("/wait", lsn=str(Lsn(lsn)), timeout_s=0.5).status_code == 200
        except httpx.TransportError:
            return False

    def why(self) -> str:
        try:
            problems = self.daemon.problems()
        except Exception as exc:  # This is for the report alone.
            problems = [{"error": repr(exc)}]
        return f"{problems}\n{self.daemon.log[-2000:]}"

    def chroma_pid(self) -> int | None:
        """The store's server."""
        if self.chroma is not None:
            return self.chroma.pid
        file = self.daemon.config.vectorstore_path.with_name("chroma.pid")
        text = file.read_text() if file.exists() else ""
        return int(text) if text.isdigit() and Path(f"/proc/{text}").exists() else None

    def signal_chroma(self, number: signal.Signals) -> None:
        pid = self.chroma_pid()
        if pid is not None:
            self.chroma_killed = self.chroma_killed or number == signal.SIGKILL
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass  # It went with its daemon.


def wants_chroma_restarted(daemon: DaemonProcess) -> bool:
    """Whether it says so on /readyz, or in its last words where it does not get as far as that."""
    problems = daemon.problems()
    told = daemon.log[-_LAST_WORDS:] if problems is None else " ".join(one["hint"] for one in problems)
    return _ASKED in told


@contextmanager
def stage(*, pg: Database, record: Record, folder: Path, store: str) -> Iterator[Stage]:
    """All parts, the daemon made but not started; everything is gone at the end."""
    made = Stage(pg=pg, record=record, folder=folder, store=store)
    with ExitStack() as parts:
        made.disks = parts.enter_context(disks(folder, "stream", "ledger", "store"))
        for part in (made.endpoint, made.network):
            parts.enter_context(part)
        if store == "server":
            _start_chroma(made, parts)
        made.daemon = made.new_daemon(made.settings())
        parts.callback(made.close)
        port = made.chroma.port if made.chroma is not None else made.daemon.config.vectorstore.port
        made.observer = Observer(pg, made.daemon.config, record, made.may_hold_strays, store_port=port)
        yield made


def _start_chroma(made: Stage, parts: ExitStack) -> None:
    folder = made.disks["store"].path if isinstance(made.disks, dict) else made.folder
    made.chroma = ChromaServer(folder / "chroma")
    made.chroma.start()
    parts.callback(made.chroma.stop)
    made.store_network = parts.enter_context(TcpProxy(made.chroma.port))
