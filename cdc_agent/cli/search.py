"""``search``: asks for the nearest chunks, the running daemon or one that is run for it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cdc_agent.cli import options
from cdc_agent.cli.configured import load
from cdc_agent.cli.daemon_client import DaemonClient
from cdc_agent.cli.output import print_json, wants_json
from cdc_agent.errors import DaemonUnavailable, UsageError

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
    parser.add_argument("--offline", action="store_true", help=options.OFFLINE)


def run(args: argparse.Namespace) -> int:
    body: dict[str, Any] = {"collection": _collection(args), "query": args.query, "k": args.k}
    if args.where:
        body["where"] = args.where
    if args.min_lsn is not None:
        body |= {"min_lsn": str(args.min_lsn), "timeout_s": args.timeout_s}
    client = DaemonClient.of(args.config)
    try:
        answer = client.post("/search", body, timeout_s=args.timeout_s + 60)
    except DaemonUnavailable:
        if not args.offline:
            raise
        answer = _here(args.config, body)
    if wants_json(args):
        print_json(answer)
    else:
        _print_hits(answer["hits"])
    return 0


def _here(config: str, body: dict[str, Any]) -> dict[str, Any]:
    """Run the daemon in this process until the index holds what the source holds now, and search it."""
    from cdc_agent.daemon.errand import SearchErrand
    from cdc_agent.daemon.run import run as run_daemon
    from cdc_agent.web.answers import json_hit

    errand = SearchErrand(body["collection"], body["query"], k=body["k"], where=body.get("where"))
    run_daemon(Path(config), errand=errand)
    if errand.hits is None:
        raise DaemonUnavailable("stopped before the index was complete", hint="ask again")
    return {"hits": [json_hit(hit) for hit in errand.hits]}


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
