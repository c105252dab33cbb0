"""docs/OPERATIONS.md has what somebody looks for at night: every state with what to do, every alert, every extra."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from cdc_agent import __version__

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "OPERATIONS.md").read_text()
#: docs/ERRORS.md is held complete by a test of its own.
STATES = set(
    re.findall(r"^\| `([A-Z]+(?:_[A-Z]+)+)` \|", (ROOT / "docs" / "ERRORS.md").read_text(), flags=re.MULTILINE)
)
ALERTS = [
    rule
    for group in yaml.safe_load((ROOT / "config" / "prometheus-alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def section(heading: str) -> str:
    """What stands under a heading, up to the next one as high or higher."""
    found = re.search(rf"^(#+) {re.escape(heading)}\n", PAGE, flags=re.MULTILINE)
    assert found, f"no heading {heading!r}"
    rest = PAGE[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, flags=re.MULTILINE)
    return rest[: end.start()] if end else rest


@pytest.mark.parametrize("state", sorted(STATES))
def test_every_state_says_what_to_look_at_and_what_to_do(state: str) -> None:
    row = re.search(rf"^\| `{state}` \|([^|]+)\|([^|]+)\|$", section("Named states"), flags=re.MULTILINE)

    assert row, f"no line for {state}"
    assert all(cell.strip() for cell in row.groups())


def test_no_state_is_made_up() -> None:
    assert set(re.findall(r"^\| `([A-Z_]+)` \|", section("Named states"), flags=re.MULTILINE)) == STATES


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_leads_to_its_entry(rule: dict[str, Any]) -> None:
    assert rule["annotations"]["runbook"] == f"docs/OPERATIONS.md#{rule['alert'].lower()}"
    # It begins with what it means, and goes on with what to do.
    assert re.match(r"\n\*[A-Z].+?\.\*", section(rule["alert"]), flags=re.DOTALL)
    assert len(section(rule["alert"])) > 150


def test_no_alert_is_made_up() -> None:
    assert re.findall(r"^### (.+)$", section("Alerts"), flags=re.MULTILINE) == [rule["alert"] for rule in ALERTS]


def test_every_extra_is_listed() -> None:
    listed = {
        name
        for row in re.findall(r"^\| (`[^|]+) \|[^|]+\|[^|]+\|$", section("Install"), flags=re.MULTILINE)
        for name in re.findall(r"`([\w-]+)`", row)
    }

    assert listed == PROJECT["optional-dependencies"].keys() - {"dev"}


def test_every_note_of_a_source_leads_to_one() -> None:
    defined = set(re.findall(r"^\[(\d+)\]: https://\S+$", PAGE, flags=re.MULTILINE))

    assert set(re.findall(r"\[(\d+)\](?!:)", PAGE)) == defined


def test_the_wheel_that_is_named_is_the_one_that_is_built() -> None:
    assert set(re.findall(r"cdc_agent-([\d.]+)-py3", PAGE)) == {__version__}
