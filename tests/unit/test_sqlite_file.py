"""A file that is open twice here keeps its locks, whoever else looks into it."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from cdc_agent.errors import LedgerError
from cdc_agent.sqlite_file import open_file

LOOK = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); print(c.execute('select count(*) from t').fetchone()[0])"


def look(path: Path) -> int:
    """Open, read and close it in another process, as a person with sqlite3 would."""
    done = subprocess.run([sys.executable, "-c", LOOK, str(path)], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_who_looks_from_outside_does_not_take_the_log_away(tmp_path: Path) -> None:
    # Given a file that we have open twice, as writer and reader
    path = tmp_path / "state.sqlite"
    with closing(open_file(path, LedgerError)) as writer, closing(open_file(path, LedgerError)) as reader:
        writer.execute("create table t (n int)")
        assert look(path) == 0

        # When we write after somebody has opened and closed it
        writer.execute("insert into t values (1)")

        # Then everybody sees it
        assert look(path) == 1
        assert reader.execute("select count(*) from t").fetchone() == (1,)


def test_a_link_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("")
    (tmp_path / "state.sqlite").symlink_to(tmp_path / "victim")

    with pytest.raises(LedgerError, match="link"):
        open_file(tmp_path / "state.sqlite", LedgerError)
