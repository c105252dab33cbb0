"""The present version goes on with the state that older ones wrote, whatever happens while it is brought up to date."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cdc_agent.errors import CdcAgentError, IdentityMismatch, JournalError, LedgerError, StreamError
from cdc_agent.journal import file as journal_file
from cdc_agent.journal.base import Reading
from cdc_agent.journal.file import JournalFile
from cdc_agent.ledger import file as ledger_file
from cdc_agent.ledger.sqlite import SqliteLedger
from cdc_agent.lsn import Lsn
from cdc_agent.sqlite_schema import Schema
from cdc_agent.stream import sqlite as stream_file
from cdc_agent.stream.sqlite import SqliteStream
from tests.support.office import Office

OLD = Path(__file__).parents[1] / "old_state"
SCHEMAS = {"ledger": ledger_file.SCHEMA, "stream": stream_file.SCHEMA}


def old_files(kind: str) -> list[Path]:
    return sorted(OLD.glob(f"{kind}-*.sqlite"))


def version_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("pragma user_version").fetchone()[0])


def tables_of(path: Path) -> set[tuple[str, str]]:
    with closing(sqlite3.connect(path)) as connection:
        return set(connection.execute("select name, sql from sqlite_master where sql is not null"))


def open_ledger(path: Path) -> None:
    """Raises if it cannot be opened, or does not hold what tests/old_state/make.py wrote."""
    with closing(SqliteLedger(path)) as ledger:
        documents = ledger.manifests("notes", ["public.notes:1", "public.notes:2", "public.notes:3"])
        assert [len(manifest.chunks) for _, manifest in sorted(documents.items())] == [3, 1, 2]
        assert ledger.counts("notes") == (3, 6)
        assert ledger.collection_fingerprint("notes") == "all-MiniLM-L6-v2/256"
        assert ledger.checkpoint("indexer").applied_lsn == Lsn(300)
        assert [letter.key for letter in ledger.dead_letters()] == [("9",)]
        text_hash = b"public.notes:1/2".ljust(16, b".")
        assert ledger.cached_vectors("all-MiniLM-L6-v2", [text_hash]) == {text_hash: bytes([1, 2]) * 8}
        # No generation number is taken twice.
        assert ledger.begin_write([], agent="indexer")[0] > 3


def open_stream(path: Path) -> None:
    with closing(SqliteStream(path, retention_s=1e12)) as stream:
        assert (stream.position().captured_lsn, stream.ledger()) == (Lsn(308), "a-ledger")
        events = stream.read(0, limit=10, wait_s=0).events
        assert [event.after["body"] for event in events if event.after is not None] == ["note 1", "note 2", "note 3"]


OPEN: dict[str, Callable[[Path], None]] = {"ledger": open_ledger, "stream": open_stream}
FILES = [pytest.param(kind, path, id=path.stem) for kind in OPEN for path in old_files(kind)]


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    return lambda path: Path(shutil.copy(path, tmp_path / "state.sqlite"))


@pytest.mark.parametrize("kind", OPEN)
def test_there_is_a_file_of_every_version_there_was(kind: str) -> None:
    assert [path.stem for path in old_files(kind)] == [f"{kind}-{n + 1}" for n in range(len(SCHEMAS[kind].steps))]


@pytest.mark.parametrize(("kind", "old"), FILES)
def test_an_old_file_holds_all_that_it_held(kind: str, old: Path, copy: Callable[[Path], Path], tmp_path: Path) -> None:
    path = copy(old)

    # When it is opened today, and once more
    OPEN[kind](path)
    OPEN[kind](path)

    # Then it is like a new one
    {"ledger": SqliteLedger, "stream": SqliteStream}[kind](tmp_path / "new.sqlite").close()
    assert version_of(path) == version_of(tmp_path / "new.sqlite") == len(SCHEMAS[kind].steps)
    assert tables_of(path) == tables_of(tmp_path / "new.sqlite")


@pytest.mark.parametrize("old", old_files("journal"), ids=lambda path: path.stem)
def test_an_old_journal_holds_all_that_it_held(old: Path, copy: Callable[[Path], Path], tmp_path: Path) -> None:
    path = copy(old)

    # When it is opened today
    office = Office(path)

    # Then events, places, memory, dead letters and sagas are there
    assert [event.id for event in office.said()] == ["e-1", "e-2", "e-3", "said"]
    assert (office.desk.agents()["thanks"], office.desk.recall("thanks", "k")) == (2, {"n": 1})
    assert [(letter.number, letter.event.id) for letter in office.desk.letters()] == [(2, "e-2")]
    assert office.desk.reading() == Reading(offset=42, commit_lsn=400)
    saga = office.book.load("refund-1")
    assert saga is not None
    assert (saga.start.data, saga.steps) == ({"cents": 100}, ("reserve~", "pay"))
    office.file.close()
    # And it is like a new one
    JournalFile(tmp_path / "new.sqlite").close()
    assert tables_of(path) == tables_of(tmp_path / "new.sqlite")


def test_there_is_a_journal_of_every_version_there_was() -> None:
    versions = range(1, len(journal_file.SCHEMA.steps) + 1)
    assert [path.stem for path in old_files("journal")] == [f"journal-{n}" for n in versions]


def test_a_journal_is_numbered_and_a_newer_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    JournalFile(path).close()
    assert version_of(path) == len(journal_file.SCHEMA.steps)

    with closing(sqlite3.connect(path)) as connection:
        connection.execute("pragma user_version = 99")

    with pytest.raises(JournalError, match="schema 99"):
        JournalFile(path)


@pytest.mark.parametrize(("kind", "error"), [("ledger", LedgerError), ("stream", StreamError)])
def test_a_file_of_a_newer_version_is_refused_and_left_alone(
    kind: str, error: type[CdcAgentError], copy: Callable[[Path], Path]
) -> None:
    # Given a file that a newer cdc-agent has written
    path = copy(old_files(kind)[-1])
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("create table news (n int); pragma user_version = 99;")

    # When the present one opens it
    with pytest.raises(error, match="schema 99, and this cdc-agent knows none after") as refused:
        OPEN[kind](path)

    # Then it says what to do, and changes nothing
    assert "newer cdc-agent" in refused.value.hint
    assert version_of(path) == 99


@pytest.mark.parametrize(("kind", "old"), FILES)
def test_an_old_file_that_lacks_a_table_is_damaged_not_mended(
    kind: str, old: Path, copy: Callable[[Path], Path]
) -> None:
    path = copy(old)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute({"ledger": "drop table manifest", "stream": "drop table consumer"}[kind])

    with pytest.raises(IdentityMismatch, match=f"{kind.upper()}_CORRUPT"):
        OPEN[kind](path)
    assert version_of(path) == 0


# Death while a file is made or brought up to date. The program dies after so many statements of the steps.

DIE = """
import os, signal, sys, sqlite3
from pathlib import Path
from cdc_agent.{room} import SCHEMA
from cdc_agent.sqlite_schema import Schema
from cdc_agent.sqlite_file import open_file
from cdc_agent.errors import CdcAgentError

