"""Every reader of foreign bytes is fuzzed for a moment: for what is easily broken, and to keep the targets alive.

``scripts/fuzz`` does it for as long as you like.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import PLANTED, TARGETS

pytest.importorskip("atheris")
ROOT = Path(__file__).parents[2]
SECONDS = 1


def fuzzing(target: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.fuzz", target, "--seconds", str(SECONDS), "--kept", str(folder)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_few_seconds_find_nothing_in_any_reader_and_find_a_planted_bug(tmp_path: Path) -> None:
    # Given a target for each reader, and one that breaks at three bytes in a row
    running = {name: fuzzing(name, tmp_path) for name in (*TARGETS, "planted")}
    said = {name: process.communicate(timeout=200)[0] for name, process in running.items()}

    # Then only that one was broken, and each of them ran
    broken = {name for name, process in running.items() if process.returncode != 0}
    assert broken == {"planted"}, "\n".join(said[name][-2_000:] for name in broken - {"planted"})
    assert "ZeroDivisionError" in said["planted"]
    assert all("stat::number_of_executed_units" in said[name] for name in TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_what_the_fuzzer_starts_from_is_understood(name: str) -> None:
    seeds = list(TARGETS[name].seeds())

    for seed in seeds:
        TARGETS[name].run(seed)
    assert seeds
    assert PLANTED.run is not TARGETS[name].run
