"""``status``: what the running daemon does."""

from __future__ import annotations

import argparse

from cdc_agent.cli.daemon_client import DaemonClient
from cdc_agent.cli.output import print_json, print_mapping, wants_json

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    status = DaemonClient.of(args.config).get("/status")
    if wants_json(args):
        print_json(status)
    else:
        print_mapping(status)
    return 0
