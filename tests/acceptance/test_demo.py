"""The first command of the README, as a reader runs it: Postgres, daemon, Chroma and the model are all real."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.wait import until

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.timeout(600)]

CLAIMS = [
    r"60 documents are searchable after [\d.]+ s: \d+ chunks, \d+ embedded",
    r"textwrap.shorten\(text, width\) is the best hit",
    r"the new text is found \d+ ms after the commit",
    r"it is found \d+ ms after the commit",
    r"1 of \d+ chunks was embedded",
    r"it is gone \d+ ms after the commit",
    r"60 new dates are in the index within [\d.]+ s of the commit",
    r"0 of \d+ chunks were embedded",
    r"the new words are in the index \d+ ms after the commit",
    r"nothing is lost: all 4 changes are in the index",
    r"3 of \d+ chunks were embedded",
    r"61 documents in \d+ chunks: the store holds exactly what the table says",
]

StartDemo = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start_demo(tmp_path: Path) -> Iterator[StartDemo]:
    """Starts demos; each gets to stop its servers before the test ends."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "cdc_agent.cli", "demo", "--documents", "60", *arguments]
        # A reader's shell may point at a real database. It must not be touched, nor even asked.
        elsewhere = {"PGHOST": "192.0.2.1", "PGSSLMODE": "require", "CDC_AGENT_SOURCE__DSN": "host=192.0.2.1"}
        started.append(
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=tmp_path,
                env={**os.environ, **elsewhere, "PYTHONUNBUFFERED": "1"},
            )
        )
        return started[-1]

    yield start
    for demo in started:
        if demo.poll() is None:
            demo.terminate()
        demo.communicate(timeout=90)


def test_every_claim_of_the_demo_holds(start_demo: StartDemo) -> None:
    demo = start_demo("--once")

    output, _ = demo.communicate(timeout=400)

    assert demo.returncode == 0, output
    for claim in CLAIMS:
        assert re.search(f"✓ {claim}", output), f"{claim}\n{output}"
    assert "✗" not in output
    assert re.search(r"All 14 claims held, in \d+ s", output)


def test_ctrl_c_stops_everything_and_leaves_nothing(start_demo: StartDemo) -> None:
    # Given a demo in the middle of its first copy
    demo = start_demo()
    assert demo.stdout is not None
    seen: list[str] = []
    for line in demo.stdout:
        seen.append(line)
        if "documents: " in line:
            break
    folder = Path(next(word for line in seen for word in line.split() if word.endswith("cdc-agent.yaml"))).parents[1]
    assert folder.is_dir(), seen

    # When Ctrl-C is pressed
    demo.send_signal(signal.SIGINT)
    output, _ = demo.communicate(timeout=90)

    # Then it ends without a complaint, and neither a process nor a file is left
    assert demo.returncode == 130, output
    assert "Traceback" not in output
    assert not folder.exists()
    until(lambda: not processes_that_name(folder), 10.0, "every process of the demo to end")


def processes_that_name(folder: Path) -> list[str]:
    needle = os.fsencode(folder)
    return [str(line) for line in Path("/proc").glob("[0-9]*/cmdline") if needle in _read(line)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # It ended while we looked.
