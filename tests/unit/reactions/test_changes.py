"""From the stream to the agents: each change of a table somebody listens to, once, with its origin."""

from __future__ import annotations

import datetime as dt
import itertools
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_agent.errors import ConfigError
from cdc_agent.events import Change, ChangeEvent, Event, Kind, Op, Row, Transaction
from cdc_agent.health import Health
from cdc_agent.journal.base import Query, Reading
from cdc_agent.journal.desk import SqliteDesk
from cdc_agent.journal.file import JournalFile
from cdc_agent.journal.sqlite import SqliteJournal
from cdc_agent.lsn import Lsn, Version
from cdc_agent.reactions import Agents, Context, origin_of
from cdc_agent.reactions.changes import event_of, looked_through
from cdc_agent.reactions.context import Tools
from cdc_agent.reactions.loading import load
from cdc_agent.reactions.origin import ORIGIN_PREFIX, parse_origin
from cdc_agent.reactions.router import CONSUMER, Router
from cdc_agent.retry import Backoff, Retrier
from cdc_agent.stream.sqlite import SqliteStream
from tests.support.scripted import a_relation

TABLE = "public.docs"
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
MARK = b'{"causation_id": "e-1", "correlation_id": "e-0", "hops": 2, "trail": ["a:1", "b:2"]}'


def row(id_: str) -> Row:
    return Row(a_relation(), (id_.encode(), b"title", b"body", b"en"))


def change(lsn: int, ordinal: int, op: Op = Op.CREATE, id_: str = "7") -> ChangeEvent:
    before, after = (row(id_), None) if op is Op.DELETE else (None, row(id_))
    version = Version(Lsn(lsn), ordinal)
    return ChangeEvent(op=op, version=version, xid=1, commit_ts_us=0, relation=a_relation(), before=before, after=after)


def message(lsn: int, ordinal: int, content: bytes = MARK, prefix: str = ORIGIN_PREFIX) -> ChangeEvent:
    version = Version(Lsn(lsn), ordinal)
    return ChangeEvent(op=Op.MESSAGE, version=version, xid=1, commit_ts_us=0, message=(prefix, content))


def seen(changes: list[ChangeEvent]) -> list[Event]:
    return looked_through(changes, Reading(offset=0), len(changes), {TABLE}, "shop")[0]


def test_a_change_becomes_an_event_with_debeziums_envelope() -> None:
    [event] = seen([change(0x2A, 3)])

    assert (event.kind, event.type, event.key, event.source) == (Kind.CHANGE, TABLE, "7", "postgresql/shop")
    assert event.id == "2A-3"
    assert (event.data["op"], event.data["after"]["title"]) == ("c", "title")
    assert (event.hops, event.trail) == (0, ())


def test_what_a_resync_reads_again_is_no_change_and_other_tables_concern_nobody() -> None:
    assert seen([change(1, 1, Op.READ)]) == []
    assert looked_through([change(1, 1)], Reading(offset=0), 1, {"public.others"}, "shop")[0] == []
    assert [e.data["op"] for e in seen([change(1, 1, Op.DELETE)])] == ["d"]


def test_a_mark_counts_for_what_follows_in_its_transaction_and_no_further() -> None:
    found = seen([change(1, 1), message(1, 2), change(1, 3), change(1, 4), change(2, 1)])

    assert [(e.causation_id, e.correlation_id, e.hops) for e in found] == [
        ("", "", 0),
        ("e-1", "e-0", 2),
        ("e-1", "e-0", 2),
        ("", "", 0),
    ]
    assert found[1].trail == ("a:1", "b:2")


@given(st.lists(st.integers(0, 4), max_size=5))
def test_wherever_a_batch_ends_the_mark_is_known(cuts: list[int]) -> None:
    # Given a transaction with a mark, read in any pieces
    changes = [message(1, 1), change(1, 2), change(1, 3), change(1, 4)]
    places = sorted({0, *cuts, len(changes)})

    reading, found = Reading(offset=0), []
    for begin, end in itertools.pairwise(places):
        events, reading = looked_through(changes[begin:end], reading, end, {TABLE}, "shop")
        found += events

    assert [e.causation_id for e in found] == ["e-1"] * 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no json",
        b"[]",
        b"\xff",
        b'{"causation_id": "x"}',
        MARK.replace(b"2,", b"-1,"),
        MARK.replace(b"2,", b"99999999999999999999,"),
        MARK.replace(b'"a:1"', b'"a b"'),
        MARK.replace(b'"e-1"', b'"' + b"x" * 2000 + b'"'),
    ],
)
def test_a_mark_that_nobody_of_us_wrote_is_ignored(content: bytes) -> None:
    assert parse_origin(content) is None
    assert seen([message(1, 1, content), change(1, 2)])[0].hops == 0


def test_a_message_of_another_kind_is_no_mark() -> None:
    assert seen([message(1, 1, prefix="other"), change(1, 2)])[0].causation_id == ""


