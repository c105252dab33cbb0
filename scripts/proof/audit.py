"""The command behind ``scripts/audit``: judges what pip-audit found by the waivers that have not run out."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WAIVERS = Path(__file__).with_name("waivers.toml")
#: sysexits(3): try again later, from where somebody can be asked.
UNASKED = 75
#: Nobody waives for longer.
LONGEST = datetime.timedelta(days=183)
_PIP_AUDIT = ["-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--skip-editable", "--timeout", "20"]
_TIMEOUT_S = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiver:
    """One weakness of one package that does not reach us, looked at again when it ``expires``."""

    id: str
    package: str
    expires: datetime.date
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """``code`` is the command's; ``lines`` say why."""

    code: int
    lines: Sequence[str]


def waivers_of(text: str) -> list[Waiver]:
    """Raises ``TypeError`` for one that leaves something out."""
    return [Waiver(**entry) for entry in tomllib.loads(text).get("waiver", [])]


def judge(found: Sequence[Mapping[str, Any]], waivers: Sequence[Waiver], today: datetime.date) -> Verdict:
    """What pip-audit lists as dependencies, and what we say to that."""
    audited = [one for one in found if "vulns" in one]
    told = [_of_waiver(waiver, today) for waiver in waivers]
    valid = {(waiver.package, waiver.id) for waiver, words in zip(waivers, told, strict=True) if not words}
    wrong = [words for words in told if words] + [
        f"{one['name']} {one['version']}: {vuln['id']}{_fix(vuln)}"
        for one in audited
        for vuln in one["vulns"]
        if not any((one["name"], name) in valid for name in (vuln["id"], *vuln.get("aliases", ())))
    ]
    if wrong:
        return Verdict(code=1, lines=wrong)
    if not audited:
        return Verdict(code=UNASKED, lines=["no advisory was read: the service could not be asked from here"])
    left = sorted(one["name"] for one in found if "vulns" not in one)
    notes = [f"not known to the service, so not audited: {', '.join(left)}"] if left else []
    return Verdict(code=0, lines=[*notes, f"{len(audited)} packages, {len(waivers)} waived"])


def _of_waiver(waiver: Waiver, today: datetime.date) -> str:
    if waiver.expires < today:
        return f"the waiver of {waiver.id} ran out on {waiver.expires}: look at {waiver.package} again"
    if waiver.expires > today + LONGEST:
        return f"the waiver of {waiver.id} is for longer than {LONGEST.days} days"
    if not waiver.reason.strip():
        return f"the waiver of {waiver.id} says no reason"
    return ""


def _fix(vuln: Mapping[str, Any]) -> str:
    versions = vuln.get("fix_versions") or ()
    return f", mended in {', '.join(versions)}" if versions else ", not mended in any version"


def main() -> int:
    command = [sys.executable, *_PIP_AUDIT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError):
        found = []
        print(f"audit: pip-audit said: {(done.stderr.strip().splitlines() or ['nothing'])[-1]}", file=sys.stderr)
    verdict = judge(found, waivers_of(WAIVERS.read_text()), datetime.datetime.now(datetime.UTC).date())
    for line in verdict.lines:
        print(f"audit: {line}")
    return verdict.code


if __name__ == "__main__":
    raise SystemExit(main())
