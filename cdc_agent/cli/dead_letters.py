"""``dead-letters``: documents that could not be indexed; look, try again, or forget."""

from __future__ import annotations

import argparse

from cdc_agent.cli.daemon_client import DaemonClient
from cdc_agent.cli.output import print_json, print_mapping, print_table, wants_json

__all__ = ["discard", "list_all", "replay", "show"]


def list_all(args: argparse.Namespace) -> int:
    answer = DaemonClient.of(args.config).get("/dead-letters")
    letters = answer["dead_letters"]
    if wants_json(args):
        print_json(answer)
    elif letters:
        columns = ("id", "collection", "document_id", "reason", "attempts", "parked_at", "error")
        print_table(columns, [[letter[column] for column in columns] for letter in letters])
    else:
        print("no dead letters")
    return 0


def show(args: argparse.Namespace) -> int:
    letter = DaemonClient.of(args.config).get(f"/dead-letters/{args.id}")
    if wants_json(args):
        print_json(letter)
    else:
        print_mapping(letter)
    return 0


def replay(args: argparse.Namespace) -> int:
    return _act(args, "replay", "is being indexed again")


def discard(args: argparse.Namespace) -> int:
    return _act(args, "discard", "is forgotten")


def _act(args: argparse.Namespace, action: str, outcome: str) -> int:
    answer = DaemonClient.of(args.config).post(f"/dead-letters/{args.id}/{action}")
    if wants_json(args):
        print_json(answer)
    else:
        print(f"dead letter {args.id} {outcome}")
    return 0
