"""``facts``: what the journal holds, for audits: a table for people, JSON lines of CloudEvents for machines."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import re
from collections.abc import Iterator
from typing import Any

from cdc_agent.cli.daemon_client import DaemonClient
from cdc_agent.cli.output import print_table, wants_json
from cdc_agent.errors import UsageError

__all__ = ["add_options", "run"]

#: As many as the daemon gives in one answer.
_PAGE = 1_000
_AGO = re.compile(r"(\d{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_COLUMNS = ("time", "source", "type", "subject", "id")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--type", metavar="TYPE", default="", help="only of this type; `github.*`: all that begin so")
    parser.add_argument("--key", metavar="KEY", default="", help="only about this")
    parser.add_argument("--kind", choices=("fact", "command"), default="", help="only facts, or only commands")
    parser.add_argument("--correlation-id", metavar="ID", default="", help="only this event and all that it began")
    parser.add_argument("--source", metavar="NAME", default="", help="only from this sender")
    parser.add_argument(
        "--since", metavar="TIME", type=_moment, help="from then on: 2026-11-27T08:00Z, or 2h, 7d (ago)"
    )
    parser.add_argument("--until", metavar="TIME", type=_moment, help="before then")
    parser.add_argument("--limit", metavar="N", type=int, help="at most so many, the oldest first; default: all")


def _moment(text: str) -> str:
    from cdc_agent.cloudevents import parse_time

    ago = _AGO.fullmatch(text)
    try:
        if ago:
            return (dt.datetime.now(dt.UTC) - dt.timedelta(**{_UNITS[ago[2]]: int(ago[1])})).isoformat()
        return parse_time(text).isoformat()
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no time with its zone, like 2026-11-27T08:00Z or 2h") from None


def run(args: argparse.Namespace) -> int:
    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit {args.limit} shows nothing", hint="1 or more")
    found = _facts(args)
    if wants_json(args):
        for fact in found:
            print(json.dumps(fact, ensure_ascii=False))
        return 0
    rows = [[fact.get(column, "") for column in _COLUMNS] for fact in found]
    if rows:
        print_table(_COLUMNS, rows)
    else:
        print("no facts")
    return 0


def _facts(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    client = DaemonClient.of(args.config)
    names = ("kind", "correlation_id", "type", "key", "source", "since", "until")
    query = {name: value for name in names if (value := getattr(args, name))}
    after, left = 0, args.limit
    while left is None or left > 0:
        limit = _PAGE if left is None else min(left, _PAGE)
        answer = client.get("/facts", query | {"after": str(after), "limit": str(limit)})
        yield from answer["facts"]
        if answer["next_after"] is None:
            return
        after = answer["next_after"]
        left = None if left is None else left - len(answer["facts"])
