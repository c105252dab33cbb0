"""Whatever an agent does wrong, the index beside it is as fresh as without it, and the other agents go on.

Two daemons follow the same table of the same server, one of them with agents that throw and hang on every change. Both
are asked for the same commits at the same moments, so whatever else the machine does, it does to both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from cdc_agent.journal.base import Query
from cdc_agent.journal.desk import SqliteDesk
from cdc_agent.journal.file import JournalFile
from cdc_agent.journal.sqlite import SqliteJournal
from tests.support.daemon import DaemonProcess
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database
from tests.support.wait import until

NewDaemon = Callable[..., DaemonProcess]
NOTES = {"name": "notes", "table": "public.notes", "text": "{body}"}
PROGRAM = """
import time
from cdc_agent import Agents, Retries

app = Agents()

@app.on_change("public.notes", retries=Retries(attempts=3, initial_s=0.05, maximum_s=0.2))
def throws(event, context):
    raise RuntimeError("always")

@app.on_change("public.notes", timeout_s=0.5, retries=Retries(attempts=1))
def hangs(event, context):
    time.sleep(3600)

@app.on_change("public.notes")
def works(event, context):
    context.emit("worked")
"""
COMMITS = 60
WARM_UP = 10


@pytest.mark.fault("agent-fails")
def test_an_agent_that_throws_or_hangs_makes_the_index_no_less_fresh(
    pg: Database, new_daemon: NewDaemon, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    # Given a daemon with agents that throw and hang, and one without any
    pg.execute("create table notes (id int primary key, body text)")
    (tmp_path / "bad.py").write_text(PROGRAM)
    beside = new_daemon(pg, collections=[NOTES], agents=[f"{tmp_path / 'bad.py'}:app"])
    other = f"{pg.slot_name}_alone"
    alone = new_daemon(pg, collections=[NOTES], source={"slot_name": other, "publication_name": other})
    for daemon in (beside, alone):
        daemon.start()

    # When both are asked for every commit until they have it
    with_them, without = measured(pg, beside, alone)

    # Then it takes no longer, but for what a busy machine makes of it
    ratio = statistics.median(with_them) / statistics.median(without)
    told = f"{statistics.median(with_them):.0f} ms beside, {statistics.median(without):.0f} ms alone, ratio {ratio:.2f}"
    record_property("freshness", told)
    print(told)
    assert statistics.median(with_them) <= 2 * statistics.median(without) + 25, told

    # what could not be handled is parked, and the others have handled everything.
    count = WARM_UP + COMMITS
    with closing(JournalFile(beside.config.journal_path)) as file:
        journal, desk = SqliteJournal(file), SqliteDesk(file)
        until(lambda: len(journal.find(Query(type="worked", limit=1_000))) == count)
        until(lambda: desk.letter_counts().get("throws") == count)
        until(lambda: desk.letter_counts().get("hangs", 0) > 0)
    assert beside.metric("cdc_agent_agent_up", agent="works") == 1
    assert_index_equals_table(beside, pg)
    assert_index_equals_table(alone, pg)


def measured(pg: Database, *daemons: DaemonProcess) -> list[list[float]]:
    """For each daemon the milliseconds from the return of each commit until it is in the index."""
    connection = pg.connect()
    clients = [httpx.Client(base_url=daemon.url, timeout=60.0) for daemon in daemons]
    times: list[list[float]] = [[] for _ in daemons]
    with ThreadPoolExecutor(len(daemons)) as pool:
        for number in range(WARM_UP + COMMITS):
            connection.execute("insert into notes values (%s, %s)", (number, f"note {number} of many"))
            began = time.perf_counter()
            lsn = connection.execute("select pg_current_wal_lsn()::text").fetchone()[0]  # type: ignore[index]
            waits = [pool.submit(waited, client, lsn, began) for client in clients]
            for series, wait in zip(times, waits, strict=True):
                series.append(wait.result())
    for client in clients:
        client.close()
    return [series[WARM_UP:] for series in times]


def waited(client: httpx.Client, lsn: str, began: float) -> float:
    assert client.get("/wait", params={"lsn": lsn, "timeout_s": 30}).status_code == 200
    return (time.perf_counter() - began) * 1000
