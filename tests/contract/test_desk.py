"""Every desk makes what an agent did durable in one piece, so that an event has its effects once."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cdc_agent.events import Event, Kind
from cdc_agent.journal.base import Letter, Outcome, Progress, Query, Reading
from tests.support.office import Office

NOW = dt.datetime(2026, 11, 28, 1, 0, tzinfo=dt.UTC)


def event(id_: str, **more: Any) -> Event:
    known = {"source": "shop", "type": "order.paid", "time": NOW, "data": {"n": 1}} | more
    return Event(id=id_, **known)


@pytest.fixture(params=["sqlite"])
def office(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path / "journal.sqlite", wall_clock=NOW.timestamp)
    office.journal.append([event(str(number)) for number in range(1, 6)])
    yield office
    office.file.close()


def ids(office: Office) -> list[str]:
    return [event.id for event in office.said()]


def letter(number: int, **more: Any) -> Letter:
    known: dict[str, Any] = {"reason": "failed", "error": "no such card", "attempts": 5, "parked_at": NOW}
    return Letter(agent="thanks", number=number, event=event(str(number)), **(known | more))


def test_a_new_agent_begins_where_it_is_told_and_an_old_one_where_it_was(office: Office) -> None:
    assert office.desk.place("thanks", 3) == Progress(number=3)
    office.desk.advance("thanks", 4)

    assert office.reopened().desk.place("thanks", 0) == Progress(number=4)


def test_what_handling_came_to_is_recorded_together(office: Office) -> None:
    office.desk.place("thanks", 0)

    # When one event is handled: something emitted, something remembered
    said = event("said", source="agent/thanks", kind=Kind.COMMAND)
    assert office.desk.settle(Outcome(agent="thanks", number=1, passed=1, emitted=(said,), memory=("k", {"n": 1})))

    # Then all of it is there, also after a restart
    office.reopened()
    assert ids(office)[-1] == "said"
    assert office.desk.recall("thanks", "k") == {"n": 1}
    assert office.desk.place("thanks", 0) == Progress(number=1)


@pytest.mark.parametrize("number", [2, 4], ids=["passed", "handled beyond"])
def test_what_was_settled_has_no_second_effect(office: Office, number: int) -> None:
    # Given an agent that passed 3, and handled 4 beyond that without passing it
    office.desk.place("thanks", 0)
    office.desk.settle(Outcome(agent="thanks", number=3, passed=3))
    office.desk.settle(Outcome(agent="thanks", number=4))
    office.reopened()

    # When either is handled again
    again = Outcome(agent="thanks", number=number, emitted=(event("twice"),), memory=("k", 1), letter=letter(number))
    settled = office.desk.settle(again)

    # Then nothing of it is recorded
    assert not settled
    assert "twice" not in ids(office)
    assert office.desk.recall("thanks", "k") is None
    assert office.desk.letters() == []


def test_what_was_handled_out_of_order_is_known_until_it_is_passed(office: Office) -> None:
    office.desk.place("thanks", 0)
    for number in (5, 3):
        office.desk.settle(Outcome(agent="thanks", number=number))
    assert office.reopened().desk.place("thanks", 0) == Progress(number=0, handled=frozenset({3, 5}))

    office.desk.settle(Outcome(agent="thanks", number=1, passed=3))
    assert office.desk.place("thanks", 0) == Progress(number=3, handled=frozenset({5}))


def test_each_agent_has_a_place_and_a_memory_of_its_own(office: Office) -> None:
    for agent in ("thanks", "fraud"):
        office.desk.place(agent, 0)
        assert office.desk.settle(Outcome(agent=agent, number=1, passed=1, memory=("k", agent)))

    office.desk.forget("thanks")

    assert office.desk.agents() == {"fraud": 1}
    assert office.desk.recall("thanks", "k") is None
    assert office.desk.recall("fraud", "k") == "fraud"


def test_what_is_remembered_can_be_forgotten(office: Office) -> None:
    office.desk.place("thanks", 0)
    office.desk.settle(Outcome(agent="thanks", number=1, memory=("k", [1])))
    office.desk.settle(Outcome(agent="thanks", number=2, memory=("k", None)))

    assert office.desk.recall("thanks", "k") is None


def test_a_letter_is_parked_given_back_and_settled_once(office: Office) -> None:
    # Given an event that could not be handled
    office.desk.place("thanks", 0)
    office.desk.settle(Outcome(agent="thanks", number=1, passed=1, letter=letter(1)))
    assert office.reopened().desk.letters() == [letter(1)]
    assert office.desk.letter_counts() == {"thanks": 1}

    # When it is given back
    assert office.desk.replay("thanks", 1)
    assert not office.desk.replay("thanks", 1)
    assert office.desk.letters(state="replay") == [letter(1, state="replay")]

    # Then it fails again, or is settled, once
    assert office.desk.settle(Outcome(agent="thanks", number=1, replayed=True, letter=letter(1, attempts=6)))
    assert office.desk.letters() == [letter(1, attempts=6)]
    office.desk.replay("thanks", 1)
    assert office.desk.settle(Outcome(agent="thanks", number=1, replayed=True, emitted=(event("said"),)))
    assert not office.desk.settle(Outcome(agent="thanks", number=1, replayed=True, emitted=(event("again"),)))
    assert office.desk.letters() == []
    assert ids(office)[-1] == "said"


def test_a_letter_can_be_discarded(office: Office) -> None:
    office.desk.place("thanks", 0)
    office.desk.settle(Outcome(agent="thanks", number=1, letter=letter(1)))

    assert office.desk.discard("thanks", 1)
    assert not office.desk.discard("thanks", 1)
    assert office.desk.letters() == []


def test_changes_go_when_all_have_passed_them_and_facts_stay(office: Office) -> None:
    # Given changes that one agent has passed and another has not
    office.desk.read_to(Reading(offset=7), [event("c-1", kind=Kind.CHANGE), event("c-2", kind=Kind.CHANGE)])
    office.desk.place("thanks", 0)
    office.desk.place("fraud", 0)
    office.desk.advance("thanks", 7)
    later = NOW + dt.timedelta(seconds=1)
    assert office.desk.tidy(later, ["thanks", "fraud"]) == 0

    # When the other passes one of them
    office.desk.advance("fraud", 6)

    # Then that one goes, and only when it is old
    assert office.desk.tidy(NOW, ["thanks", "fraud"]) == 0
    assert office.desk.tidy(later, ["thanks", "fraud"]) == 1
    assert [entry.event.id for entry in office.journal.find(Query(kind=Kind.CHANGE))] == ["c-2"]
    assert ids(office) == ["1", "2", "3", "4", "5"]
    # and nobody waits for an agent that is not there any more.
    assert office.desk.tidy(later, ["thanks"]) == 1


def test_how_far_the_stream_was_read_is_recorded_with_what_was_in_it(office: Office) -> None:
    assert office.desk.reading() is None

    reading = Reading(offset=7, commit_lsn=99, origin=b"{}")
    office.desk.read_to(reading, [event("c-1", kind=Kind.CHANGE)])
    office.desk.read_to(reading, [event("c-1", kind=Kind.CHANGE)])

    assert office.reopened().desk.reading() == reading
    assert len(office.journal.find(Query(kind=Kind.CHANGE))) == 1
    office.desk.read_to(replace(reading, offset=8, origin=None), [])
    assert office.desk.reading() == Reading(offset=8, commit_lsn=99)
