"""``scripts/bench`` runs and says what it promises. No thresholds: a busy machine is no bug."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from cdc_agent.demo.installations import find_installations

ROOT = Path(__file__).parents[2]


def test_capture_is_measured_against_pg_recvlogical(tmp_path: Path) -> None:
    # Given a machine with Debian's Postgres, which brings pg_recvlogical
    if not any(one.version == 15 and (one.bin_dir / "pg_recvlogical").exists() for one in find_installations()):
        missing = "there is no Postgres 15 with pg_recvlogical; scripts/test brings it where it can"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    report = tmp_path / "figures.json"

    # When capture alone is measured with small sizes
    done = subprocess.run(
        [ROOT / "scripts/bench", "--quick", "--only", "capture", "--json", report],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )

    # Then it ends well, says each round's ratio, and the table and the file agree on the figures
    assert done.returncode == 0, done.stdout
    assert "round 1: pg_recvlogical" in done.stdout
    assert "ratio of the medians" in done.stdout
    figures = json.loads(report.read_text())["figures"]
    assert {f["measure"] for f in figures} >= {"capture, 1 KB rows, pgoutput", "capture, tiny updates, pgoutput"}
    for figure in figures:
        assert figure["ratio"] > 0
        assert f"| {figure['measure']}" in done.stdout


def test_the_stream_on_nats_is_measured_against_a_bare_publisher_and_consumer(tmp_path: Path) -> None:
    report = tmp_path / "figures.json"

    done = subprocess.run(
        [ROOT / "scripts/bench", "--quick", "--only", "jetstream", "--json", report],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    figures = json.loads(report.read_text())["figures"]
    assert len(figures) == 4
    assert all(figure["ratio"] > 0 and f"| {figure['measure']}" in done.stdout for figure in figures)
