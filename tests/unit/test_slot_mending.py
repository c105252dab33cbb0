"""A lost place is named, and made anew together with the resync that closes the gap, whenever the process is killed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cdc_agent.errors import IdentityMismatch, SlotBusy, SourceUnavailable
from cdc_agent.events import Change, Transaction
from cdc_agent.identity import Place, SourceGuard, StartOver, guard
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
    """A server with at most one slot and one publication. ``fail`` names the calls that fail, ``known`` what else is
    known of the slot."""

    def __init__(self) -> None:
        self.slot: Lsn | None = None
        self.publication = 0
        self.next_lsn = 1_000
        self.next_oid = 70
        self.fail: set[str] = set()
        self.known: dict[str, Any] = {}

    def describe(self, dsn: str, name: str) -> SlotStatus | None:
        if self.slot is None:
            return None
        known = {
            "plugin": "pgoutput",
            "database": "d",
            "wal_status": "reserved",
            "confirmed_flush_lsn": self.slot,
            "active_pid": None,
            "restart_lsn": None,
            "retained_bytes": 0,
            "lag_bytes": 0,
        }
        return SlotStatus(name=name, **(known | self.known))

    def publication_oid(self, dsn: str, name: str) -> int:
        return self.publication

    def publish(self) -> None:
        """What ``ensure_publication`` does."""
        if not self.publication:
            self.publication = self.next_oid
            self.next_oid += 1

    def create_slot(self, dsn: str, *, slot_name: str, plugin: str) -> Lsn:
        if "create" in self.fail:
            raise SourceUnavailable("it waits for open transactions")
        self.slot = Lsn(self.next_lsn)
        self.next_lsn += 1_000
        return self.slot

    def drop(self, dsn: str, name: str) -> bool:
        if self.slot is not None and self.known.get("active_pid") is not None:
            raise SlotBusy("it is active")
        self.slot, self.known = None, {}
        return True


class Killed(BaseException):
    """The process ends here."""


class Life:
    """One process: a guard on the files that outlive it."""

    def __init__(
        self,
        folder: Path,
        *,
        server: Server | None = None,
        mend: bool = True,
        adopt: bool = False,
        kill_at: str = "",
        slot_name: str = "s",
        plugin: str = "pgoutput",
        clock: Callable[[], float] = lambda: 0.0,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        self.ledger = SqliteLedger(folder / "ledger.db")
        self.stream = SqliteStream(folder / "stream.db")
        self.resyncs = folder / "resyncs"
        if kill_at:
            self._kill(kill_at)
        self.guard = SourceGuard(
            Place(
                dsn="",
                slot_name=slot_name,
                plugin=plugin,
                database_oid=5,
                publication="p" if server else "",
                publish=server.publish if server else lambda: None,
                settle=settle,
            ),
            ledger=self.ledger,
            stream=self.stream,
            resync_all=self._resync,
            mend=mend,
            adopt=adopt,
            wall_clock=clock,
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
    for name in ("describe", "create_slot", "drop", "publication_oid"):
        monkeypatch.setattr(slots, name, getattr(made, name))
    return made


@pytest.fixture
def folder(tmp_path: Path, server: Server) -> Path:
    """The state of a daemon that has streamed for a while."""
    life = Life(tmp_path, server=server)
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


@pytest.mark.parametrize("first", [True, False])
def test_nothing_is_read_before_what_is_older_than_the_new_slot_can_be_seen(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    # Given a ledger that has no slot yet, or has lost its slot
    if not first:
        life = Life(tmp_path, server=server)
        life.guard.prepare(SERVER)
        life.end()
        server.slot = None
    resyncs = tmp_path / "resyncs"
    seen: list[tuple[bool, bool, bool]] = []

    def hidden() -> None:
        """Transactions that are older than the slot do not end."""
        known = identity(tmp_path)
        seen.append((server.slot is not None, resyncs.exists(), known is not None and known.slot_ready))
        raise SourceUnavailable("transactions that are older than the slot have not ended")

    # When a slot is made while older transactions are under way, and they do not end in time
    life = Life(tmp_path, server=server, settle=hidden)
    with pytest.raises(SourceUnavailable, match="older than the slot"):
        life.guard.prepare(SERVER)
    life.end()

    # Then the slot was there when they were waited for, and neither was anything read yet nor does the slot count
    assert seen == [(True, False, False)]
    known = identity(tmp_path)
    assert known is not None
    assert not known.slot_ready
    assert not resyncs.exists()

    # And the next life waits anew, for a slot of its own
    slot, waited = server.slot, []
    life = Life(tmp_path, server=server, settle=lambda: waited.append(server.slot))
    life.guard.prepare(SERVER)
    life.end()
    assert waited == [server.slot]
    assert server.slot != slot
    assert resyncs.exists() is not first
    known = identity(tmp_path)
    assert known is not None
    assert known.slot_ready


@pytest.mark.fault("slot-creation-waits", "killed-while-mending")
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


@pytest.mark.fault("slot-creation-waits")
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


# -- every state, by name ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Damage:
    """``slot`` and ``server`` are changes of what the server says; ``gone`` is what it does not have any more."""

    state: str
    slot: dict[str, Any] | None = None
    server: dict[str, Any] | None = None
    gone: str = ""

    def __str__(self) -> str:
        return "-".join([self.state, *(self.slot or {}), *(self.server or {}), self.gone])


DAMAGES = (
    Damage("SLOT_LOST", gone="slot"),
    Damage("SLOT_LOST", slot={"confirmed_flush_lsn": None}),
    Damage("SLOT_INVALIDATED", slot={"wal_status": "lost"}),
    Damage("SLOT_INVALIDATED", slot={"invalidation": "idle_timeout"}),
    Damage("SLOT_ADVANCED", slot={"confirmed_flush_lsn": Lsn(1_501)}),
    Damage("SLOT_CHANGED", slot={"plugin": "test_decoding"}),
    Damage("SLOT_FOREIGN", slot={"plugin": None}),
    Damage("SLOT_FOREIGN", slot={"ours": False}),
    Damage("PUBLICATION_LOST", gone="publication"),
    Damage("PUBLICATION_LOST", gone="publication and again"),
    Damage("PUBLICATION_LOST", server={"refused": "42704"}),
    Damage("SLOT_INVALIDATED", server={"refused": "55000"}),
    Damage("SERVER_REWOUND", server={"flush_lsn": Lsn(1_499)}),
    Damage("SERVER_REWOUND", server={"timeline": 2, "ended": {1: Lsn(1_499)}}),
    Damage("SERVER_REWOUND", server={"timeline": 2, "ended": {}}),
    # What is graver is named.
    Damage("SERVER_REWOUND", server={"timeline": 2, "ended": {1: Lsn(1_499)}}, gone="slot"),
    Damage("OTHER_SERVER", server={"system_id": "8"}, gone="slot"),
)
#: A daemon that runs cannot mend these; the next one does, before anything runs.
AT_START_ONLY = {"SERVER_REWOUND"}
NEVER = {"SLOT_FOREIGN", "OTHER_SERVER"}


def damaged(server: Server, damage: Damage) -> ServerIdentity:
    server.known = dict(damage.slot or {})
    if "slot" in damage.gone:
        server.slot = None
    if "publication" in damage.gone:
        server.publication = 0
    if "again" in damage.gone:
        server.publish()
    return replace(SERVER, **(damage.server or {}))


@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_what_does_not_fit_has_a_name_and_a_hint(folder: Path, server: Server, damage: Damage) -> None:
    met = damaged(server, damage)
    life = Life(folder, server=server, mend=False)

    with pytest.raises(IdentityMismatch) as refused:
        life.guard.verify(met)

    assert refused.value.state == damage.state
    assert refused.value.hint
    life.end()


@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_what_may_be_mended_is_mended_at_the_start(folder: Path, server: Server, damage: Damage) -> None:
    # Given something that does not fit, and documents from before
    met = damaged(server, damage)
    life = Life(folder, server=server)

    # When a daemon starts that may mend
    if damage.state in NEVER:
        with pytest.raises(IdentityMismatch, match=damage.state):
            life.guard.prepare(met)
    else:
        life.guard.prepare(met)

        # Then everything is read again from a new slot on, and all is well from then on
        assert life.resyncs.read_text() == f"{damage.state}\n"
        assert life.stream.position() == Position(captured_lsn=Lsn(2_000))
        life.guard.verify(replace(met, flush_lsn=Lsn(10_000), refused=""))
        assert life.resyncs.read_text() == f"{damage.state}\n"
    life.end()


@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_what_would_change_state_under_others_is_left_to_the_next_start(
    folder: Path, server: Server, damage: Damage
) -> None:
    met = damaged(server, damage)
    life = Life(folder, server=server)
    if damage.state in NEVER:
        with pytest.raises(IdentityMismatch, match=damage.state):
            life.guard.verify(met)
    elif damage.state in AT_START_ONLY:
        with pytest.raises(StartOver):
            life.guard.verify(met)
        assert life.stream.position().captured_lsn == 1_500
        life.guard.prepare(met)
        assert life.resyncs.read_text() == f"{damage.state}\n"
    else:
        life.guard.verify(met)
        assert life.resyncs.read_text() == f"{damage.state}\n"
    life.end()


def test_a_promotion_that_lost_nothing_is_remembered(folder: Path, server: Server) -> None:
    # Given a promoted standby that has our slot, and everything that was captured
    promoted = replace(SERVER, timeline=2, ended={1: Lsn(1_500)})
    life = Life(folder, server=server)

    # When we connect to it, and to the next one after it
    life.guard.verify(promoted)
    life.guard.verify(replace(SERVER, timeline=3, ended={1: Lsn(1_500), 2: Lsn(1_600)}))

    # Then nothing is read again
    assert not life.resyncs.exists()

    # And the old primary, which went its own way, is refused
    life.end()
    life = Life(folder, server=server, mend=False)
    with pytest.raises(IdentityMismatch, match="SERVER_REWOUND"):
        life.guard.verify(SERVER)
    life.end()


@pytest.mark.parametrize(("ended", "fits"), [(1_700, False), (1_701, True)])
def test_a_commit_of_which_a_part_is_here_must_have_happened(
    folder: Path, server: Server, ended: int, fits: bool
) -> None:
    # Given a part of a commit whose record lies at 1700
    life = Life(folder, server=server, mend=False)
    change = Change("m", None, 1, (b"cdc_agent.x", b""), None)
    life.stream.append([Transaction(xid=1, commit_lsn=Lsn(1_700), commit_ts_us=0, changes=[change])])

    # When the server's history branches off there
    promoted = replace(SERVER, timeline=2, ended={1: Lsn(ended)})
    if fits:
        life.guard.verify(promoted)
    else:
        with pytest.raises(IdentityMismatch, match="SERVER_REWOUND"):
            life.guard.verify(promoted)
    life.end()


def test_a_publication_of_a_ledger_that_knows_none_yet_is_remembered(folder: Path, server: Server) -> None:
    life = Life(folder, server=server, mend=False)
    known = life.ledger.identity()
    assert known is not None
    life.ledger.save_identity(replace(known, publication_oid=0))

    life.guard.verify(SERVER)

    known = life.ledger.identity()
    assert known is not None
    assert known.publication_oid == server.publication == 70
    life.end()


def test_another_server_is_adopted_only_when_told_and_only_at_the_start(folder: Path, server: Server) -> None:
    # Given another server without our slot
    other = replace(SERVER, system_id="8", flush_lsn=Lsn(500))
    server.slot, server.next_lsn = None, 300
    life = Life(folder, server=server, mend=False, adopt=True)

    # When we meet it while running, then that is refused
    with pytest.raises(IdentityMismatch, match="OTHER_SERVER"):
        life.guard.verify(other)

    # When a daemon starts that is told to adopt it
    life.guard.prepare(other)

    # Then it goes on there, and all is read again
    assert life.resyncs.read_text() == "OTHER_SERVER\n"
    assert life.stream.position() == Position(captured_lsn=Lsn(300))
    life.guard.verify(other)

    # And the first one is another server now
    with pytest.raises(IdentityMismatch, match="OTHER_SERVER"):
        life.guard.prepare(SERVER)
    life.end()


def test_another_slot_name_is_refused_or_gets_a_slot_of_its_own(folder: Path, server: Server) -> None:
    # Given a configuration that names another slot, when there is one of that name, then it is not touched
    life = Life(folder, server=server, slot_name="other")
    with pytest.raises(IdentityMismatch, match="SLOT_FOREIGN"):
        life.guard.prepare(SERVER)
    assert server.slot == 1_000

    # When there is none, then that is a named state, which may be mended
    server.slot = None
    life.guard.prepare(SERVER)
    assert life.resyncs.read_text() == "SLOT_CHANGED\n"
    life.end()


@pytest.mark.parametrize("damage", [d for d in DAMAGES if d.state not in NEVER], ids=str)
def test_a_slot_that_somebody_streams_from_is_never_dropped(folder: Path, server: Server, damage: Damage) -> None:
    # Given something to be mended, while somebody else streams from the slot
    met = damaged(server, damage)
    if server.slot is None:
        server.slot = Lsn(1_000)
    server.known["active_pid"] = 4711
    life = Life(folder, server=server)

    # Then we wait
    for ask in (life.guard.prepare, life.guard.verify):
        with pytest.raises(SlotBusy, match=r"SLOT_BUSY.*4711"):
            ask(met)
    assert server.slot == 1_000
    assert not life.resyncs.exists()
    life.end()


@pytest.mark.parametrize("name", ["mending_begun", "mending_after_drop", "resync_after_slot", "mending_after_ledger"])
@pytest.mark.parametrize("damage", [DAMAGES[0], DAMAGES[9], DAMAGES[13]], ids=str)
def test_mending_goes_on_wherever_it_was_killed(
    folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch, damage: Damage, name: str
) -> None:
    # Given a daemon that is killed while it mends, if it comes there
    met = damaged(server, damage)

    def kill(passed: str) -> None:
        if passed == name:
            raise Killed

    monkeypatch.setattr(guard, "hit", kill)
    life = Life(folder, server=server)
    try:
        life.guard.prepare(met)
        assert (name, damage.state in AT_START_ONLY) == ("mending_after_ledger", False)
    except Killed:
        life.end()

        # When the next one starts, even if it would not begin to mend
        monkeypatch.undo()
        for call in ("describe", "create_slot", "drop", "publication_oid"):
            monkeypatch.setattr(slots, call, getattr(server, call))
        life = Life(folder, server=server, mend=False)
        life.guard.prepare(met)

    # Then everything is read again, and the state counts once
    assert life.resyncs.read_text() == f"{damage.state}\n"
    assert life.stream.position().captured_lsn == server.slot
    assert life.ledger.mendings_since(damage.state, 0) == 1
    assert life.ledger.mending() is None
    life.guard.verify(replace(met, flush_lsn=Lsn(10_000)))
    assert life.resyncs.read_text() == f"{damage.state}\n"
    life.end()


def test_a_state_that_comes_back_and_back_is_shown_instead_of_mended(folder: Path, server: Server) -> None:
    # Given a slot that is lost three times within an hour
    now = [1_000.0]
    life = Life(folder, server=server, clock=lambda: now[0])
    for _ in range(3):
        server.slot = None
        life.guard.verify(SERVER)
        now[0] += 60

    # When it is lost once more, then that is shown, also after a restart
    server.slot = None
    for _ in range(2):
        with pytest.raises(IdentityMismatch, match="SLOT_LOST: mended 3 times within an hour"):
            life.guard.verify(SERVER)
        life.end()
        life = Life(folder, server=server, clock=lambda: now[0])

    # When an hour has passed, then it is mended again
    now[0] += 3_600
    life.guard.verify(SERVER)
    assert life.resyncs.read_text() == "SLOT_LOST\n" * 4
    life.end()


def test_a_ledger_that_was_lost_begins_with_a_new_slot_where_that_is_allowed(tmp_path: Path, server: Server) -> None:
    # Given a slot that a fresh ledger has never used, and a stream that somebody left
    server.slot = Lsn(1_000)
    life = Life(tmp_path, server=server, mend=False)
    life.stream.append([], captured_lsn=Lsn(9_000))
    with pytest.raises(IdentityMismatch, match="LEDGER_LOST"):
        life.guard.prepare(SERVER)
    life.end()

    # When it may be mended
    life = Life(tmp_path, server=server)
    life.guard.prepare(SERVER)

    # Then the slot is a new one, and what was in the stream is void
    assert life.stream.position() == Position(captured_lsn=Lsn(1_000))
    assert life.resyncs.read_text() == "LEDGER_LOST\n"
    life.end()
