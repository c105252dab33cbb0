"""What SECURITY.md promises of a row that was deleted: it stays in the stream for a while, and nowhere else of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.daemon import DaemonProcess
from tests.support.fake_openai import FakeOpenAI
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database
from tests.support.wait import until

NewDaemon = Callable[..., DaemonProcess]

CANARY = "canary-of-the-row-6f1b"
PARKED = "canary-of-the-parked-91d0"
ITEMS = {"name": "items", "table": "public.items", "text": "{body}", "metadata": ["owner"]}


def files_with(daemon: DaemonProcess, word: str) -> set[str]:
    """Files of our state, Chroma's apart, that hold a word in any encoding that SQLite or we would write."""
    state = Path(daemon.settings["state_dir"])
    ours = [path for path in state.rglob("*") if path.is_file() and "chroma" not in path.parts]
    return {path.name for path in ours if word.encode() in path.read_bytes()}


@pytest.mark.postgres(versions=[15], plugin="all")
def test_a_deleted_row_leaves_nothing_in_our_files_but_the_stream(
    pg: Database, new_daemon: NewDaemon, fake_openai: FakeOpenAI
) -> None:
    # Given a row that is indexed, and one that the model refuses, so that it is a dead letter
    fake_openai.poison = PARKED
    model = {"backend": "openai", "url": fake_openai.base_url, "model": "fake", "dimensions": fake_openai.dimension}
    pg.execute("create table items (id int primary key, body text, owner text)")
    daemon = new_daemon(pg, collections=[ITEMS], embedding=model)
    daemon.start()
    pg.execute("insert into items values (1, %s, %s), (2, %s, 'nobody')", (CANARY, CANARY, f"{CANARY} {PARKED}"))
    until(lambda: daemon.get("/dead-letters").json()["dead_letters"], 60.0, "the dead letter")

    # Then the dead letter says which row and why, and never what stood in it
    assert CANARY not in daemon.get("/dead-letters").text
    assert PARKED not in daemon.get("/dead-letters").text

    # When both are deleted, others come after them, and the daemon ends
    pg.execute("delete from items")
    pg.execute("insert into items select n, 'other ' || n, 'x' from generate_series(10, 20) n")
    assert_index_equals_table(daemon, pg, vector_of=fake_openai.vector_of)
    assert daemon.terminate() == 0

    # Then no file of ours holds any of it but the stream, which keeps what it was told for its retention
    for word in (CANARY, PARKED):
        assert files_with(daemon, word) == {"stream.sqlite"}
    # And what lives is where it is looked for
    assert "ledger.sqlite" in files_with(daemon, "public.items:15")
