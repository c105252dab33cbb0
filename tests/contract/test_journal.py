"""Every journal keeps each event once, in order, for ever. One suite over all backends (one, so far)."""

from __future__ import annotations

import datetime as dt
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cdc_agent.errors import JournalError
from cdc_agent.events import Event, Kind
from cdc_agent.journal.base import Journal, Page, Query
from cdc_agent.journal.file import JournalFile
from cdc_agent.journal.sqlite import SqliteJournal

Opener = Callable[[], Journal]
BEGAN = dt.datetime(2026, 11, 27, 12, 0, tzinfo=dt.UTC)


def event(id_: str, **more: Any) -> Event:
    known = {"source": "shop", "type": "payment.failed", "time": BEGAN, "data": {"amount": 5}} | more
    return Event(id=id_, **known)


@pytest.fixture(params=["sqlite"])
def open_journal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Opens the same journal, again and again."""
    opened: list[Journal] = []

    def open_again() -> Journal:
        if opened:
            opened.pop().close()
        opened.append(SqliteJournal(JournalFile(tmp_path / "journal.sqlite"), wall_clock=lambda: 1_795_780_800.5))
        return opened[-1]

    yield open_again
    for journal in opened:
        journal.close()


@pytest.fixture
def journal(open_journal: Opener) -> Journal:
    return open_journal()


def ids(journal: Journal, **wanted: Any) -> list[str]:
    return [entry.event.id for entry in journal.find(Query(**wanted))]


def test_an_event_is_kept_as_it_is(open_journal: Opener) -> None:
    # Given an event with everything, from another time zone
    zone = dt.timezone(dt.timedelta(hours=5, minutes=30))
    whole = event(
        "e-1",
        key="order 7",
        time=dt.datetime(2026, 11, 27, 17, 29, 59, 123456, tzinfo=zone),
        data={"text": "\0 é 😀", "list": [1, 2.5, None, True], "deep": {"er": {}}},
        correlation_id="c",
        causation_id="d",
        hops=3,
        kind=Kind.COMMAND,
        trail=("fraud:order", "bank:order"),
    )
    assert open_journal().append([whole]) == 1

    # When the journal is opened again
    [entry] = open_journal().find(Query())

    # Then nothing is missing
    assert entry.event == whole
    assert entry.event.time.utcoffset() == zone.utcoffset(None)
    assert (entry.number, entry.recorded_at.isoformat()) == (1, "2026-11-27T12:00:00.500000+00:00")


def test_an_event_that_is_here_stays_as_it_was(journal: Journal) -> None:
    assert journal.append([event("a"), event("b")]) == 2

    assert journal.append([event("b", data="other"), event("c"), event("c", data="other")]) == 1

    assert ids(journal) == ["a", "b", "c"]
    assert [entry.event.data for entry in journal.find(Query())] == [{"amount": 5}] * 3


def test_the_same_id_from_another_source_is_another_event(journal: Journal) -> None:
    assert journal.append([event("a"), event("a", source="bank")]) == 2


def test_events_are_found_by_what_they_are_about(journal: Journal) -> None:
    journal.append(
        [
            event("a", key="1"),
            event("b", key="2", type="payment.made"),
            event("c", source="bank", type="paymentless"),
            event("d", type="refund"),
        ]
    )

    assert ids(journal, type="payment.failed") == ["a"]
    assert ids(journal, type="payment.*") == ["a", "b"]
    assert ids(journal, type="payment*") == ["a", "b", "c"]
    assert ids(journal, type="*") == ["a", "b", "c", "d"]
    assert ids(journal, key="2") == ["b"]
    assert ids(journal, source="bank") == ["c"]
    assert ids(journal, source="bank", key="2") == []


@pytest.mark.parametrize("wanted", ["%", "_", "pay%", "'", "PAYMENT.FAILED"])
def test_a_type_is_no_pattern_of_sql(journal: Journal, wanted: str) -> None:
    journal.append([event("a")])

    assert ids(journal, type=wanted) == []


def test_events_are_found_by_their_time_across_zones(journal: Journal) -> None:
    east = dt.timezone(dt.timedelta(hours=9))
    journal.append([event(str(hour), time=(BEGAN + dt.timedelta(hours=hour)).astimezone(east)) for hour in range(4)])

    hour = dt.timedelta(hours=1)
    assert ids(journal, since=BEGAN + hour, until=BEGAN + 3 * hour) == ["1", "2"]


def test_pages_follow_each_other(journal: Journal) -> None:
    journal.append([event(str(number)) for number in range(5)])

    first = journal.find(Query(limit=2))
    assert [entry.event.id for entry in first] == ["0", "1"]
    assert ids(journal, after=first[-1].number) == ["2", "3", "4"]


def test_who_reads_on_sees_what_it_wants_once_and_in_order(journal: Journal) -> None:
    # Given four events of two types
    journal.append([event("a"), event("b", type="refund"), event("c", kind=Kind.COMMAND), event("d")])

    # When somebody reads the failures that are facts, one at a time
    def wants(kind: str, type_: str) -> bool:
        return (kind, type_) == ("fact", "payment.failed")

    first = journal.read(0, wants, limit=1, wait_s=0)
    second = journal.read(first.reached, wants, limit=2, wait_s=0)
    rest = journal.read(second.reached, wants, limit=2, wait_s=0)

    # Then it passes over what it does not want
    assert [entry.event.id for page in (first, second, rest) for entry in page.entries] == ["a", "d"]
    assert (first.reached, second.reached, rest.reached, journal.head()) == (1, 4, 4, 4)


def test_who_waits_is_woken_by_what_comes(journal: Journal) -> None:
    pages: list[Page] = []
    reader = threading.Thread(
        target=lambda: pages.append(journal.read(0, lambda *_: True, limit=1, wait_s=60)), daemon=True
    )
    reader.start()

    journal.append([event("a")])
    reader.join(30)

    assert [entry.event.id for entry in pages[0].entries] == ["a"]


def test_what_one_event_began_is_found_together(journal: Journal) -> None:
    journal.append([event("a"), event("b", correlation_id="a"), event("c", correlation_id="x")])

    assert ids(journal, correlation_id="a") == ["a", "b"]


def test_changes_and_ticks_are_no_facts(journal: Journal) -> None:
    journal.append([event("a", kind=Kind.CHANGE), event("b", kind=Kind.TICK), event("c", kind=Kind.COMMAND)])

    assert ids(journal) == ["c"]
    assert ids(journal, kind=Kind.CHANGE) == ["a"]


def test_many_who_append_at_once_lose_nothing(journal: Journal) -> None:
    def append(who: int) -> None:
        for number in range(20):
            journal.append([event(f"{number}", source=f"shop-{who % 2}")])

    threads = [threading.Thread(target=append, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(journal.find(Query())) == 40


class TestSqlite:
    def test_what_is_recorded_cannot_be_changed_or_removed(self, open_journal: Opener, tmp_path: Path) -> None:
        open_journal().append([event("a")])

        with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as file:
            for statement in ("update event set type = 'other'", "delete from event"):
                with pytest.raises(sqlite3.IntegrityError):
                    file.execute(statement)

    def test_an_event_that_was_tampered_with_is_not_believed(self, open_journal: Opener, tmp_path: Path) -> None:
        # Given somebody who takes the lock off first
        open_journal().append([event("a"), event("b")])
        with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as file:
            file.executescript("drop trigger event_is_final; update event set type = 'payment.made' where number = 2;")

        # Then the journal refuses to be opened, and with the trigger back, to be read
        with pytest.raises(JournalError, match="tables"):
            open_journal()
        with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as file:
            file.executescript(
                "create trigger event_is_final before update on event\n"
                "begin select raise(abort, 'an event does not change'); end;"
            )
        with pytest.raises(JournalError, match="entry 2"):
            open_journal().find(Query())

    def test_a_damaged_file_says_what_to_do(self, open_journal: Opener, tmp_path: Path) -> None:
        (tmp_path / "journal.sqlite").write_bytes(b"not SQLite" * 1000)

        with pytest.raises(JournalError) as caught:
            open_journal()
        assert "damaged" in caught.value.message
        assert caught.value.hint
