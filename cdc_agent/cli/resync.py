"""``resync``: asks the daemon to read tables again, and watches if told to."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any

from cdc_agent.cli import options
from cdc_agent.cli.daemon_client import DaemonClient
from cdc_agent.cli.output import print_json, print_table, wants_json
from cdc_agent.errors import UsageError

__all__ = ["add_options", "run"]

_POLL_S = 0.5
_COLUMNS = ("id", "table", "state", "rows_done", "rows_estimated", "reason", "started_at")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--table", metavar="TABLE", help="schema.table; without it every configured table")
    parser.add_argument(
        "--key",
        metavar="KEY",
        action="append",
        default=[],
        type=options.key,
        help="only this row of --table; repeatable; several key columns as JSON list",
    )
    parser.add_argument("--reason", default="", help="a note that is kept with the resync")
    parser.add_argument("--list", action="store_true", help="list resyncs instead of beginning one")
    parser.add_argument("--wait", action="store_true", help="show progress and return when it is done")


def run(args: argparse.Namespace) -> int:
    client = DaemonClient.of(args.config)
    resyncs = client.get("/resyncs")["resyncs"] if args.list else _begin(client, args)
    if args.wait:
        resyncs = _follow(client, [resync["id"] for resync in resyncs], quiet=wants_json(args))
    if wants_json(args):
        print_json({"resyncs": resyncs})
    else:
        print_table(_COLUMNS, [[resync[column] for column in _COLUMNS] for resync in resyncs])
    return 0


def _begin(client: DaemonClient, args: argparse.Namespace) -> list[dict[str, Any]]:
    if args.key and not args.table:
        raise UsageError("--key without --table", hint="say which table the key belongs to")
    body = {"table": args.table, "keys": args.key, "reason": args.reason}
    resyncs: list[dict[str, Any]] = client.post("/resyncs", body)["resyncs"]
    return resyncs


def _follow(client: DaemonClient, ids: list[int], *, quiet: bool) -> list[dict[str, Any]]:
    """Ask until all are done. The daemon goes on whether or not somebody watches."""
    last: list[dict[str, Any]] = []
    if sys.stderr.isatty() and not quiet:
        return _follow_with_bar(client, ids)
    for last in _states(client, ids):
        if not quiet:
            print(_line(last), file=sys.stderr, flush=True)
    return last


def _follow_with_bar(client: DaemonClient, ids: list[int]) -> list[dict[str, Any]]:
    from rich.console import Console
    from rich.progress import Progress

    last: list[dict[str, Any]] = []
    with Progress(console=Console(stderr=True)) as progress:
        bars = {resync_id: progress.add_task(f"resync {resync_id}", total=None) for resync_id in ids}
        for last in _states(client, ids):
            for resync in last:
                done, total = resync["rows_done"], max(resync["rows_estimated"], resync["rows_done"])
                is_done = resync["state"] == "done"
                progress.update(
                    bars[resync["id"]],
                    description=resync["table"],
                    completed=max(done, 1) if is_done else done,
                    total=max(done, 1) if is_done else total or None,
                )
    return last


def _states(client: DaemonClient, ids: list[int]) -> Iterator[list[dict[str, Any]]]:
    while True:
        resyncs = [r for r in client.get("/resyncs")["resyncs"] if r["id"] in ids]
        yield resyncs
        if all(resync["state"] == "done" for resync in resyncs):
            return
        time.sleep(_POLL_S)


def _line(resyncs: list[dict[str, Any]]) -> str:
    return "; ".join(
        f"{r['table']}: {r['state']}, {r['rows_done']} of about {r['rows_estimated']} rows" for r in resyncs
    )
