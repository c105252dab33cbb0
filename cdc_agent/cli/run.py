"""``run``: the daemon, in the foreground, until a signal ends it."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["add_options", "run"]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--adopt-server", action="store_true", help="once: go on with another server, read everything again"
    )


def run(args: argparse.Namespace) -> int:
    from cdc_agent.daemon import run as run_daemon

    return run_daemon(Path(args.config), adopt_server=args.adopt_server)
