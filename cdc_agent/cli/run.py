"""``run``: the daemon, in the foreground, until a signal ends it."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    from cdc_agent.daemon import run as run_daemon

    return run_daemon(Path(args.config))
