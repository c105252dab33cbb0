"""``verify``: has the index audited, by the running daemon or in this process, and says what is wrong."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from cdc_agent.cli import options
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
    parser.add_argument("--offline", action="store_true", help=options.OFFLINE)


def run(args: argparse.Namespace) -> int:
    client = DaemonClient.of(args.config)
    asked = {"collection": args.collection, "table": args.table, "sample": args.sample, "repair": args.repair}
    try:
        started = client.post("/verifies", asked)
    except DaemonUnavailable:
        if not args.offline:
            raise
        report = _here(args.config, asked, quiet=wants_json(args))
    else:
        report = _shown(_states(client, started["id"]), quiet=wants_json(args))
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


def _here(config: str, asked: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    """Run the daemon in this process until the audit has ended. It holds the state folder meanwhile."""
    from cdc_agent.daemon.errand import VerifyErrand
    from cdc_agent.daemon.run import run as run_daemon
    from cdc_agent.verify.report import Wanted

    show = _shower(quiet=quiet)
    errand = VerifyErrand(Wanted(**asked), lambda report: show(report.as_json()))
    run_daemon(Path(config), errand=errand)
    if errand.report is None or errand.report.finished_at is None:
        raise DaemonUnavailable("stopped before the audit was done", hint="begin it again")
    return errand.report.as_json()


def _shown(reports: Iterable[dict[str, Any]], *, quiet: bool) -> dict[str, Any]:
    """The last report. The daemon goes on whether or not somebody watches."""
    show = _shower(quiet=quiet)
    last: dict[str, Any] = {}
    for last in reports:
        show(last)
    return last


def _shower(*, quiet: bool) -> Callable[[dict[str, Any]], None]:
    return (lambda _: None) if quiet or not sys.stderr.isatty() else _Bar().show


class _Bar:
    """Ends with the audit."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._progress = Progress(console=Console(stderr=True))
        self._bar = self._progress.add_task("verify", total=None)
        self._progress.start()

    def show(self, report: dict[str, Any]) -> None:
        found, ended = sum(report["found"].values()), report["finished_at"] is not None
        total = report["done"] if ended else report["estimated"]
        self._progress.update(
            self._bar, description=f"verify: {found} defects", completed=report["done"] or 1, total=total or 1
        )
        if ended:
            self._progress.stop()


def _states(client: DaemonClient, number: int) -> Iterator[dict[str, Any]]:
    while True:
        report = client.get(f"/verifies/{number}")
        yield report
        if report["finished_at"] is not None:
            return
        time.sleep(_POLL_S)
