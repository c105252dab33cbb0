"""The command behind ``scripts/chaos``. Owns the options, the files and the exit code: 1 if anything was violated."""

from __future__ import annotations

import argparse
import faulthandler
import signal
from pathlib import Path

import orjson
import pytest

from tests.support.chaos.faults import DEATHS, DISTURBANCES
from tests.support.chaos.loop import Wanted, run
from tests.support.chaos.report import as_text
from tests.support.interrupts import listen

#: What a shell says of a program that Ctrl-C has ended.
_INTERRUPTED = 130


def main() -> int:
    args = _arguments()
    listen()
    faulthandler.register(signal.SIGUSR1)
    wanted = Wanted(
        cycles=args.cycles,
        seed=args.seed,
        plugin=args.plugin,
        store=args.store,
        faults=tuple(args.faults),
        rate=args.rate,
        quiet=args.quiet,
    )
    try:
        facts = run(wanted)
    except pytest.skip.Exception as exc:
        print(exc)
        return 2
    print(as_text(facts))
    if args.json:
        args.json.write_bytes(orjson.dumps(facts, option=orjson.OPT_INDENT_2))
    if any(facts["violations"].values()):
        return 1
    return _INTERRUPTED if facts["interrupted"] else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/chaos", description="Kills, cuts and starves the daemon while others write, and compares."
    )
    parser.add_argument("--cycles", type=int, default=30, help="lives of the daemon (default: 30)")
    parser.add_argument("--seed", type=int, default=1, help="of the faults and of the writers (default: 1)")
    parser.add_argument("--plugin", choices=("pgoutput", "wal2json"), default="pgoutput")
    parser.add_argument("--store", choices=("managed", "server", "embedded"), default="managed")
    parser.add_argument("--faults", type=_faults, default=(), metavar="A,B", help="only these")
    parser.add_argument("--rate", type=float, default=8.0, help="transactions a second (default: 8)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the facts there, too")
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")
    return parser.parse_args()


def _faults(text: str) -> list[str]:
    known = [*DEATHS, *DISTURBANCES]
    names = text.split(",")
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"there is no {name}; there are {', '.join(known)}")
    return names


if __name__ == "__main__":
    raise SystemExit(main())
