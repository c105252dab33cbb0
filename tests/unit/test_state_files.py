"""Ledger and stream tell of each other whether one was put back from a copy, whichever agents there are."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cdc_agent.config import Config
from cdc_agent.daemon.leaving import give_up_place
from cdc_agent.daemon.state_files import open_state
from cdc_agent.errors import IdentityMismatch
from cdc_agent.ledger.base import Checkpoint, Flip, SourceIdentity
from cdc_agent.lsn import Lsn
from tests.support.generations import generation, transaction

COLLECTION = {"name": "docs", "table": "public.docs", "text": "{body}"}
IDENTITY = SourceIdentity(system_id="1", timeline=1, database_oid=1, slot_name="s", plugin="pgoutput", slot_ready=True)


class Files:
    """Ledger and stream of a state folder, and what the lives of a daemon do to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written = 0
        self.open()
        self.ledger.save_identity(IDENTITY)

    def open(self, **source: str) -> None:
        config = Config(source={"dsn": "host=localhost", **source}, state_dir=self.folder, collections=[COLLECTION])
        files = open_state(config)
        self.ledger, self.stream = files.ledger, files.stream

    def close(self) -> None:
        self.ledger.close()
        self.stream.close()

    def begin(self, number: int, state: str) -> None:
        """A generation with an agent of its own, at the head of the stream, as ``Consumers`` adds it."""
        one = generation(number, state)
        self.ledger.save_generation(one)
        self.stream.release(one.agent, self.ledger.register_agent(one.agent, self.stream.head_offset()).offset)
        self.ledger.save_collection(one.physical, "f")

    def write(self, *numbers: int) -> None:
        """A commit, which the agents of these generations apply."""
        self.written += 1
        position = self.stream.append([transaction(self.written)])
        offset = self.stream.head_offset()
        for number in numbers:
            agent = generation(number, "live").agent
            checkpoint = Checkpoint(offset=offset, applied_lsn=position.captured_lsn)
            self.ledger.flip(Flip(agent=agent, checkpoint=checkpoint, generation=0))
            self.stream.release(agent, offset)

    def switch(self) -> None:
        self.ledger.switch_generation("docs", 2, 1.0)

    def drop(self, number: int, *, killed: bool = False) -> None:
        one = generation(number, "dropping")
        self.ledger.save_generation(one)
        self.stream.forget(one.agent)
        if not killed:
            self.ledger.drop_generation(one, forget_agent=True)

    def copy(self, name: str) -> None:
        """Of the file while the daemon is stopped."""
        self.close()
        shutil.copy(self.folder / f"{name}.sqlite", self.folder / "kept")
        self.open()

    def put_back(self, name: str) -> None:
        self.close()
        for left in self.folder.glob(f"{name}.sqlite-*"):
            left.unlink()
        shutil.copy(self.folder / "kept", self.folder / f"{name}.sqlite")


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    files = Files(tmp_path)
    files.begin(1, "live")
    files.write(1)
    yield files
    files.close()


def migrate(files: Files) -> None:
    """From its beginning to its end, while nothing is written."""
    files.begin(2, "building")
    files.switch()
    files.drop(1)


def migrate_until_the_switch(files: Files) -> None:
    files.begin(2, "building")
    files.write(1, 2)
    files.switch()


def nothing(_: Files) -> None:
    """The copy is of the first index."""


#: What happened before the ledger was copied, what between that and putting it back, and what tells that it is older.
PASTS: dict[str, tuple[Callable[[Files], None], Callable[[Files], None], str]] = {
    "more was written": (nothing, lambda f: f.write(1), "indexer is at 1 and was at 2"),
    "a migration was begun": (nothing, lambda f: f.begin(2, "building"), "no generation of it is known"),
    "a migration was made": (nothing, migrate, "no generation of it is known"),
    "a migration was finished": (migrate_until_the_switch, lambda f: f.drop(1), "indexer has left the stream"),
    "a later one was written to": (
        lambda f: (migrate_until_the_switch(f), f.drop(1))[-1],
        lambda f: f.write(2),
        "indexer:docs@2 is at 2 and was at 3",
    ),
}


@pytest.mark.parametrize("past", PASTS)
def test_a_ledger_that_was_put_back_is_noticed_by_whichever_agent(files: Files, past: str) -> None:
    # Given a ledger that was copied, and used since
    before, since, sign = PASTS[past]
    before(files)
    files.copy("ledger")
    since(files)

    # When the copy is put back
    files.put_back("ledger")

    # Then the next start names it, and says how it was told
    with pytest.raises(IdentityMismatch, match=sign) as found:
        files.open()
    assert found.value.state == "LEDGER_LOST"

    # And with mending it begins a new ledger, after which nothing is strange
    files.open(on_mismatch="resync")
    assert files.ledger.generations() == []
    files.stream.tie(files.ledger.uuid)
    files.close()
    files.open()


def test_a_stream_that_was_put_back_is_noticed_after_a_migration(files: Files) -> None:
    # Given a stream that was copied before a migration was made and more was written
    files.copy("stream")
    migrate(files)
    files.write(2)

    # When the copy is put back, then it is the stream that is named
    files.put_back("stream")
    with pytest.raises(IdentityMismatch, match="older copy") as found:
        files.open()
    assert found.value.state == "STREAM_LOST"

    # And a new one goes on where the agents are, also after a kill before any of them has begun
    files.open(on_mismatch="resync")
    assert files.stream.released("indexer:docs@2") == files.stream.head_offset() == 2
    files.close()
    files.open()


def killed_while_it_was_added(files: Files) -> None:
    files.ledger.save_generation(generation(2, "building"))
    files.ledger.register_agent("indexer:docs@2", 1)


def killed_while_it_gave_up(files: Files) -> None:
    """An agent that failed: its collection counts as never read, and its place is gone from the stream alone."""
    files.begin(2, "building")
    files.write(1, 2)
    files.ledger.leave_collection(generation(2, "building"))
    files.stream.forget("indexer:docs@2")


def gave_up(files: Files) -> None:
    files.begin(2, "building")
    files.write(1, 2)
    give_up_place(files.ledger, files.stream, "indexer:docs@2", [generation(2, "building")])


#: Where a daemon can end between ledger and stream.
DEATHS: dict[str, Callable[[Files], None]] = {
    "while an agent was added": killed_while_it_was_added,
    "while a generation was dropped": lambda f: (migrate_until_the_switch(f), f.drop(1, killed=True))[-1],
    "while a place was given up": killed_while_it_gave_up,
    "after a place was given up": gave_up,
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_daemon_that_ended_between_ledger_and_stream_starts(files: Files, death: str) -> None:
    DEATHS[death](files)
    files.close()

    files.open()

    assert files.ledger.checkpoint("indexer").applied_lsn >= Lsn(18)
