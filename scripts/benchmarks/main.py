"""Runs the measurements that are asked for, one after the other, and ends with one table of all figures.

Owns the order, the options and the exit code: 0 unless something broke. A figure below its aim is no failure.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import capture
import freshness
import idle
import index
import jetstream
import ledger
import memory
import orjson
import resync
import search
import verify
from figures import Figure, table
from machine import load_average, say
from sizes import FULL, QUICK, Sizes

MEASUREMENTS: dict[str, Callable[[Sizes], list[Figure]]] = {
    "capture": capture.measure,
    "index": index.measure,
    "freshness": freshness.measure,
    "idle": idle.measure,
    "ledger": ledger.measure,
    "memory": memory.measure,
    "resync": resync.measure,
    "search": search.measure,
    "verify": verify.measure,
    "jetstream": jetstream.measure,
}

#: Above this load average something else is running, and figures say more about that than about us.
_QUIET_LOAD = 0.5


def main() -> int:
    args = _arguments()
    load = load_average()
    say(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, load average {load:.2f}")
    if load > _QUIET_LOAD:
        say(
            f"WARNING: the load average is above {_QUIET_LOAD}: something else runs here, so figures are not comparable"
        )
    figures: list[Figure] = []
    for name in args.only or MEASUREMENTS:
        say(f"\n== {name} ==")
        figures += MEASUREMENTS[name](QUICK if args.quick else FULL)
    say(f"\nload average: {load:.2f} at the start, {load_average():.2f} at the end\n")
    say(table(figures))
    if args.json:
        args.json.write_bytes(_report(figures, quick=args.quick, load=load))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measures cdc-agent against what it is made of.")
    parser.add_argument("--only", action="append", choices=list(MEASUREMENTS), help="one measurement; may be repeated")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works, not how fast it is")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return parser.parse_args()


def _report(figures: Sequence[Figure], *, quick: bool, load: float) -> bytes:
    report = {"quick": quick, "load_average": load, "cores": os.cpu_count(), "figures": [f.facts() for f in figures]}
    return orjson.dumps(report, option=orjson.OPT_INDENT_2)


if __name__ == "__main__":
    raise SystemExit(main())
