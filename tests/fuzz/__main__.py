"""Runs one target under atheris: ``python -m tests.fuzz pgoutput --seconds 120``. Exits 77 with a finding."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import atheris

#: Where inputs that led somewhere new are kept between runs, and those that broke something.
KEPT = Path(__file__).parents[2] / "var" / "fuzz"


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Fuzz one reader of foreign bytes.")
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--kept", type=Path, default=KEPT, help="folder of inputs that are worth keeping")
    parser.add_argument("--input", type=Path, help="run this one input again")
    args = parser.parse_args()
    logging.disable()
    with atheris.instrument_imports(include=["cdc_agent", "tests.fuzz"]):
        from tests.fuzz.targets import PLANTED, TARGETS
    target = {**TARGETS, "planted": PLANTED}[args.target]
    if args.input is not None:
        target.run(args.input.read_bytes())
        return
    corpus = args.kept / args.target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed{number}").write_bytes(seed)
    options = [
        f"-max_total_time={args.seconds}",
        "-max_len=16384",
        "-timeout=20",
        "-print_final_stats=1",
        "-verbosity=1",
    ]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={args.kept}/{args.target}-", str(corpus)], target.run)
    atheris.Fuzz()


main()
