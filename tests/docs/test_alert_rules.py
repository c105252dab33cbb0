"""Prometheus itself reads the alert rules, and each of them fires when what it is about happens, and not before."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

RULES = Path(__file__).parents[2] / "config" / "prometheus-alerts.yml"
ALERTS = {rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}
INSTANCE = 'instance="shop:8765"'
MINUTES = 40

#: What a daemon in good health says for forty minutes, a value a minute.
HEALTHY: Mapping[str, str] = {
    "cdc_agent_slot_retained_bytes": "64e6",
    "cdc_agent_streaming": "1",
    "cdc_agent_stream_full": "0",
    "cdc_agent_lag_seconds": "0.2",
    "cdc_agent_applied_lsn": "1000000+8192x40",
    'cdc_agent_freshness_seconds_bucket{le="0.1"}': "0+60x40",
    'cdc_agent_freshness_seconds_bucket{le="60"}': "0+60x40",
    'cdc_agent_freshness_seconds_bucket{le="+Inf"}': "0+60x40",
    'cdc_agent_problem{component="embedding"}': "0",
    'cdc_agent_problem{component="vectorstore"}': "0",
    "cdc_agent_dead_letters": "0",
    'cdc_agent_mismatch{state="SLOT_LOST"}': "0",
    'cdc_agent_verify_defects{kind="stale"}': "0",
    "cdc_agent_reconnects_total": "3",
    'cdc_agent_sagas{state="waiting"}': "7",
    'cdc_agent_sagas{state="stuck"}': "0",
}
#: What differs when something is wrong.
WRONG: Mapping[str, Mapping[str, str]] = {
    "CdcAgentSlotKeepsWal": {"cdc_agent_slot_retained_bytes": "11e9"},
    "CdcAgentNotStreaming": {"cdc_agent_streaming": "0"},
    "CdcAgentStreamFull": {"cdc_agent_stream_full": "1"},
    "CdcAgentStalled": {"cdc_agent_lag_seconds": "301", "cdc_agent_applied_lsn": "1000000"},
    "CdcAgentBehind": {"cdc_agent_lag_seconds": "61"},
    "CdcAgentSlow": {'cdc_agent_freshness_seconds_bucket{le="0.1"}': "0+30x40"},
    "CdcAgentModelAway": {'cdc_agent_problem{component="embedding"}': "1"},
    "CdcAgentStoreAway": {'cdc_agent_problem{component="vectorstore"}': "1"},
    "CdcAgentDeadLetters": {"cdc_agent_dead_letters": "1"},
    "CdcAgentMismatch": {'cdc_agent_mismatch{state="SLOT_LOST"}': "1"},
    "CdcAgentDefects": {'cdc_agent_verify_defects{kind="stale"}': "2"},
    "CdcAgentReconnects": {"cdc_agent_reconnects_total": "0+1x40"},
    "CdcAgentSagas": {'cdc_agent_sagas{state="stuck"}': "1"},
}
#: Who stands still is behind as well.
BESIDE = {"CdcAgentStalled": {"CdcAgentBehind"}}


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        # A laptop may be without it; continuous integration may not.
        (pytest.fail if os.environ.get("CI") else pytest.skip)("promtool is missing: apt-get install prometheus")
    return found


def check(promtool: str, folder: Path, changed: Mapping[str, str], minute: int, firing: set[str]) -> str:
    """Empty if exactly these alerts fire then, otherwise what Prometheus says."""
    values = {**HEALTHY, **changed}
    text = yaml.safe_dump(
        {
            "rule_files": [str(RULES)],
            "evaluation_interval": "1m",
            "tests": [
                {
                    "interval": "1m",
                    "input_series": [{"series": _named(name), "values": _always(v)} for name, v in values.items()],
                    "promql_expr_test": [_expected(minute, firing)],
                }
            ],
        }
    )
    file = folder / "case.yml"
    file.write_text(text)
    result = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True, timeout=60)
    return "" if result.returncode == 0 else result.stdout + result.stderr


def _named(name: str) -> str:
    return name.replace("{", f"{{{INSTANCE},") if "{" in name else f"{name}{{{INSTANCE}}}"


def _always(value: str) -> str:
    return value if "x" in value else f"{value}+0x{MINUTES}"


def _expected(minute: int, firing: set[str]) -> dict[str, Any]:
    samples = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(firing)]
    query = 'count by (alertname) (ALERTS{alertstate="firing"})'
    return {"expr": query, "eval_time": f"{minute}m", "exp_samples": samples}


def test_prometheus_takes_the_rules(promtool: str) -> None:
    result = subprocess.run([promtool, "check", "rules", RULES], capture_output=True, text=True, timeout=60)

    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(ALERTS)} rules found" in result.stdout


def test_a_healthy_daemon_wakes_nobody(promtool: str, tmp_path: Path) -> None:
    assert not check(promtool, tmp_path, {}, MINUTES, set())


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_fires_when_it_should(promtool: str, tmp_path: Path, alert: str) -> None:
    # Given a daemon that is healthy but for one thing, for longer than the rule waits
    # When Prometheus looks
    # Then this alert fires, and no other that is not about the same
    assert not check(promtool, tmp_path, WRONG[alert], MINUTES, {alert} | BESIDE.get(alert, set()))


@pytest.mark.parametrize("alert", [name for name, rule in ALERTS.items() if "for" in rule])
def test_an_alert_waits_as_long_as_it_says(promtool: str, tmp_path: Path, alert: str) -> None:
    # What is wrong from the first minute on does not fire in it.
    assert not check(promtool, tmp_path, WRONG[alert], 0, set())
