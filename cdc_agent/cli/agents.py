"""``agents``: your own agents in the running daemon: who they are, what they could not handle; and ``emit``."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
import uuid
from typing import Any
from urllib.parse import quote

from cdc_agent.cli.daemon_client import DaemonClient
from cdc_agent.cli.output import print_json, print_mapping, print_table, wants_json
from cdc_agent.errors import UsageError

__all__ = ["add_choice", "add_emit_options", "add_letter", "add_limits", "discard", "emit", "letters", "list_all"]
__all__ += ["replay", "show"]

_PAGE = "1000"


def add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--agent", metavar="NAME", default="", help="only those of this agent")


def add_letter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("agent", help="name of the agent")
    parser.add_argument("number", type=int, help="number of the dead letter, as the list shows it")


def add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("agent", help="name of the agent")
    parser.add_argument("number", type=int, nargs="?", help="number of the dead letter, as the list shows it")
    parser.add_argument("--all", action="store_true", help="every dead letter of this agent")


def add_emit_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("type", help="what happened, like payment_failed; or what is to be done")
    parser.add_argument("--key", metavar="KEY", default="", help="what it is about")
    parser.add_argument("--data", metavar="JSON", default="null", help="more about it; - reads it from standard input")
    parser.add_argument("--id", metavar="ID", default="", help="its id: an event that is here already changes nothing")
    parser.add_argument("--command", dest="is_command", action="store_true", help="it is a command, for one agent")


def list_all(args: argparse.Namespace) -> int:
    answer = DaemonClient.of(args.config).get("/agents")
    if wants_json(args):
        print_json(answer)
    elif answer["agents"]:
        columns = ("name", "kind", "listens_to", "backlog", "letters", "state")
        print_table(columns, [_row(agent) for agent in answer["agents"]])
    else:
        print("no agents")
    return 0


def _row(agent: dict[str, Any]) -> list[Any]:
    state = f"failed: {agent['failed']}" if agent["failed"] else "works"
    return [agent["name"], agent["kind"], " ".join(agent["listens_to"]), agent["backlog"], agent["letters"], state]


def letters(args: argparse.Namespace) -> int:
    answer = DaemonClient.of(args.config).get("/agents/letters", {"agent": args.agent, "limit": _PAGE})
    if wants_json(args):
        print_json(answer)
    elif answer["letters"]:
        columns = ("agent", "number", "type", "key", "reason", "attempts", "parked_at", "error")
        print_table(columns, [[letter[column] for column in columns] for letter in answer["letters"]])
    else:
        print("no dead letters")
    return 0


def show(args: argparse.Namespace) -> int:
    letter = DaemonClient.of(args.config).get(_path(args.agent, args.number))
    if wants_json(args):
        print_json(letter)
        return 0
    chain = letter.pop("chain")
    event = letter.pop("event")
    print_mapping({**letter, "trail": " > ".join(letter["trail"]), "data": json.dumps(event.get("data"))})
    for event in chain:
        print(f"{'  ' * event['hops']}{event['source']} {event['type']} {event.get('subject', '')} {event['id']}")
    return 0


def replay(args: argparse.Namespace) -> int:
    return _move(args, "replay", "is being handled again")


def discard(args: argparse.Namespace) -> int:
    return _move(args, "discard", "is forgotten")


def _move(args: argparse.Namespace, action: str, said: str) -> int:
    if args.all == (args.number is not None):
        raise UsageError(f"{action} what?", hint="give the number of a dead letter, or --all")
    client = DaemonClient.of(args.config)
    numbers = [args.number]
    if args.all:
        found = client.get("/agents/letters", {"agent": args.agent, "limit": _PAGE})["letters"]
        numbers = [letter["number"] for letter in found if letter["state"] == "parked"]
    answers = [client.post(f"{_path(args.agent, number)}/{action}") for number in numbers]
    if wants_json(args):
        print_json({"letters": answers})
        return 0
    for number in numbers:
        print(f"dead letter {number} of {args.agent} {said}")
    return 0


def _path(agent: str, number: int) -> str:
    return f"/agents/{quote(agent, safe='')}/letters/{number}"


def emit(args: argparse.Namespace) -> int:
    event = {
        "specversion": "1.0",
        "id": args.id or uuid.uuid4().hex,
        "source": "cli",
        "type": args.type,
        "subject": args.key,
        "time": dt.datetime.now(dt.UTC).isoformat(),
        "data": _data(args.data),
        **({"kind": "command"} if args.is_command else {}),
    }
    answer = DaemonClient.of(args.config).post("/events", event)
    if wants_json(args):
        print_json({**answer, "id": event["id"]})
    else:
        print(f"{args.type} {event['id']}" + ("" if answer["new"] else " was here already"))
    return 0


def _data(text: str) -> Any:
    try:
        return json.loads(sys.stdin.read() if text == "-" else text)
    except ValueError as exc:
        raise UsageError(f"--data is no JSON: {exc}", hint="""--data '{"amount": 12}'""") from exc
