"""``mcp``: serves the index as tools for language models over standard input and output."""

from __future__ import annotations

import argparse
import os

from cdc_agent.cli.daemon_client import DaemonClient
from cdc_agent.errors import UsageError

__all__ = ["add_options", "run"]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url", metavar="URL", help="address of the daemon, on whatever machine; without it that of the configuration"
    )


def run(args: argparse.Namespace) -> int:
    try:
        from cdc_agent.mcp.stdio import serve
    except ImportError as exc:
        raise UsageError(str(exc), hint="the extra brings the official package, `mcp`") from exc
    if args.url:
        serve(args.url, token=os.environ.get("CDC_AGENT_TOKEN"))
    else:
        client = DaemonClient.of(args.config)
        serve(client.url, token=client.token)
    return 0
