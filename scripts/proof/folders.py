"""Coverage of lines and branches by folder, from coverage's JSON. Exits 1 where the core is below its floor."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

#: Percent of branches that tests must take in what no data may be lost in.
FLOOR = 90.0
CORE = ("source", "stream", "ledger", "agents")
_KEYS = ("covered_branches", "num_branches", "covered_lines", "num_statements")


def main(report: Path) -> int:
    found: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(_KEYS, 0))
    for name, file in json.loads(report.read_text())["files"].items():
        parts = Path(name).parts
        folder = parts[1] if len(parts) > 2 else "(top)"
        for key in _KEYS:
            found[folder][key] += file["summary"][key]
    print(f"{'folder':14}{'branches':>18}{'lines':>10}")
    for folder, sums in sorted(found.items()):
        taken = f"{sums['covered_branches']}/{sums['num_branches']}"
        print(f"{folder:14}{taken:>11}{_branches(sums):6.1f}%{_share(*list(sums.values())[2:]):9.1f}%")
    below = [folder for folder in CORE if folder in found and _branches(found[folder]) < FLOOR]
    if below:
        print(f"below {FLOOR:g} % of branches: {', '.join(below)}")
    return bool(below)


def _branches(sums: dict[str, int]) -> float:
    return _share(sums["covered_branches"], sums["num_branches"])


def _share(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else 100.0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
