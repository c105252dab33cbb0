"""The guard of the tables on a scripted catalog: what it remembers, when it asks, and that no crash loses a resync."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from cdc_agent.errors import IdentityMismatch
from cdc_agent.health import Health
from cdc_agent.ledger.base import SourceTable
from cdc_agent.ledger.sqlite import SqliteLedger
from cdc_agent.lsn import Lsn
from cdc_agent.snapshot import Snapshot
from cdc_agent.source.shape import ColumnShape, RelationShape, Seen, TableShape
from cdc_agent.tables import HOUSEKEEPING_BYTES, GuardedTable, TableGuard

QUIET = "100:100:"
ID = ColumnShape(number=1, name="id", type_oid=23, typmod=-1, generated="")
BODY = ColumnShape(number=2, name="body", type_oid=25, typmod=-1, generated="")


def table(oid: int = 10, name: str = "docs", *, file: int = 1, members: Iterable[int] = (77,)) -> TableShape:
    root = RelationShape(
        oid=oid, schema="public", name=name, file=file, link=0, columns=(ID, BODY), identity="d", index=9, key=(1,)
    )
    return TableShape(root=root, members=frozenset(members))


class Catalog:
    """Stands for ``ShapeReader``: the tables that there are now."""

    def __init__(self, *tables: TableShape) -> None:
        self.tables = list(tables)
        self.snapshot = QUIET
        self.asked = 0

    def read(self, names: Iterable[tuple[str, str]], oids: Iterable[int]) -> Seen:
        self.asked += 1
        wanted, known = set(names), set(oids)
        found = [t for t in self.tables if t.oid in known or (t.root.schema, t.root.name) in wanted]
        snapshot = Snapshot.parse(self.snapshot)
        return Seen(tables={t.oid: t for t in found}, xmin=snapshot.xmin, running=snapshot.in_progress)

    def condition(self, partitions: Iterable[int]) -> str:
        return " or ".join(f"partition {oid}" for oid in sorted(partitions))


class Life:
    """One process with a guard, on the ledger that outlives it."""

    def __init__(self, folder: Path, catalog: Catalog, *, mend: bool = False, plugin: str = "pgoutput") -> None:
        self.catalog = catalog
        self.ledger = SqliteLedger(folder / "ledger.db")
        self.health = Health()
        self.now = 1000.0
        self.requests: list[str] = []
        self.oids: Mapping[str, int | None] = {}
        self.schemas: frozenset[str] = frozenset()
        self.guard = TableGuard(
            tables=[GuardedTable(schema="public", name="docs", used=frozenset({"body"}))],
            shapes=catalog,  # type: ignore[arg-type]
            ledger=self.ledger,
            health=self.health,
            publish=self._publish if plugin == "pgoutput" else None,
            publish_hint=lambda t: f"add {t.qualified_name};",
            request=self._request,
            follow=self._follow,
            mend=mend,
            interval_s=10.0,
            stop=threading.Event(),
            clock=lambda: self.now,
        )

    def _publish(self, wanted: TableShape) -> None:
        self.catalog.tables = [
            replace(t, members=frozenset({900 + t.oid})) if t.oid == wanted.oid else t for t in self.catalog.tables
        ]

    def _request(self, name: str, reason: str, predicate: str) -> None:
        assert name == "public.docs"
        self.requests.append(f"{reason} where {predicate}" if predicate else reason)

    def _follow(self, oids: Mapping[str, int | None], schemas: frozenset[str]) -> None:
        self.oids, self.schemas = oids, schemas

    def states(self) -> list[str]:
        return [problem.message.partition(":")[0] for problem in self.health.problems()]

    def end(self) -> None:
        self.ledger.close()


@pytest.fixture
def lives(tmp_path: Path) -> Iterator[list[Life]]:
    made: list[Life] = []
    yield made
    for life in made:
        life.end()


def life_on(tmp_path: Path, lives: list[Life], *now: TableShape, **more: object) -> Life:
    """A life that has remembered ``docs`` as it was, and then finds ``now``."""
    first = Life(tmp_path, Catalog(table()))
    first.guard.prepare(Lsn(1))
    assert first.requests == []
    first.end()
    life = Life(tmp_path, Catalog(*now), **more)  # type: ignore[arg-type]
    lives.append(life)
    return life


def test_what_did_not_change_is_not_read_again(tmp_path: Path, lives: list[Life]) -> None:
    life = life_on(tmp_path, lives, table())

    life.guard.prepare(Lsn(1))
    life.guard.verify(Lsn(1))

    assert life.requests == []
    assert life.oids == {"public.docs": 10}


def test_a_rewritten_table_is_read_again_once(tmp_path: Path, lives: list[Life]) -> None:
    life = life_on(tmp_path, lives, table(file=2))

    life.guard.prepare(Lsn(1))
    life.guard.verify(Lsn(1))

    assert life.requests == ["table rewritten"]


def test_a_crash_before_it_is_remembered_asks_again(tmp_path: Path, lives: list[Life]) -> None:
    # Given a life that asked for a resync and died before it could remember why
    life = life_on(tmp_path, lives, table(file=2))
    life.ledger.save_source_table = None  # type: ignore[assignment, method-assign]
    with pytest.raises(TypeError):
        life.guard.prepare(Lsn(1))
    assert life.requests == ["table rewritten"]

    # When the next one starts
    lives.append(Life(tmp_path, Catalog(table(file=2))))
    lives[-1].guard.prepare(Lsn(1))

    # Then it asks again: nothing is lost
    assert lives[-1].requests == ["table rewritten"]


def test_a_table_is_read_when_transactions_of_that_time_have_ended(tmp_path: Path, lives: list[Life]) -> None:
    # Given a change that is seen while transaction 95 is under way
    life = life_on(tmp_path, lives, table(file=2))
    life.catalog.snapshot = "95:100:95"
    life.guard.verify(Lsn(1))
    assert life.requests == []

    # When it still is, though others have come and gone
    life.catalog.snapshot = "95:120:95,110"
    life.guard.look()
    assert life.requests == []

    # Then the table is read once it has ended
    life.catalog.snapshot = "110:121:110"
    life.guard.look()
    assert life.requests == ["table rewritten"]
    life.guard.look()
    life.guard.verify(Lsn(1))
    assert life.requests == ["table rewritten"]


def test_a_transaction_without_end_has_the_table_read_twice(tmp_path: Path, lives: list[Life]) -> None:
    life = life_on(tmp_path, lives, table(file=2))
    life.catalog.snapshot = "95:100:95"
    life.guard.verify(Lsn(1))

    # When it takes longer than anybody wants to wait
    life.now += 11
    life.guard.look()
    life.guard.look()
    assert len(life.requests) == 1

    # Then the table is read now, and once more after it
    life.catalog.snapshot = "130:130:"
    life.guard.look()
    assert len(life.requests) == 2


def test_a_server_that_is_idle_is_not_asked(tmp_path: Path, lives: list[Life]) -> None:
    life = life_on(tmp_path, lives, table())
    life.guard.verify(Lsn(10_000))
    due = life.guard._is_due

    # While it writes nothing, or only what an idle server writes of itself
    assert not due()
    life.guard.progressed(Lsn(10_000 + HOUSEKEEPING_BYTES - 1))
    life.now += 100
    assert not due()

    # When it writes more, it is asked, and then not before the interval has passed
    life.guard.progressed(Lsn(10_000 + HOUSEKEEPING_BYTES))
    assert due()
    life.guard.look()
    assert not due()
    life.guard.progressed(Lsn(20_000))
    assert not due()
    life.now += 10
    assert due()


def test_a_transaction_under_way_is_looked_at_again(tmp_path: Path, lives: list[Life]) -> None:
    # Given a look that finds a transaction under way: it may be about to commit an ALTER TABLE
    life = life_on(tmp_path, lives, table())
    life.catalog.snapshot = "95:100:95"
    life.guard.verify(Lsn(10_000))
    life.guard.look()
    assert not life.guard._is_due()

    # Then the interval alone asks for another
    life.now += 10
    assert life.guard._is_due()


def test_a_sign_in_the_log_is_followed_at_once(tmp_path: Path, lives: list[Life]) -> None:
    life = life_on(tmp_path, lives, table())
    life.guard.verify(Lsn(1))
    life.guard.look()
    assert not life.guard._is_due()

    life.guard.ask()

    assert life.guard._is_due()


def test_a_truncated_table_is_read_without_a_new_connection(tmp_path: Path, lives: list[Life]) -> None:
    life = life_on(tmp_path, lives, table())
    life.guard.verify(Lsn(1))

    life.oids = {}
    life.catalog.tables = [table(file=2)]
    life.guard.look()

    assert not life.guard.reconnect.is_set()
    assert life.requests == ["table rewritten"]
    # What the reader's thread uses is left alone.
    assert life.oids == {}


def test_what_decoding_must_know_of_takes_a_new_connection(tmp_path: Path, lives: list[Life]) -> None:
    life = life_on(tmp_path, lives, table())
    life.guard.verify(Lsn(1))

    # When the table has another name
    life.catalog.tables = [table(name="papers")]
    life.guard.look()

    # Then the reader connects again, and the guard acts then
    assert life.guard.reconnect.is_set()
    assert life.requests == []
    life.guard.verify(Lsn(1))
    assert not life.guard.reconnect.is_set()
    assert life.requests == []
    assert life.oids == {"public.docs": 10}
    life.guard.look()
    assert not life.guard.reconnect.is_set()


def test_a_log_that_knows_names_has_a_renamed_table_read_again(tmp_path: Path, lives: list[Life]) -> None:
    life = life_on(tmp_path, lives, table(name="papers"), plugin="wal2json")
    life.guard.prepare(Lsn(1))

    assert life.requests == ["table renamed"]


def test_another_table_under_the_name_is_published_followed_and_read(tmp_path: Path, lives: list[Life]) -> None:
    life = life_on(tmp_path, lives, table(oid=20, members=()), table(oid=10, name="old"))

    life.guard.prepare(Lsn(1))
    life.guard.verify(Lsn(1))

    assert life.requests == ["table replaced"]
    assert life.oids == {"public.docs": 20}
    assert life.ledger.source_tables()["public.docs"].oid == 20


def test_a_table_that_left_the_publication_stops_the_daemon(tmp_path: Path, lives: list[Life]) -> None:
    life = life_on(tmp_path, lives, table(members=()))

    for check in (life.guard.prepare, life.guard.verify):
        with pytest.raises(IdentityMismatch) as refused:
            check(Lsn(1))
        assert refused.value.state == "TABLE_LEFT_PUBLICATION"
        assert "add public.docs;" in refused.value.hint
    assert life.requests == []


def test_a_table_that_left_the_publication_is_put_back_with_mending(tmp_path: Path, lives: list[Life]) -> None:
    life = life_on(tmp_path, lives, table(members=()), mend=True)

    life.guard.verify(Lsn(1))
    life.guard.verify(Lsn(1))

    assert life.requests == ["table rejoined publication"]


def test_a_dropped_table_is_refused_at_the_start_and_a_problem_later(tmp_path: Path, lives: list[Life]) -> None:
    life = life_on(tmp_path, lives)

    with pytest.raises(IdentityMismatch) as refused:
        life.guard.prepare(Lsn(1))
    life.guard.verify(Lsn(1))

    assert refused.value.state == "TABLE_DROPPED"
    assert life.states() == ["TABLE_DROPPED"]
    assert life.requests == []
    assert life.oids == {"public.docs": 10}


def test_documents_of_a_dropped_table_leave_once_with_mending(tmp_path: Path, lives: list[Life]) -> None:
    # Given a table that is gone, for one life and the next
    life = life_on(tmp_path, lives, mend=True)
    life.guard.prepare(Lsn(1))
    life.now += 30.0
    life.guard.look()
    lives.append(Life(tmp_path, Catalog(), mend=True))
    lives[-1].guard.prepare(Lsn(1))

    # Then its documents were sent away once, and the problem stays
    assert life.requests == ["table dropped"]
    assert lives[-1].requests == []
    assert life.oids == {"public.docs": None}
    assert lives[-1].states() == ["TABLE_DROPPED"]

    # And once it is back it is read
    lives[-1].catalog.tables = [table(oid=30, members=())]
    lives[-1].guard.look()
    assert lives[-1].guard.reconnect.is_set()
    lives[-1].guard.verify(Lsn(1))
    assert lives[-1].requests == ["table replaced"]
    assert lives[-1].states() == []


def test_a_table_that_is_made_again_in_time_is_compared_and_not_emptied(tmp_path: Path, lives: list[Life]) -> None:
    # Given a table that is gone, and looks and new connections while it may still come back
    life = life_on(tmp_path, lives, mend=True)
    life.guard.prepare(Lsn(1))
    asked = life.catalog.asked
    for _ in range(3):
        life.now += 9.9
        assert not life.guard._is_due() or life.guard.look() is None
        life.guard.verify(Lsn(1))
    assert life.requests == []
    assert life.states() == ["TABLE_DROPPED"]
    assert life.catalog.asked - asked <= 9

    # When it is made again
    life.catalog.tables = [table(oid=30, members=())]
    life.guard.verify(Lsn(1))

    # Then it is read as it is, and nothing was sent away before or is later
    assert life.requests == ["table replaced"]
    life.now += 60.0
    life.guard.look()
    assert life.requests == ["table replaced"]


def test_what_cannot_be_read_is_named_and_not_read(tmp_path: Path, lives: list[Life]) -> None:
    whole = table()
    for root, state in [
        (replace(whole.root, columns=(ID,)), "TABLE_LACKS_COLUMN"),
        (replace(whole.root, index=0, key=()), "TABLE_WITHOUT_KEY"),
    ]:
        folder = tmp_path / state
        folder.mkdir()
        life = life_on(folder, lives, replace(whole, root=root))
        life.guard.prepare(Lsn(1))
        assert (life.states(), life.requests) == ([state], [])

        # Until it is as it was; rows may have gone by meanwhile, so it is read again, also by another life
        life.catalog.tables = [whole]
        life.guard.look()
        assert life.guard.reconnect.is_set()
        lives.append(Life(folder, Catalog(whole)))
        lives[-1].guard.prepare(Lsn(1))
        assert (lives[-1].states(), lives[-1].requests) == ([], ["table columns"])


def test_the_schemas_of_all_partitions_are_streamed(tmp_path: Path, lives: list[Life]) -> None:
    part = replace(table().root, oid=11, schema="archive", name="docs_1")
    life = life_on(tmp_path, lives, replace(table(), partitions=(part,)))

    life.guard.verify(Lsn(1))

    assert life.schemas == {"public", "archive"}
    assert life.requests == ["table partitions where partition 11"]


def test_only_what_came_is_read_unless_something_else_changed(tmp_path: Path, lives: list[Life]) -> None:
    part = replace(table().root, oid=11, name="docs_1", link=5)
    whole = replace(table(), partitions=(part,))
    cases = {
        "came": (replace(whole, partitions=(part, replace(part, oid=12, name="docs_2"))), " where partition 12"),
        "went": (table(), ""),
        "was away": (replace(whole, partitions=(replace(part, link=6),)), ""),
        "one for another": (replace(whole, partitions=(replace(part, oid=12),)), ""),
    }
    for name, (now, where) in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        first = Life(folder, Catalog(whole))
        first.guard.prepare(Lsn(1))
        first.end()
        lives.append(Life(folder, Catalog(now)))
        lives[-1].guard.prepare(Lsn(1))
        assert lives[-1].requests == [f"table partitions{where}"], name


def test_a_table_that_is_new_in_the_configuration_waits_for_older_transactions(
    tmp_path: Path, lives: list[Life]
) -> None:
    # Given a slot that is older than the table's membership, which another table has been read through
    life = Life(tmp_path, Catalog(table(name="docs")))
    lives.append(life)
    life.ledger.save_source_table(_remembered("public.first"))

    # When a transaction is under way that began before, and then ends
    life.catalog.snapshot = "95:100:95"
    life.guard.prepare(Lsn(1))
    assert life.requests == []
    life.catalog.snapshot = "101:101:"
    life.guard.look()

    # Then what it wrote before the table was published is read
    assert life.requests == ["table rejoined publication"]


def _remembered(name: str) -> SourceTable:
    return SourceTable(name=name, oid=5, shape=table(oid=5, name="first").to_json())
