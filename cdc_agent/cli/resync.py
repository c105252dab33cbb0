"""``resync``: asks the daemon to read tables again, or does it here while none runs; lists, watches, pauses, ends."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdc_agent.cli import options
from cdc_agent.cli.daemon_client import DaemonClient
from cdc_agent.cli.output import print_json, print_table, wants_json
from cdc_agent.errors import DaemonUnavailable, UsageError

if TYPE_CHECKING:
    from cdc_agent.resync_order import ResyncOrder

__all__ = ["add_options", "run"]

_POLL_S = 0.5
#: Keys in one request.
_KEYS_AT_ONCE = 5_000
_COLUMNS = ("id", "table", "state", "rows_done", "rows_estimated", "reason", "started_at")
_ACTIONS = ("list", "pause", "resume", "cancel")
_ENDED = ("done", "failed", "cancelled")

#: Facts of resyncs as the daemon's HTTP interface tells them.
Facts = list[dict[str, Any]]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action", nargs="?", choices=_ACTIONS, help="list resyncs, or pause, resume or cancel one, instead of beginning"
    )
    parser.add_argument("id", nargs="?", type=int, help="number of the resync to pause, resume or cancel")
    parser.add_argument("--collection", metavar="NAME", help="only this collection; without it all that are made of it")
    parser.add_argument("--table", metavar="TABLE", help="schema.table; without it every configured table")
    parser.add_argument(
        "--where", metavar="SQL", default="", help="only rows that match; nothing is removed from the index then"
    )
    parser.add_argument(
        "--key",
        metavar="KEY",
        action="append",
        default=[],
        type=options.key,
        help="only this row of --table; repeatable; several key columns as JSON list",
    )
    parser.add_argument("--keys", metavar="FILE", help="only the rows whose keys are in FILE (- is standard input)")
    parser.add_argument("--rewrite", action="store_true", help="write every chunk anew, also where nothing changed")
    parser.add_argument("--reason", default="", help="a note that is kept with the resync")
    parser.add_argument("--list", action="store_true", help="the same as the action list")
    parser.add_argument("--wait", action="store_true", help="show progress and return when it is done")
    parser.add_argument("--offline", action="store_true", help=options.OFFLINE)


def run(args: argparse.Namespace) -> int:
    if args.action not in (None, "list"):
        return _move(args)
    if args.list or args.action == "list":
        _print(args, DaemonClient.of(args.config).get("/resyncs")["resyncs"])
        return 0
    body = _body(args)
    client = DaemonClient.of(args.config)
    try:
        resyncs = _begin(client, body)
    except DaemonUnavailable:
        if not args.offline:
            raise
        resyncs = _here(args, body)
    else:
        if args.wait or args.offline:
            resyncs = _follow(client, [resync["id"] for resync in resyncs], quiet=wants_json(args))
    _print(args, resyncs)
    return int(any(resync["state"] in ("failed", "cancelled") for resync in resyncs))


def _begin(client: DaemonClient, body: dict[str, Any]) -> Facts:
    """Very many keys become several resyncs: a request has its bounds."""
    keys = body["keys"]
    parts = [keys[place : place + _KEYS_AT_ONCE] for place in range(0, len(keys), _KEYS_AT_ONCE)] or [[]]
    return [resync for part in parts for resync in client.post("/resyncs", body | {"keys": part})["resyncs"]]


def _print(args: argparse.Namespace, resyncs: Facts) -> None:
    if wants_json(args):
        print_json({"resyncs": resyncs})
        return
    print_table(_COLUMNS, [[resync[column] for column in _COLUMNS] for resync in resyncs])
    for resync in resyncs:
        if resync.get("error"):
            print(f"resync {resync['id']} failed: {resync['error']}", file=sys.stderr)


def _move(args: argparse.Namespace) -> int:
    if args.id is None:
        raise UsageError(f"resync {args.action} without a number", hint="cdc-agent resync list shows them")
    moved = DaemonClient.of(args.config).post(f"/resyncs/{args.id}/{args.action}")
    _print(args, [moved])
    return 0


def _body(args: argparse.Namespace) -> dict[str, Any]:
    keys = [*args.key, *(_keys_of(args.keys) if args.keys else [])]
    if keys and not args.table:
        raise UsageError("--key without --table", hint="say which table the key belongs to")
    body: dict[str, Any] = {"table": args.table, "keys": keys, "reason": args.reason}
    more = {"collection": args.collection, "where": args.where, "rewrite": args.rewrite}
    return body | {name: value for name, value in more.items() if value}


def _keys_of(path: str) -> list[list[str]]:
    """One key a line, as ``--key`` takes it."""
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"--keys {path}: {exc}", hint="a file with one key a line") from exc
    try:
        keys = [options.key(line) for line in text.splitlines() if line.strip()]
    except argparse.ArgumentTypeError as exc:
        raise UsageError(f"--keys {path}: {exc}", hint="a file with one key a line") from exc
    if not keys:
        raise UsageError(f"--keys {path}: there is no key in it", hint="a file with one key a line")
    return keys


# Without a daemon.


def _here(args: argparse.Namespace, body: dict[str, Any]) -> Facts:
    """Run the daemon in this process until the resyncs have ended. It holds the state folder meanwhile."""
    from cdc_agent.daemon.errand import ResyncErrand
    from cdc_agent.daemon.run import run as run_daemon
    from cdc_agent.web.answers import json_resync

    show = _shower(quiet=wants_json(args))
    errand = ResyncErrand(
        _order(body), lambda resyncs, service: show([json_resync(r, service.resync_rate(r.id)) for r in resyncs])
    )
    run_daemon(Path(args.config), errand=errand)
    resyncs = [json_resync(resync) for resync in errand.resyncs]
    if any(resync["state"] not in _ENDED for resync in resyncs) or not resyncs:
        raise DaemonUnavailable("stopped before it was done", hint="it goes on when the daemon runs again")
    return resyncs


def _order(body: dict[str, Any]) -> ResyncOrder:
    from cdc_agent.resync_order import ResyncOrder

    return ResyncOrder(
        collection=body.get("collection"),
        table=body["table"],
        keys=tuple(tuple(key) for key in body["keys"]),
        where=body.get("where", ""),
        rewrite=bool(body.get("rewrite")),
        reason=body["reason"],
    )


# Progress.


def _follow(client: DaemonClient, ids: Sequence[int], *, quiet: bool) -> Facts:
    """Ask until all have ended. The daemon goes on whether or not somebody watches."""
    last: Facts = []
    show = _shower(quiet=quiet)
    for last in _states(client, ids):
        show(last)
    return last


def _states(client: DaemonClient, ids: Sequence[int]) -> Iterator[Facts]:
    while True:
        resyncs = [r for r in client.get("/resyncs")["resyncs"] if r["id"] in ids]
        yield resyncs
        if all(resync["state"] in _ENDED for resync in resyncs):
            return
        time.sleep(_POLL_S)


def _shower(*, quiet: bool) -> Callable[[Facts], None]:
    """Shows progress: bars on a terminal, a line when something changed otherwise."""
    if quiet:
        return lambda _: None
    return _Bars().show if sys.stderr.isatty() else _Lines().show


class _Lines:
    def __init__(self) -> None:
        self._last = ""

    def show(self, resyncs: Facts) -> None:
        line = "; ".join(_words(resync) for resync in resyncs)
        if line != self._last:
            print(line, file=sys.stderr, flush=True)
        self._last = line


class _Bars:
    """Ends with the last resync."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._progress = Progress(console=Console(stderr=True))
        self._bars: dict[int, Any] = {}
        self._progress.start()

    def show(self, resyncs: Facts) -> None:
        for resync in resyncs:
            done, ended = resync["rows_done"], resync["state"] in _ENDED
            total = max(resync["rows_estimated"], done, 1)
            if resync["id"] not in self._bars:
                self._bars[resync["id"]] = self._progress.add_task(resync["table"], total=None)
            self._progress.update(
                self._bars[resync["id"]],
                description=_words(resync),
                completed=max(done, 1) if ended else done,
                total=max(done, 1) if ended else total,
            )
        if all(resync["state"] in _ENDED for resync in resyncs):
            self._progress.stop()


def _words(resync: dict[str, Any]) -> str:
    words = f"{resync['table']}: {resync['state']}, {resync['rows_done']} of about {resync['rows_estimated']} rows"
    if resync.get("rows_per_s") and resync["state"] == "running":
        words += f", {resync['rows_per_s']:g} rows/s, {resync['eta_s']:g} s left"
    return words
