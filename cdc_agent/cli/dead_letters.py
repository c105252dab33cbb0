"""``dead-letters``: documents that could not be indexed; look, try again, or forget."""

from __future__ import annotations

import argparse
from typing import Any

from cdc_agent.cli.daemon_client import DaemonClient
from cdc_agent.cli.output import print_json, print_mapping, print_table, wants_json
from cdc_agent.errors import UsageError

__all__ = ["add_choice", "add_filters", "discard", "list_all", "replay", "show"]

#: As many as the daemon gives in one answer.
_PAGE = 1_000


def add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--collection", metavar="NAME", help="only those of this collection")
    parser.add_argument("--reason", metavar="REASON", help="only those parked for this reason, as the list shows it")


def add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", type=int, nargs="?", help="number of the dead letter")
    add_filters(parser)
    parser.add_argument("--all", action="store_true", help="every dead letter")


def list_all(args: argparse.Namespace) -> int:
    answer = _listed(DaemonClient.of(args.config), args)
    letters = answer["dead_letters"]
    if wants_json(args):
        print_json(answer)
    elif letters:
        columns = ("id", "collection", "document_id", "reason", "attempts", "parked_at", "error")
        print_table(columns, [[letter[column] for column in columns] for letter in letters])
    else:
        print("no dead letters")
    return 0


def _listed(client: DaemonClient, args: argparse.Namespace) -> dict[str, Any]:
    """Every page, as one."""
    query = {"limit": str(_PAGE), **_filters(args)}
    answer = client.get("/dead-letters", query)
    letters = answer["dead_letters"]
    while answer["next_after"] is not None:
        answer = client.get("/dead-letters", query | {"after": str(answer["next_after"])})
        letters += answer["dead_letters"]
    return {"dead_letters": letters, "total": answer["total"]}


def _filters(args: argparse.Namespace) -> dict[str, str]:
    return {name: value for name in ("collection", "reason") if (value := getattr(args, name))}


def show(args: argparse.Namespace) -> int:
    letter = DaemonClient.of(args.config).get(f"/dead-letters/{args.id}")
    if wants_json(args):
        print_json(letter)
    else:
        print_mapping(letter)
    return 0


def replay(args: argparse.Namespace) -> int:
    return _act(args, "replay", "is being indexed again", "are being indexed again")


def discard(args: argparse.Namespace) -> int:
    return _act(args, "discard", "is forgotten", "are forgotten")


def _act(args: argparse.Namespace, action: str, one: str, many: str) -> int:
    some = args.all or bool(_filters(args))
    if some == (args.id is not None):
        raise UsageError(f"{action} what?", hint="give the number of a dead letter, or --collection, --reason or --all")
    client = DaemonClient.of(args.config)
    if some:
        answer = client.post(f"/dead-letters/{action}", {"all": args.all, **_filters(args)})
        said = f"{answer[f'{action}ed']} dead letters {many}"
    else:
        answer = client.post(f"/dead-letters/{args.id}/{action}")
        said = f"dead letter {args.id} {one}"
    if wants_json(args):
        print_json(answer)
    else:
        print(said)
    return 0
