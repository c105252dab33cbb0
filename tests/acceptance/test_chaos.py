"""The kill loop in small: thirty lives of the daemon over both plugins, and no reader sees what is not so.

A failure prints the report; ``scripts/chaos`` with the same arguments draws the same faults again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.chaos.faults import DEATHS, DISTURBANCES
from tests.support.wait import until

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("cycles", "plugin", "store"), [(20, "pgoutput", "server"), (10, "wal2json", "managed")], ids=str
)
def test_no_reader_ever_sees_what_is_not_so_while_the_daemon_is_killed_again_and_again(
    tmp_path: Path, cycles: int, plugin: str, store: str
) -> None:
    # Given eight writers, three readers and an observer, and a daemon that is killed, cut off and starved meanwhile.
    # In a process of its own: a Chroma client whose server dies beneath it leaves sockets open.
    report = tmp_path / "chaos.json"
    options = ["--cycles", str(cycles), "--seed", "20261127", "--plugin", plugin, "--store", store, "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.chaos", *options, "--json", report],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=580,
        check=False,
        cwd=ROOT,
    )
    if done.returncode == 2:
        pytest.skip(done.stdout)

    # Then nothing was violated, all of them saw something, and there was something to live through
    assert done.returncode == 0, done.stdout
    facts = json.loads(report.read_text())
    assert sum(facts["faults"].get(name, 0) for name in DEATHS) == cycles, done.stdout
    assert any(facts["faults"].get(name) for name in DISTURBANCES), done.stdout
    for counted in ("transactions", "searches_answered", "own_writes_read", "looks", "looks_at_the_store"):
        assert facts["counts"].get(counted, 0) > 0, done.stdout
    # Root can fill a disk of its own. Continuous integration is root, and does.
    if os.environ.get("CI"):
        assert not any(name.startswith("disk_full") for name in facts["skipped"]), done.stdout


@pytest.mark.chaos
@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_run_that_is_interrupted_ends_with_a_report_of_what_it_saw(tmp_path: Path, number: signal.Signals) -> None:
    # Given a run that is at work
    report = tmp_path / "chaos.json"
    command = [sys.executable, "-m", "tests.support.chaos", "--cycles", "500", "--store", "embedded", "--json", report]
    with (
        (tmp_path / "said").open("wb") as said,
        subprocess.Popen(command, stdout=said, stderr=said, cwd=ROOT, start_new_session=True) as run,
    ):
        try:
            until(lambda: b"cycle 2" in (tmp_path / "said").read_bytes(), 90.0, "the second cycle")

            # When somebody has had enough
            run.send_signal(number)

            # Then the report says what was done, and that it was not all
            assert run.wait(60) == 130, (tmp_path / "said").read_text()
        finally:
            # Whatever went wrong: a run of hours must not be waited for.
            run.kill()
    words = (tmp_path / "said").read_text()
    assert "interrupted: the index was not compared in the end" in words
    facts = json.loads(report.read_text())
    assert facts["interrupted"]
    assert 1 <= facts["cycles"] < 500
    assert "Traceback" not in words
