"""What is handed out: the sdist can be built, the wheel out of it, and that holds what the checkout holds."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_packages_can_be_built_and_are_whole() -> None:
    # Installing them, and the demo far from here, take minutes: `scripts/package-test` without arguments does that.
    result = subprocess.run([ROOT / "scripts" / "package-test", "files"], capture_output=True, text=True, timeout=280)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "cdc_agent-" in result.stdout