kind, path, base, after = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
statements, rest = [], "\\n".join(SCHEMA.steps[base:])
while rest.strip():
    end = next((i for i in range(1, len(rest) + 1) if sqlite3.complete_statement(rest[:i])), len(rest))
    statements.append(rest[:end])
    rest = rest[end:]
if after > len(statements):
    sys.exit(3)
script = "".join([*statements[:after], "\\nselect die();\\n", *statements[after:]])
dying = Schema(
    steps=(*SCHEMA.steps[:base], script, *[""] * (len(SCHEMA.steps) - base - 1)),
    unnumbered=SCHEMA.unnumbered,
    functions={{**SCHEMA.functions, "die": lambda: os.kill(os.getpid(), signal.SIGKILL)}},
)
connection = open_file(path, CdcAgentError)
dying.bring_up_to_date(connection, path, error=CdcAgentError, damaged=ValueError)
"""
ROOMS = {"ledger": "ledger.file", "stream": "stream.sqlite"}


def die(kind: str, path: Path, base: int, after: int) -> int:
    """Signal that ended it, or 3 when there are no so many statements."""
    code = DIE.format(room=ROOMS[kind])
    arguments = [kind, str(path), str(base), str(after)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode in (3, -9), done.stderr
    return done.returncode


@pytest.mark.parametrize("kind", OPEN)
@pytest.mark.fault("killed-in-an-upgrade")
def test_a_death_while_a_new_file_is_made_leaves_an_empty_one(kind: str, tmp_path: Path) -> None:
    # Given a death after each statement, one in three for the longer one
    for after in range(0, 40, 3):
        path = tmp_path / f"{after}.sqlite"
        if die(kind, path, 0, after) == 3:
            break
        # Then nothing was made, and the next start makes all of it
        assert tables_of(path) == set()
        {"ledger": SqliteLedger, "stream": SqliteStream}[kind](path).close()
        assert version_of(path) == len(SCHEMAS[kind].steps)
    assert after


@pytest.mark.fault("killed-in-an-upgrade")
def test_a_death_in_an_upgrade_leaves_the_old_state(copy: Callable[[Path], Path]) -> None:
    # Given a ledger of the first version, and a death after each statement of its way to the second
    for after in range(9):
        path = copy(old_files("ledger")[0])
        before = tables_of(path)
        if die("ledger", path, 1, after) == 3:
            break
        # Then it is as it was, and the next start brings it up to date with all that it held
        assert (tables_of(path), version_of(path)) == (before, 0)
        open_ledger(path)
        assert version_of(path) == 2
    assert after >= 2


# Schemas to come: more than one step at once, and a step that fails.


def refuse(sentence: str) -> Exception:
    return ValueError(sentence)


def bring(connection: sqlite3.Connection, *steps: str, **functions: Callable[..., Any]) -> None:
    schema = Schema(steps=steps, unnumbered="select 1", functions=functions)
    schema.bring_up_to_date(connection, Path("x.sqlite"), error=LedgerError, damaged=refuse)


FIRST = "create table a (n int); insert into a values (1);"
SECOND = "alter table a add column m int; update a set m = twice(n);"
THIRD = "create trigger t after insert on a begin update a set m = 0; update a set m = 1; end;"


def twice(n: int) -> int:
    return 2 * n


def test_steps_are_taken_one_after_another(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "x", isolation_level=None)) as connection:
        bring(connection, FIRST)
        connection.execute("insert into a values (21)")

        bring(connection, FIRST, SECOND, THIRD, twice=twice)
        bring(connection, FIRST, SECOND, THIRD, twice=twice)

        assert connection.execute("select n, m from a").fetchall() == [(1, 2), (21, 42)]
        assert connection.execute("pragma user_version").fetchone() == (3,)


def test_a_step_that_fails_takes_back_those_before_it(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "x", isolation_level=None)) as connection:
        bring(connection, FIRST)

        with pytest.raises(sqlite3.OperationalError, match="nothing"):
            bring(connection, FIRST, SECOND, "insert into nothing values (1);", twice=twice)

        assert connection.execute("select * from a").fetchall() == [(1,)]
        assert connection.execute("pragma user_version").fetchone() == (1,)
