"""The mirror follows the feed and the stream follows the mirror: each change once, whatever fails between them."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cdc_agent.errors import FeedUnavailable, StreamFull
from cdc_agent.events import ChangeEvent, Column, Event, Relation
from cdc_agent.feeds.base import EVERYTHING, Found, Ring
from cdc_agent.feeds.bell import Bell
from cdc_agent.feeds.follower import Follower
from cdc_agent.feeds.mirror import Mirror
from cdc_agent.health import Health
from cdc_agent.journal.file import JournalFile
from cdc_agent.journal.sqlite import SqliteJournal
from cdc_agent.resync import PageBoard
from cdc_agent.retry import Backoff, Retrier
from cdc_agent.snapshot import Snapshot
from cdc_agent.stream.sqlite import SqliteStream


def event(id_: str, *, source: str, key: str) -> Event:
    return Event(id=id_, source=source, type="hub.push", key=key, time=dt.datetime.now(dt.UTC), data={})


RELATION = Relation(
    oid=1,
    root_oid=1,
    schema="github",
    name="docs",
    columns=(Column(name="path", type_oid=25), Column(name="body", type_oid=25)),
    key=("path",),
)


@dataclass
class Shelf:
    """A feed that a test holds in its hand."""

    columns: tuple[str, ...] = ("path", "body")
    listing_is_whole: bool = True
    texts: dict[str, str] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)
    refuse: str = ""
    odd: list[str] = field(default_factory=list)

    def heed(self, event: Event) -> Ring | None:
        return {"all": EVERYTHING, "": None}.get(event.key, Ring(frozenset([event.key])))

    def list(self) -> Mapping[str, str]:
        return {key: f"v:{text}" for key, text in self.texts.items()}

    def oddities(self) -> list[str]:
        return self.odd

    def fetch(self, key: str, etag: str) -> Found | None:
        self.fetched.append(key)
        if key == self.refuse:
            raise FeedUnavailable("not now")
        text = self.texts.get(key)
        return Found(etag=f"v:{text}", row=(key.encode(), text.encode())) if text is not None else None

    def close(self) -> None: ...


class Room:
    """A follower and all around it; ``again`` is what a start after a crash finds."""

    def __init__(self, folder: Path, shelf: Shelf) -> None:
        self.folder, self.shelf = folder, shelf
        self.now = 1000.0
        self.again()

    def again(self) -> None:
        self.mirror = Mirror(self.folder / "mirror.sqlite")
        self.stream = SqliteStream(self.folder / "stream.sqlite")
        self.follower = Follower(
            name="docs",
            feed=self.shelf,
            mirror=self.mirror,
            stream=self.stream,
            relation=RELATION,
            expand=PageBoard().expand,
            stop=threading.Event(),
            clock=lambda: self.now,
        )

    def close(self) -> None:
        self.mirror.close()
        self.stream.close()

    def events(self) -> list[ChangeEvent]:
        return list(self.stream.read(0, limit=1000, wait_s=0).events)

    def told(self) -> list[tuple[str, str]]:
        return [(str(e.op), (e.after or e.before)["path"]) for e in self.events() if e.message is None]  # type: ignore[index]


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    room = Room(tmp_path, Shelf(texts={"a": "one", "b": "two"}))
    yield room
    room.close()


def test_what_comes_changes_and_goes_is_told_once(room: Room) -> None:
    assert room.follower.look() == 2
    assert room.follower.look() == 0
    room.shelf.texts |= {"a": "other", "c": "three"}
    del room.shelf.texts["b"]
    assert room.follower.look() == 3
    room.shelf.texts["b"] = "two"
    room.follower.look()

    # What goes is told last, so that a renamed document is never nowhere
    assert room.told() == [("c", "a"), ("c", "b"), ("u", "a"), ("c", "c"), ("d", "b"), ("c", "b")]
    versions = [event.version for event in room.events()]
    assert versions == sorted(set(versions))
    # Only what differs was fetched
    assert room.shelf.fetched == ["a", "b", "a", "c", "b"]


def test_a_crash_between_mirror_and_stream_loses_and_doubles_nothing(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.follower.look()
    room.shelf.texts = {"a": "changed"}

    # Given a look that dies after the mirror was written: before the stream has the change, or after
    for place in ("before_append", "after_append"):

        def die(name: str, place: str = place) -> None:
            if name == place:
                raise KeyboardInterrupt

        monkeypatch.setattr("cdc_agent.feeds.follower.hit", die)
        with pytest.raises(KeyboardInterrupt):
            room.follower.look()
        monkeypatch.undo()
        room.close()
        room.again()

    # When the feed has gone back meanwhile to what it was
    room.shelf.texts = {"a": "one", "b": "two"}
    room.follower.look()

    # Then the stream tells the whole story, in order
    bodies: dict[str, str] = {}
    for told in room.events():
        if told.after is not None:
            bodies[told.after["path"]] = told.after["body"]
        else:
            bodies.pop(told.before["path"])  # type: ignore[index]
    assert bodies == {"a": "one", "b": "two"}
    assert room.told() == [("c", "a"), ("c", "b"), ("u", "a"), ("d", "b"), ("u", "a"), ("c", "b")]


def test_what_was_fetched_before_a_failure_is_not_fetched_again(room: Room) -> None:
    room.shelf.refuse = "b"
    with pytest.raises(FeedUnavailable):
        room.follower.look()
    assert room.told() == [("c", "a")]

    room.shelf.refuse = ""
    room.follower.look()
    assert room.told() == [("c", "a"), ("c", "b")]
    assert room.shelf.fetched == ["a", "b", "b"]


def test_a_listing_that_may_lack_some_asks_for_those(room: Room) -> None:
    room.follower.look()
    room.shelf.listing_is_whole = False
    hidden = room.shelf.texts.pop("b")
    room.shelf.list = lambda: {"a": "v:one"}  # type: ignore[method-assign]

    # When a listing lacks a document that is there, and then one that is not
    room.shelf.texts["b"] = hidden
    assert room.follower.look() == 0
    del room.shelf.texts["b"]
    assert room.follower.look() == 1
    assert room.told()[-1] == ("d", "b")


def test_a_mark_stands_behind_every_change_and_a_read_sees_what_stands_before_it(room: Room) -> None:
    room.follower.look()
    snapshot, rows = room.follower.page(None, 10)
    room.shelf.texts["a"] = "newer"
    room.follower.look()
    lsn = room.follower.mark("test", {})

    # Then the snapshot sees the first two changes and not the third
    seen = [Snapshot.parse(snapshot).sees(event.xid) for event in room.events() if event.message is None]
    assert seen == [True, True, False]
    assert [row[0] for row in rows] == [b"a", b"b"]
    assert room.events()[-1].message == ("test", b"{}")
    assert room.stream.read(0, limit=1000, wait_s=0).applied_lsn == lsn
    assert room.follower.rows(["b", "nothing"])[1] == [(b"b", b"two")]


def test_a_full_stream_is_waited_for_and_loses_nothing(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StreamFull("full")

    monkeypatch.setattr(room.stream, "append", full)
    with pytest.raises(FeedUnavailable, match="the stream of docs is full"):
        room.follower.look()
    with pytest.raises(FeedUnavailable):
        room.follower.mark("test", {})
    monkeypatch.undo()

    room.follower.mark("test", {})
    room.follower.look()
    assert room.told() == [("c", "a"), ("c", "b")]


# The bell.


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[SqliteJournal]:
    journal = SqliteJournal(JournalFile(tmp_path / "journal.sqlite"))
    yield journal
    journal.close()


def bell_of(room: Room, journal: SqliteJournal) -> tuple[Bell, list[frozenset[str]], Health]:
    looks: list[frozenset[str]] = []
    look: Callable[..., int] = room.follower.look

    def noted(ring: Ring = EVERYTHING) -> int:
        looks.append(ring.keys)
        return look(ring)

    room.follower.look = noted  # type: ignore[method-assign]
    health, stop = Health(), threading.Event()
    bell = Bell(
        follower=room.follower,
        mirror=room.mirror,
        journal=journal,
        webhook="hub",
        every_s=900,
        again_s=10,
        retrier=Retrier(stop, health, Backoff(initial_s=0.01)),
        health=health,
        stop=stop,
        clock=lambda: room.now,
    )
    return bell, looks, health


def test_a_doorbell_is_one_look_and_another_one_a_little_later(room: Room, journal: SqliteJournal) -> None:
    bell, looks, _ = bell_of(room, journal)
    bell.turn()
    assert looks == [frozenset()]

    # When several ring, some for the same, one of another sender, one that says nothing to us
    journal.append(
        [event("1", source="hub", key="a"), event("2", source="hub", key="b"), event("3", source="hub", key="a")]
    )
    journal.append([event("4", source="other", key="c"), event("5", source="hub", key="")])
    bell.turn()
    bell.turn()
    assert looks[1:] == [frozenset({"a", "b"})]

    # Then there is a second look, because an API may answer with what was before the doorbell
    room.now += 11
    bell.turn()
    bell.turn()
    assert looks[2:] == [frozenset({"a", "b"})]

    # And a look at everything when nobody rang for long
    room.now += 900
    bell.turn()
    assert looks[3:] == [frozenset()]


def test_a_doorbell_is_heeded_only_after_what_it_led_to_is_told(room: Room, journal: SqliteJournal) -> None:
    bell, _, _ = bell_of(room, journal)
    bell.turn()
    journal.append([event("1", source="hub", key="a")])
    room.shelf.texts["a"] = "newer"

    def die(*_: object) -> int:
        raise KeyboardInterrupt

    room.follower.look = die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        bell.turn()

    # When another life begins, it hears the same doorbell, and a third one does not
    room.close()
    room.again()
    bell, looks, _ = bell_of(room, journal)
    bell.turn()
    assert room.told()[-1] == ("u", "a")
    room.close()
    room.again()
    assert room.mirror.heeded == 1
    del looks


def test_what_is_odd_is_a_problem_until_it_is_over(room: Room, journal: SqliteJournal) -> None:
    bell, _, health = bell_of(room, journal)
    room.shelf.odd = ["the branch is gone"]
    bell.turn()
    assert [problem.message for problem in health.problems()] == ["the branch is gone"]

    room.shelf.odd = []
    room.now += 1000
    bell.turn()
    assert health.problems() == []


def test_a_great_many_doorbells_are_a_look_at_everything(room: Room, journal: SqliteJournal) -> None:
    bell, looks, _ = bell_of(room, journal)
    bell.turn()
    journal.append([event(str(n), source="hub", key=f"k{n}") for n in range(450)])
    bell.turn()
    assert looks[1:] == [frozenset()]
