"""Known weaknesses of what we depend on: what fails, what is waived and for how long, and that silence is no answer."""

from __future__ import annotations

import datetime
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TODAY = datetime.date(2026, 11, 28)
A_DAY = datetime.timedelta(days=1)
WEAK = {
    "name": "chromadb",
    "version": "1.5.9",
    "vulns": [{"id": "PYSEC-2026-1", "aliases": ["CVE-2026-45829"], "fix_versions": []}],
}
SOUND = {"name": "httpx", "version": "0.28", "vulns": []}
UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found"}


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / "scripts/proof/audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["audit"] = module
    spec.loader.exec_module(module)
    return module


def waiver(audit: ModuleType, **changed: Any) -> Any:
    fields = {"id": "CVE-2026-45829", "package": "chromadb", "expires": TODAY, "reason": "never loaded"}
    return audit.Waiver(**{**fields, **changed})


def test_a_weakness_that_nobody_waived_fails(audit: ModuleType) -> None:
    verdict = audit.judge([WEAK, SOUND], [], TODAY)

    assert verdict.code == 1
    assert verdict.lines == ["chromadb 1.5.9: PYSEC-2026-1, not mended in any version"]


def test_a_waiver_holds_by_any_of_its_names_until_its_last_day(audit: ModuleType) -> None:
    for name in ("CVE-2026-45829", "PYSEC-2026-1"):
        assert audit.judge([WEAK, SOUND], [waiver(audit, id=name)], TODAY).code == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"expires": TODAY - datetime.timedelta(days=1)},
        {"expires": TODAY + datetime.timedelta(days=184)},
        {"reason": " "},
    ],
    ids=["ran out", "too long", "no reason"],
)
def test_a_waiver_that_ran_out_or_is_not_sound_fails_also_without_a_finding(
    audit: ModuleType, changed: dict[str, Any]
) -> None:
    assert audit.judge([SOUND], [waiver(audit, **changed)], TODAY).code == 1
    assert len(audit.judge([WEAK], [waiver(audit, **changed)], TODAY).lines) == 2


@pytest.mark.parametrize("changed", [{"package": "httpx"}, {"id": "CVE-2026-45830"}], ids=["package", "id"])
def test_a_waiver_is_for_one_weakness_of_one_package(audit: ModuleType, changed: dict[str, Any]) -> None:
    assert audit.judge([WEAK], [waiver(audit, **changed)], TODAY).code == 1


@pytest.mark.parametrize("found", [[], [UNKNOWN]], ids=["nothing", "only skipped"])
def test_where_nobody_could_be_asked_nothing_is_claimed(audit: ModuleType, found: list[Any]) -> None:
    verdict = audit.judge(found, [waiver(audit)], TODAY)

    assert verdict.code == 75
    assert "could not be asked" in verdict.lines[0]


def test_what_the_service_does_not_know_is_named(audit: ModuleType) -> None:
    verdict = audit.judge([SOUND, UNKNOWN], [], TODAY)

    assert verdict.code == 0
    assert verdict.lines[0].endswith("not audited: torch")


def test_our_waivers_are_sound_on_the_day_that_they_were_written(audit: ModuleType) -> None:
    waivers = audit.waivers_of(audit.WAIVERS.read_text())

    assert [w.id for w in waivers] == ["CVE-2026-45829"]
    assert audit.judge([SOUND], waivers, TODAY).code == 0


def test_a_waiver_without_a_day_is_refused(audit: ModuleType) -> None:
    with pytest.raises(TypeError, match="expires"):
        audit.waivers_of('[[waiver]]\nid = "X"\npackage = "y"\nreason = "z"\n')
