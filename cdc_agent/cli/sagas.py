"""``sagas``: what is under way in the running daemon, what became of one, and answers to those that wait."""

from __future__ import annotations

import argparse
import getpass
import json
from typing import Any
from urllib.parse import quote

from cdc_agent.cli.daemon_client import DaemonClient
from cdc_agent.cli.output import print_json, print_mapping, print_table, wants_json

__all__ = ["add_answer", "add_filters", "add_id", "approve", "cancel", "list_all", "reject", "show"]

#: As many as the daemon gives in one answer.
_PAGE = 1_000
_COLUMNS = ("id", "saga", "key", "state", "step", "attempts", "due_at", "started_at", "error")


def add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state", metavar="STATE", default="open", help="only those in this state; default: open; all")
    parser.add_argument("--saga", metavar="NAME", default="", help="only those of this name")


def add_id(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help="id of the saga, as the list shows it")


def add_answer(parser: argparse.ArgumentParser) -> None:
    add_id(parser)
    parser.add_argument("--by", metavar="NAME", help="who says so; default: the user's name")
    parser.add_argument("--note", metavar="TEXT", default="", help="why; it is kept with the answer")


def list_all(args: argparse.Namespace) -> int:
    client = DaemonClient.of(args.config)
    query = {"state": args.state, "saga": args.saga, "limit": str(_PAGE)}
    answer = client.get("/sagas", query)
    sagas = answer["sagas"]
    while answer["next_after"] is not None:
        answer = client.get("/sagas", query | {"after": str(answer["next_after"])})
        sagas += answer["sagas"]
    if wants_json(args):
        print_json({"sagas": sagas, "counts": answer["counts"]})
    elif sagas:
        print_table(_COLUMNS, [[_shown(saga[column]) for column in _COLUMNS] for saga in sagas])
    else:
        print("no sagas")
    return 0


def show(args: argparse.Namespace) -> int:
    saga = DaemonClient.of(args.config).get(f"/sagas/{quote(args.id, safe='')}")
    if wants_json(args):
        print_json(saga)
        return 0
    history = saga.pop("history")
    for carried in ("data", "results"):
        saga[carried] = json.dumps(saga[carried], ensure_ascii=False)
    print_mapping({**saga, "steps": " > ".join(saga["steps"])})
    for said in history:
        print(f"{said['time']} {said['type']} {_more(said['data'])}".rstrip())
    return 0


def _more(data: Any) -> str:
    """Of an event, without what is the same for all of them."""
    if isinstance(data, dict):
        data = {name: value for name, value in data.items() if name not in ("saga", "saga_id")}
    return json.dumps(data, ensure_ascii=False) if data else ""


def approve(args: argparse.Namespace) -> int:
    return _act(args, "approve", {"step": args.step or ""})


def reject(args: argparse.Namespace) -> int:
    return _act(args, "reject", {"step": args.step or ""})


def cancel(args: argparse.Namespace) -> int:
    return _act(args, "cancel", {})


def _act(args: argparse.Namespace, action: str, more: dict[str, str]) -> int:
    answer = {"by": args.by or _me(), "note": args.note, **more}
    saga = DaemonClient.of(args.config).post(f"/sagas/{quote(args.id, safe='')}/{action}", answer)
    if wants_json(args):
        print_json(saga)
    else:
        where = f" at {saga['step']}" if saga["step"] else ""
        print(f"saga {saga['id']} is {saga['state']}{where}")
    return 0


def _me() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container whose user has no name.
        return ""


def _shown(value: Any) -> Any:
    return "" if value is None else value
