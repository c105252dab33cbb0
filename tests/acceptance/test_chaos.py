"""The kill loop in small: thirty lives of the daemon over both plugins, and no reader sees what is not so.

A failure prints the seed; ``scripts/chaos`` with the same arguments draws the same faults again.
"""

from __future__ import annotations

import os

import pytest

from tests.support.chaos.faults import DEATHS, DISTURBANCES
from tests.support.chaos.loop import Wanted, run
from tests.support.chaos.report import as_text


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("cycles", "plugin", "store"), [(20, "pgoutput", "server"), (10, "wal2json", "managed")], ids=str
)
def test_no_reader_ever_sees_what_is_not_so_while_the_daemon_is_killed_again_and_again(
    cycles: int, plugin: str, store: str
) -> None:
    # Given eight writers, three readers and an observer, and a daemon that is killed, cut off and starved meanwhile
    facts = run(Wanted(cycles=cycles, seed=20261127, plugin=plugin, store=store, quiet=True))

    # Then all of them saw something, there was something to live through, and nothing was violated
    told = as_text(facts)
    assert not any(facts["violations"].values()), told
    assert sum(facts["faults"].get(name, 0) for name in DEATHS) == cycles, told
    assert any(facts["faults"].get(name) for name in DISTURBANCES), told
    for counted in ("transactions", "searches_answered", "own_writes_read", "looks", "looks_at_the_store"):
        assert facts["counts"].get(counted, 0) > 0, told
    # Root can fill a disk of its own. Continuous integration is root, and does.
    if os.environ.get("CI"):
        assert not any(name.startswith("disk_full") for name in facts["skipped"]), told
