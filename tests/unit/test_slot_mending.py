"""A lost slot is made anew together with the resync that closes the gap, whenever the process is killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cdc_agent.errors import IdentityMismatch, SourceUnavailable
from cdc_agent.events import Change, Transaction
from cdc_agent.identity import SourceGuard
from cdc_agent.ledger.base import SourceIdentity
from cdc_agent.ledger.sqlite import SqliteLedger
from cdc_agent.lsn import Lsn
from cdc_agent.source import slot as slots
from cdc_agent.source.replication import ServerIdentity
from cdc_agent.source.slot import SlotStatus
from cdc_agent.stream.base import Position
from cdc_agent.stream.sqlite import SqliteStream

SERVER = ServerIdentity(system_id="7", timeline=1, flush_lsn=Lsn(10_000))


class Server:
    """A server with at most one slot. ``fail`` names the calls that fail."""

    def __init__(self) -> None:
        self.slot: Lsn | None = None
        self.next_lsn = 1_000
        self.fail: set[str] = set()

    def describe(self, dsn: str, name: str) -> SlotStatus | None:
        if self.slot is None:
            return None
        known: dict[str, Any] = {"active_pid": None, "restart_lsn": None, "retained_bytes": 0, "lag_bytes": 0}
        return SlotStatus(
            name=name,
            plugin="pgoutput",
            database="d",
            wal_status="reserved",
            confirmed_flush_lsn=self.slot,
            **known,
        )

    def create_slot(self, dsn: str, *, slot_name: str, plugin: str) -> Lsn:
        if "create" in self.fail:
            raise SourceUnavailable("it waits for open transactions")
        self.slot = Lsn(self.next_lsn)
        self.next_lsn += 1_000
        return self.slot

    def drop(self, dsn: str, name: str) -> bool:
        self.slot = None
        return True


class Killed(BaseException):
    """The process ends here."""


class Life:
    """One process: a guard on the files that outlive it."""

    def __init__(self, folder: Path, *, mend: bool = True, kill_at: str = "") -> None:
        self.ledger = SqliteLedger(folder / "ledger.db")
        self.stream = SqliteStream(folder / "stream.db")
        self.resyncs = folder / "resyncs"
        if kill_at:
            self._kill(kill_at)
        self.guard = SourceGuard(
            dsn="",
            slot_name="s",
            plugin="pgoutput",
            database_oid=5,
            ledger=self.ledger,
            stream=self.stream,
            resync_all=self._resync,
            mend=mend,
        )

    def _resync(self, reason: str) -> None:
        """Durable, as the real one."""
        with self.resyncs.open("a") as file:
            file.write(reason + "\n")

    def _kill(self, where: str) -> None:
        """Die just before the named call is carried out."""
        owner, name = {"append": (self.stream, "append"), "ready": (self.ledger, "save_identity")}[where]
        call = getattr(owner, name)

        def killing(*args: Any, **more: Any) -> Any:
            if where == "append" or args[0].slot_ready:
                raise Killed
            return call(*args, **more)

        setattr(owner, name, killing)

    def end(self) -> None:
        self.stream.close()
        self.ledger.close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    for name in ("describe", "create_slot", "drop"):
        monkeypatch.setattr(slots, name, getattr(made, name))
    return made


@pytest.fixture
def folder(tmp_path: Path, server: Server) -> Path:
    """The state of a daemon that has streamed for a while."""
    life = Life(tmp_path)
    life.guard.prepare(SERVER)
    life.stream.append([], captured_lsn=Lsn(1_500))
    life.end()
    assert not life.resyncs.exists()
    return tmp_path


def identity(folder: Path) -> SourceIdentity | None:
    ledger = SqliteLedger(folder / "ledger.db")
    try:
        return ledger.identity()
    finally:
        ledger.close()


def test_a_lost_slot_is_a_named_state_by_default(folder: Path, server: Server) -> None:
    server.slot = None
    life = Life(folder, mend=False)

    with pytest.raises(IdentityMismatch) as refused:
        life.guard.prepare(SERVER)

    assert refused.value.state == "SLOT_LOST"
    life.end()


def test_a_lost_slot_is_made_anew_and_everything_is_read_again(folder: Path, server: Server) -> None:
    server.slot = None
    life = Life(folder)

    life.guard.verify(SERVER)

    assert life.resyncs.read_text() == "SLOT_LOST\n"
    assert life.stream.position().captured_lsn == server.slot == 2_000
    life.guard.verify(SERVER)
    assert life.resyncs.read_text() == "SLOT_LOST\n"
    life.end()


@pytest.mark.parametrize("where", ["append", "ready"])
def test_a_kill_while_a_lost_slot_is_mended_leaves_no_gap(folder: Path, server: Server, where: str) -> None:
    # Given a lost slot, and a process that is killed while it mends that
    server.slot = None
    life = Life(folder, kill_at=where)
    with pytest.raises(Killed):
        life.guard.verify(SERVER)
    life.end()

    # When the next one starts
    life = Life(folder)
    life.guard.prepare(SERVER)

    # Then everything is read again all the same
    assert "SLOT_LOST" in life.resyncs.read_text()
    found = life.ledger.identity()
    assert found is not None
    assert found.slot_ready
    life.end()


def test_a_restart_while_the_new_slot_waits_for_open_transactions_leaves_no_gap(folder: Path, server: Server) -> None:
    # Given a lost slot whose successor cannot be made yet
    server.slot = None
    server.fail = {"create"}
    life = Life(folder)
    with pytest.raises(SourceUnavailable):
        life.guard.verify(SERVER)
    life.end()

    # When the daemon is started again
    server.fail = set()
    life = Life(folder)
    life.guard.prepare(SERVER)

    # Then everything is read again
    assert life.resyncs.read_text() == "SLOT_LOST\n"
    life.end()


def test_a_slot_that_was_lost_in_the_middle_of_a_commit_is_mended_once(folder: Path, server: Server) -> None:
    # Given a part of a large commit in the stream, whose end will never come
    server.slot = None
    life = Life(folder)
    part = Transaction(
        xid=1, commit_lsn=Lsn(1_600), commit_ts_us=0, changes=[Change("m", None, 1, (b"cdc_agent.x", b""), None)]
    )
    life.stream.append([part])

    # When the slot is mended, and the connection is made again
    life.guard.verify(SERVER)
    life.guard.verify(SERVER)

    # Then it was made once
    assert life.stream.position() == Position(captured_lsn=Lsn(2_000))
    assert life.resyncs.read_text() == "SLOT_LOST\n"
    life.end()


def test_a_first_slot_that_was_half_made_is_made_again_without_a_resync(tmp_path: Path, server: Server) -> None:
    # Given a first start that was killed right after the slot was made
    life = Life(tmp_path, kill_at="append")
    with pytest.raises(Killed):
        life.guard.prepare(SERVER)
    life.end()
    assert server.slot is not None

    # When the next one starts
    life = Life(tmp_path)
    life.guard.prepare(SERVER)

    # Then the first copies are all there is to read
    assert not life.resyncs.exists()
    assert life.stream.position().captured_lsn == server.slot
    life.end()
    found = identity(tmp_path)
    assert found is not None
    assert found.slot_ready