def test_an_agents_own_change_does_not_wake_it_unless_it_wants_that() -> None:
    # Given an agent's mark, as a handler writes it
    app = Agents()
    app.on_change(TABLE, name="own", own=True)(print)
    app.on_change(TABLE, name="freeze")(print)
    cause = Event(id="p-1", source="s", type="purchase", key="7", time=NOW, data=None)
    context = Context(agent="freeze", event=cause, key="7", attempt=1, tools=Tools())
    origin = parse_origin(origin_of(context).encode())

    # When its change comes back
    event = event_of(change(1, 1), "shop", origin)

    # Then the chain is whole, it is left out for that agent, and others see it
    assert (event.causation_id, event.correlation_id, event.hops) == ("p-1", "p-1", 1)
    assert not app.agents["freeze"].trigger.matches("freeze", event)
    assert app.agents["own"].trigger.matches("freeze", event)
    assert app.agents["freeze"].trigger.matches("other", event)


class Line:
    """A stream with the router behind it, made anew on the same files as often as one likes."""

    def __init__(self, folder: Path) -> None:
        self.stream = SqliteStream(folder / "stream.sqlite")
        self.file = JournalFile(folder / "journal.sqlite")
        self.desk = SqliteDesk(self.file)
        self.journal = SqliteJournal(self.file)

    def router(self) -> Router:
        stop = threading.Event()
        retrier = Retrier(stop, Health(), Backoff(initial_s=0.01, maximum_s=0.01))
        tables: Any = {TABLE}
        return Router(
            stream=self.stream, desk=self.desk, tables=tables, agents=set(), database="shop", retrier=retrier, stop=stop
        )

    def commit(self, lsn: int, *ids: str) -> None:
        changes = [Change("c", a_relation(), n, None, row(id_).raw) for n, id_ in enumerate(ids, 1)]
        tx = Transaction(xid=lsn, commit_lsn=Lsn(lsn), commit_ts_us=0, changes=changes, end_lsn=Lsn(lsn + 1))
        self.stream.append([tx])

    def keys(self) -> list[str]:
        return [entry.event.key for entry in self.journal.find(Query(kind=Kind.CHANGE))]


def test_the_router_brings_every_change_once_from_where_it_was(tmp_path: Path) -> None:
    # Given a router that begins after the first commit
    line = Line(tmp_path)
    line.commit(10, "before")
    router = line.router()
    line.commit(20, "1", "2")
    router.turn(0)

    # When it is made anew, and sees what it had seen again
    line.desk.read_to(Reading(offset=1), ())
    again = line.router()
    line.commit(30, "3")
    again.turn(0)

    # Then each is there once, and retention may go on
    assert line.keys() == ["1", "2", "3"]
    assert line.stream.released(CONSUMER) == again.offset == 4


def test_a_router_whose_stream_is_another_one_goes_on_at_its_head(tmp_path: Path) -> None:
    line = Line(tmp_path)
    line.desk.read_to(Reading(offset=99), ())
    line.commit(10, "1")

    router = line.router()
    line.commit(20, "2")
    router.turn(0)

    assert line.keys() == ["2"]


class TestLoading:
    def test_a_file_and_a_module_are_one_set(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "shop_agents.py").write_text(
            "from cdc_agent import Agents\napp = Agents()\napp.on('a', name='a')(print)\n"
        )
        (tmp_path / "other.py").write_text(
            "from cdc_agent import Agents\nmine = Agents()\nmine.on('b', name='b')(print)\n"
        )

        app = load(["shop_agents:app", f"{tmp_path / 'other.py'}:mine"])

        assert set(app.agents) == {"a", "b"}

    @pytest.mark.parametrize(
        ("program", "reference", "said"),
        [
            ("", "{folder}/agents.py:app", "'app' is missing"),
            ("app = 5", "{folder}/agents.py:app", "'app' is no Agents"),
            ("import nothing_like_it", "{folder}/agents.py:app", "ModuleNotFoundError"),
            ("1/0", "{folder}/agents.py:app", "ZeroDivisionError"),
            ("", "{folder}/missing.py:app", "there is no file"),
            ("", "no.such.module:app", "ModuleNotFoundError"),
            ("", "agents", "names no app"),
            ("from cdc_agent import Agents\napp = Agents()\napp.on()", "{folder}/agents.py:app", "names no type"),
        ],
    )
    def test_what_cannot_be_loaded_is_named_with_its_remedy(
        self, tmp_path: Path, program: str, reference: str, said: str
    ) -> None:
        (tmp_path / "agents.py").write_text(program)
        wanted = reference.format(folder=tmp_path)

        with pytest.raises(ConfigError, match=said) as caught:
            load([wanted])
        assert wanted in caught.value.message
        assert caught.value.hint

    def test_two_apps_may_not_declare_the_same(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            (tmp_path / f"{name}.py").write_text(
                "from cdc_agent import Agents\napp = Agents()\napp.on('a', name='a')(print)\n"
            )

        with pytest.raises(ConfigError, match="two agents named a"):
            load([f"{tmp_path}/one.py:app", f"{tmp_path}/two.py:app"])
