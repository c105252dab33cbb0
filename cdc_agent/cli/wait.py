"""``wait``: blocks until the index holds a commit."""

from __future__ import annotations

import argparse

from cdc_agent.cli import options
from cdc_agent.cli.daemon_client import DaemonClient
from cdc_agent.cli.output import print_json, wants_json

__all__ = ["add_options", "run"]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lsn", type=options.lsn, help="position such as 16/B374D848 (select pg_current_wal_lsn())")
    parser.add_argument("--timeout-s", type=options.seconds, default=30.0, help="most seconds to wait (30)")


def run(args: argparse.Namespace) -> int:
    query = {"lsn": str(args.lsn), "timeout_s": str(args.timeout_s)}
    answer = DaemonClient.of(args.config).get("/wait", query, timeout_s=args.timeout_s + 10)
    if wants_json(args):
        print_json(answer)
    else:
        print(f"applied_lsn: {answer['applied_lsn']}")
    return 0
