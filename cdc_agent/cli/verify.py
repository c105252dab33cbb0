"""``verify``: asks the daemon to audit the index, watches, and says what is wrong."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any

from cdc_agent.cli.daemon_client import DaemonClient
from cdc_agent.cli.output import print_json, print_table, wants_json
from cdc_agent.errors import CdcAgentError, DaemonUnavailable

__all__ = ["add_options", "run"]

_POLL_S = 0.25
_COLUMNS = ("kind", "collection", "document_id", "chunk_id", "what")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--collection", metavar="NAME", help="only this collection")
    parser.add_argument("--table", metavar="TABLE", help="only the collections of this table (schema.table)")
    parser.add_argument(
        "--sample", metavar="N", type=int, default=100, help="chunks that are embedded again to test vectors (100)"
    )
    parser.add_argument("--repair", action="store_true", help="mend what differs, and audit that again")


def run(args: argparse.Namespace) -> int:
    client = DaemonClient.of(args.config)
    asked = {"collection": args.collection, "table": args.table, "sample": args.sample, "repair": args.repair}
    started = client.post("/verifies", asked)
    report = _follow(client, started["id"], quiet=wants_json(args))
    if wants_json(args):
        print_json(report)
    _check_ended(report)
    if not wants_json(args):
        _print(report)
    return 1 if report["left"] else 0


def _check_ended(report: dict[str, Any]) -> None:
    if report["state"] == "stopped":
        raise DaemonUnavailable("the daemon was stopped during the audit", hint="begin it again when it is back")
    if report["state"] == "failed":
        raise CdcAgentError(f"the audit was given up: {report['error']}", hint=report["hint"])


def _print(report: dict[str, Any]) -> None:
    if report["defects"]:
        print_table(_COLUMNS, [[defect[column] for column in _COLUMNS] for defect in report["defects"]])
    found, left = sum(report["found"].values()), sum(report["left"].values())
    if found > len(report["defects"]):
        print(f"… {found - len(report['defects'])} more are not listed", file=sys.stderr)
    line = f"{report['rows']} rows, {report['chunks']} chunks, {report['sampled']} vectors: "
    line += f"{found} defects" if found else "no defects"
    if report["repair"] and found:
        line += f", {found - left} mended, {left} left"
    for word in ("parked", "moving"):
        if report[word]:
            line += f"; {report[word]} documents {word}"
    print(line, file=sys.stderr)


def _follow(client: DaemonClient, number: int, *, quiet: bool) -> dict[str, Any]:
    """Ask until it ends. The daemon goes on whether or not somebody watches."""
    if quiet or not sys.stderr.isatty():
        return list(_states(client, number))[-1]
    from rich.console import Console
    from rich.progress import Progress

    last: dict[str, Any] = {}
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("verify", total=None)
        for last in _states(client, number):
            found = sum(last["found"].values())
            total = last["done"] if last["finished_at"] else last["estimated"]
            progress.update(bar, description=f"verify: {found} defects", completed=last["done"] or 1, total=total or 1)
    return last


def _states(client: DaemonClient, number: int) -> Iterator[dict[str, Any]]:
    while True:
        report = client.get(f"/verifies/{number}")
        yield report
        if report["finished_at"] is not None:
            return
        time.sleep(_POLL_S)
