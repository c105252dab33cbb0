"""The systemd unit: systemd itself finds nothing wrong with it, and hardly anything to attack."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "config" / "cdc-agent.service"

#: Exposure in tenths, as `systemd-analyze security` reckons it: 96 is a unit without any restriction.
MOST_EXPOSURE = 20


@pytest.fixture
def systemd_analyze() -> str:
    found = shutil.which("systemd-analyze")
    if found is None:
        # A laptop may be without systemd; continuous integration may not.
        (pytest.fail if os.environ.get("CI") else pytest.skip)("systemd-analyze is missing: apt-get install systemd")
    return found


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with programs that are on this machine."""
    text = re.sub(r"^ExecStart=\S+", f"ExecStart={shutil.which('true')}", UNIT.read_text(), flags=re.MULTILINE)
    path = tmp_path / UNIT.name
    path.write_text(text)
    return path


def test_systemd_understands_every_line(systemd_analyze: str, unit: Path) -> None:
    # When systemd reads the unit
    result = subprocess.run([systemd_analyze, "verify", "--man=no", unit], capture_output=True, text=True, timeout=60)

    # Then it has nothing to say about it (about others of this machine it may)
    complaints = [line for line in result.stderr.splitlines() if UNIT.name in line]
    assert (result.returncode, complaints) == (0, []), result.stderr


def test_a_misspelt_line_would_be_found(systemd_analyze: str, unit: Path) -> None:
    unit.write_text(unit.read_text().replace("WatchdogSec=", "WatchdogSecs="))

    result = subprocess.run([systemd_analyze, "verify", "--man=no", unit], capture_output=True, text=True, timeout=60)

    assert "WatchdogSecs" in result.stderr


def test_there_is_little_to_attack(systemd_analyze: str, unit: Path) -> None:
    command = [systemd_analyze, "security", "--offline=true", "--no-pager", f"--threshold={MOST_EXPOSURE}", unit]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "Overall exposure level" in result.stdout
