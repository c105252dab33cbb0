"""``search``: asks the running daemon for the nearest chunks."""

from __future__ import annotations

import argparse
from typing import Any

from cdc_agent.cli import options
from cdc_agent.cli.daemon_client import DaemonClient
from cdc_agent.cli.output import print_json, wants_json
from cdc_agent.config import load
from cdc_agent.errors import UsageError

__all__ = ["add_options", "run"]

_EXCERPT_CHARACTERS = 200


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("query", help="what to look for, in words")
    parser.add_argument("--collection", metavar="NAME", help="collection; not needed when only one is configured")
    parser.add_argument("-k", type=int, default=5, help="how many hits (5)")
    parser.add_argument(
        "--where", metavar="JSON", type=options.json_object, help='condition on metadata, such as \'{"lang": "en"}\''
    )
    parser.add_argument("--min-lsn", metavar="LSN", type=options.lsn, help="answer only once this commit is indexed")
    parser.add_argument("--timeout-s", type=options.seconds, default=10.0, help="most seconds to wait for it (10)")


def run(args: argparse.Namespace) -> int:
    body: dict[str, Any] = {"collection": _collection(args), "query": args.query, "k": args.k}
    if args.where:
        body["where"] = args.where
    if args.min_lsn is not None:
        body |= {"min_lsn": str(args.min_lsn), "timeout_s": args.timeout_s}
    answer = DaemonClient.of(args.config).post("/search", body, timeout_s=args.timeout_s + 60)
    if wants_json(args):
        print_json(answer)
    else:
        _print_hits(answer["hits"])
    return 0


def _collection(args: argparse.Namespace) -> str:
    if args.collection:
        return str(args.collection)
    names = [collection.name for collection in load(args.config).collections]
    if len(names) > 1:
        raise UsageError("which collection?", hint=f"add --collection NAME, one of: {', '.join(names)}")
    return names[0]


def _print_hits(hits: list[dict[str, Any]]) -> None:
    if not hits:
        print("nothing found")
    for hit in hits:
        stale = "  (an older version: the newest one is a dead letter)" if hit.get("stale") else ""
        print(f"{hit['score']:.3f}  {hit['document_id']}{stale}")
        print(f"       {_excerpt(hit['text'])}")


def _excerpt(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _EXCERPT_CHARACTERS else line[: _EXCERPT_CHARACTERS - 1] + "…"
