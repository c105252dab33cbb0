"""``run``: the daemon, in the foreground, until a signal ends it."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    from cdc_agent import daemon

    return daemon.run(Path(args.config))
