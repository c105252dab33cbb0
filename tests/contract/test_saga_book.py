"""Every saga book makes a transition and what is said of it durable in one piece, each once."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cdc_agent.errors import JournalError
from cdc_agent.events import Event
from cdc_agent.journal.saga_book import SagaRecord, SagaState
from tests.support.office import Office
from tests.support.saga_world import NOW, start_command

SECOND = 1_000_000


@pytest.fixture(params=["sqlite"])
def office(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path / "journal.sqlite")
    office.desk.place("sagas", 0)
    yield office
    office.file.close()


def a_saga(id_: str, **more: Any) -> SagaRecord:
    known: dict[str, Any] = {
        "name": "refund",
        "state": SagaState.RUNNING,
        "start": start_command("refund", data={"cents": 100}),
        "steps": ("reserve~", "agree?", "pay"),
        "due_us": SECOND,
        "started_us": 0,
        "changed_us": 0,
    }
    return SagaRecord(id=id_, **(known | more))


def fact(record: SagaRecord, what: str) -> Event:
    return Event(id=f"{record.id}/{what}", source=record.source, type=what, time=NOW, data={}, key="k")


def begun(office: Office, *records: SagaRecord) -> None:
    office.book.begin("sagas", 1, [(record, [fact(record, "started")]) for record in records])


def test_a_saga_begins_once_together_with_the_place_of_who_read_the_command(office: Office) -> None:
    # When the same command is read twice
    assert office.book.begin("sagas", 7, [(a_saga("a"), [fact(a_saga("a"), "started")])]) == 1
    office.reopened()
    again = a_saga("a", due_us=9 * SECOND)
    assert office.book.begin("sagas", 7, [(again, [fact(again, "again")])]) == 0

    # Then there is one saga, as it began, and one fact
    assert office.book.load("a") == a_saga("a", number=1)
    assert [event.type for event in office.said()] == ["started"]
    assert office.desk.place("sagas", 0).number == 7


def test_a_transition_is_recorded_with_what_is_said_of_it_and_only_by_the_first(office: Office) -> None:
    begun(office, a_saga("a"))
    before = office.book.load("a")
    assert before is not None

    # When two make a transition of the same saga
    after = replace(
        before, cursor=1, state=SagaState.WAITING, results={"reserve": [1, None, "x"]}, error="e", reason="r"
    )
    assert office.book.save(after, [fact(before, "done")])
    assert not office.book.save(replace(before, state=SagaState.COMPENSATING), [fact(before, "cancelled")])

    # Then the first one counts, also after a restart
    office.reopened()
    assert office.book.load("a") == replace(after, version=1)
    assert [event.type for event in office.said()] == ["started", "done"]
    assert not office.book.save(a_saga("nobody"), [])


def test_what_is_due_comes_in_order_and_without_those_in_hand(office: Office) -> None:
    due = [a_saga(name, due_us=at * SECOND) for name, at in (("c", 3), ("a", 1), ("b", 2), ("z", 9))]
    begun(office, *due, a_saga("orphan", orphaned=True), a_saga("ended", state=SagaState.COMPLETED, due_us=None))

    found = [record.id for record in office.book.due(3 * SECOND, limit=10, without=["b"])]

    assert found == ["a", "c"]
    assert [record.id for record in office.book.due(3 * SECOND, limit=1, without=[])] == ["a"]
    assert office.book.next_due(without=["a", "b"]) == 3 * SECOND
    assert office.book.next_due(without=["a", "b", "c", "z"]) is None
    begun(office, a_saga("w", state=SagaState.WAITING, due_us=1))
    assert office.book.next_due(without=[]) == 1
    assert office.book.next_due(without=[], waiting=False) == SECOND


def test_a_saga_whose_declaration_changed_waits_for_it(office: Office) -> None:
    # Given two sagas under way, one that ended, and one that nobody has ever declared
    shape = ("reserve~", "agree?", "pay")
    begun(office, a_saga("a"), a_saga("other", name="other"), a_saga("new", name="new", steps=(), orphaned=True))
    begun(office, a_saga("ended", state=SagaState.COMPLETED, due_us=None))

    # When one of them is declared with other steps
    undecided = office.book.declare({"refund": ("reserve", "pay"), "other": shape, "new": ("first",)})

    # Then it is left alone, until it is declared as it was
    assert [record.id for record in undecided] == ["new"]
    assert [record.id for record in office.book.due(SECOND, limit=9, without=[])] == ["other"]
    assert office.book.counts() == {"orphaned": 2, "running": 1}
    assert [record.id for record in office.book.find(state="orphaned")] == ["a", "new"]
    office.book.declare({"refund": shape})
    assert [record.id for record in office.reopened().book.due(SECOND, limit=9, without=[])] == ["a"]


def test_sagas_are_found_by_state_and_name_and_by_page(office: Office) -> None:
    begun(office, a_saga("a"), a_saga("b", name="other"), a_saga("c", state=SagaState.WAITING))
    begun(office, a_saga("d", state=SagaState.COMPLETED, due_us=None))

    def ids(**wanted: Any) -> str:
        return "".join(record.id for record in office.book.find(**wanted))

    assert ids() == "abcd"
    assert ids(state="open") == "abc"
    assert ids(state="waiting") == "c"
    assert ids(state="completed") == "d"
    assert ids(state="open", after=1, limit=1) == "b"
    assert ids(name="other") == "b"
    assert ids(after=2, limit=1) == "c"


def test_the_history_of_a_saga_is_its_own(office: Office) -> None:
    # Given sagas whose names begin alike
    begun(office, a_saga("a"), a_saga("a0"), a_saga("a-b"))
    record = office.book.load("a")
    assert record is not None
    office.book.save(record, [fact(record, "done")])

    assert [entry.event.id for entry in office.book.history(record)] == ["a/started", "a/done"]


def test_nothing_is_done_because_of_a_byte_that_flipped(office: Office) -> None:
    begun(office, a_saga("a"))
    office.file.close()
    with closing(sqlite3.connect(office.path, isolation_level=None)) as connection:
        connection.execute("update saga set cursor = 2")

    with pytest.raises(JournalError, match="not as it was written"):
        office.reopened().book.load("a")
