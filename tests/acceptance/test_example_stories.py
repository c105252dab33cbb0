"""Every story of an example can be played as its README says, to its end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.stage.stage import EXAMPLES

ROOT = Path(__file__).parents[2]
STORIES = sorted(path.parent.name for path in EXAMPLES.glob("*/story.py"))
#: What is told last.
ENDS = {
    "docs_refresh": "docs_changed",
    "fan_out": "customer_thanked",
    "fraud_detective": "account_annotated",
    "ops_runbook": "incident_told",
    "refund_saga": "refund_paid",
    "payment_recovery": "recovery_flow_initiated",
}


@pytest.mark.parametrize("name", STORIES)
def test_the_story_is_played_to_its_end(name: str) -> None:
    command = [sys.executable, "-m", "examples.stage", name, "--once", "--embedding", "hashing"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"journal  {ENDS[name]} " in done.stdout
    assert done.stderr == ""
    # And its README tells which command plays it.
    assert f"examples/run {name}\n" in (EXAMPLES / name / "README.md").read_text()


def test_every_folder_of_an_example_has_a_story_and_a_line_in_the_readme() -> None:
    folders = {path.parent.name for path in EXAMPLES.glob("*/agents.py")}
    assert folders == set(STORIES) == set(ENDS)
    readme = (EXAMPLES / "README.md").read_text()
    assert all(f"[{name}]({name}/README.md)" in readme for name in folders)
