"""``demo``: the whole journey on this machine, with a database and a model of its own."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["add_options", "run"]

#: Fewer make a poor search, and there are hardly more.
_DOCUMENTS = range(20, 1001)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="end after the story; 0 if every claim held, 1 otherwise")
    parser.add_argument(
        "--documents", metavar="N", type=_documents, default=300, help="how many documents, 20 to 1000 (300)"
    )
    parser.add_argument(
        "--state-dir", metavar="DIR", type=Path, help="keep database and index there; without it nothing is left"
    )


def run(args: argparse.Namespace) -> int:
    from cdc_agent.demo import command

    return command.run(once=args.once, documents=args.documents, state_dir=args.state_dir)


def _documents(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else -1
    if number not in _DOCUMENTS:
        raise argparse.ArgumentTypeError(f"not a number from 20 to 1000: {text!r}")
    return number
