"""``migrate``: builds a collection anew beside the one that answers searches, and switches to it.

A running daemon does the work. Without one, what is only a record in the ledger is made here: the next start does it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cdc_agent.cli.configured import load
from cdc_agent.cli.daemon_client import DaemonClient
from cdc_agent.cli.output import print_json, print_table, wants_json
from cdc_agent.errors import DaemonUnavailable, UsageError

if TYPE_CHECKING:
    from cdc_agent.config import Config
    from cdc_agent.ledger.base import Generation, Ledger

__all__ = ["abort", "add_options", "finish", "plan", "rollback", "start", "status", "switch"]

_COLUMNS = ("collection", "generation", "state", "copy", "rows_done", "rows_estimated", "eta_s", "ready", "why_not")
_OFFLINE_COLUMNS = ("collection", "generation", "state", "documents", "chunks")
_PLAN_COLUMNS = ("collection", "changed", "documents", "rows", "chunks", "tokens", "reused_chunks", "seconds")
#: A switch waits for the last commits, a removal for the work in hand.
_ANSWER_S = 180.0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--collection", metavar="NAME", help="only this collection; not needed when there is only one")


def plan(args: argparse.Namespace) -> int:
    """Exit code 1 when there is something to migrate."""
    from cdc_agent.daemon.estimates import estimates

    config = load(args.config)
    with _ledger(config, alone=False) as ledger:
        found = estimates(config, ledger, args.collection)
    if wants_json(args):
        print_json({"collections": found})
    elif not found:
        print("nothing to migrate: the configuration describes what is built already")
    else:
        print_table(_PLAN_COLUMNS, [[_cell(one[column]) for column in _PLAN_COLUMNS] for one in found])
    return 1 if found else 0


def start(args: argparse.Namespace) -> int:
    client = DaemonClient.of(args.config)
    try:
        begun = client.post("/migrations", {"collection": args.collection}, timeout_s=_ANSWER_S)["generations"]
    except DaemonUnavailable as exc:
        begun = _offline(args, exc, _record_start)
    return _print(args, begun)


def status(args: argparse.Namespace) -> int:
    try:
        found = DaemonClient.of(args.config).get("/migrations")["generations"]
    except DaemonUnavailable as exc:
        found = _offline(args, exc, lambda _config, ledger, _name: _recorded(ledger.generations(), ledger))
    return _print(args, [one for one in found if args.collection in (None, one["collection"])])


def switch(args: argparse.Namespace) -> int:
    return _move(args, "switch")


def rollback(args: argparse.Namespace) -> int:
    return _move(args, "rollback")


def finish(args: argparse.Namespace) -> int:
    return _move(args, "finish")


def abort(args: argparse.Namespace) -> int:
    try:
        return _move(args, "abort")
    except DaemonUnavailable as exc:
        return _print(args, _offline(args, exc, _record_abort))


def _move(args: argparse.Namespace, action: str) -> int:
    client = DaemonClient.of(args.config)
    name = args.collection or _only_collection(load(args.config))
    return _print(args, client.post(f"/migrations/{name}/{action}", timeout_s=_ANSWER_S)["generations"])


def _only_collection(config: Config) -> str:
    names = [collection.name for collection in config.collections]
    if len(names) > 1:
        raise UsageError("which collection?", hint=f"add --collection NAME, one of: {', '.join(names)}")
    return names[0]


# Without a daemon.


def _offline(
    args: argparse.Namespace,
    reason: DaemonUnavailable,
    act: Callable[[Config, Ledger, str | None], list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    """Act on the ledger, unless a daemon holds it: then the reason why that one did not answer stands."""
    from cdc_agent.daemon.lock import try_state

    config = load(args.config)
    lock = try_state(config.state_dir)
    if lock is None:
        raise reason
    with lock, _ledger(config) as ledger:
        return act(config, ledger, args.collection)


def _record_start(config: Config, ledger: Ledger, collection: str | None) -> list[dict[str, Any]]:
    from cdc_agent.daemon.generations import Embedders, next_generations
    from cdc_agent.daemon.models import build_embedder

    begun = next_generations(config, ledger.generations(), Embedders(config.embedding, build_embedder), collection)
    for one in begun:
        ledger.save_generation(one.generation)
    return _recorded([one.generation for one in begun], ledger)


def _record_abort(config: Config, ledger: Ledger, collection: str | None) -> list[dict[str, Any]]:
    name = collection or _only_collection(config)
    building = [g for g in ledger.generations() if g.collection == name and g.state == "building"]
    if not building:
        raise UsageError(f"collection {name} has no generation that is building", hint="cdc-agent migrate status")
    dropping = replace(building[0], state="dropping")
    ledger.save_generation(dropping)
    return _recorded([dropping], ledger)


def _recorded(generations: Sequence[Generation], ledger: Ledger) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for generation in generations:
        if generation.state == "dropped":
            continue
        documents, chunks = ledger.counts(generation.physical)
        known = {"collection": generation.collection, "generation": generation.number, "state": generation.state}
        found.append(known | {"name": generation.physical, "documents": documents, "chunks": chunks})
    return found


@contextmanager
def _ledger(config: Config, *, alone: bool = True) -> Iterator[Ledger]:
    from cdc_agent.daemon.ledgers import ledger_is_there, ledger_place, open_ledger

    if not ledger_is_there(config):
        raise UsageError(
            f"there is no ledger at {ledger_place(config)}", hint="nothing was built yet: cdc-agent run builds it"
        )
    ledger = open_ledger(config, alone=alone)
    try:
        yield ledger
    finally:
        ledger.close()


def _print(args: argparse.Namespace, generations: Sequence[dict[str, Any]]) -> int:
    if wants_json(args):
        print_json({"generations": list(generations)})
        return 0
    running = all("ready" in one for one in generations)
    columns = _COLUMNS if running else _OFFLINE_COLUMNS
    print_table(columns, [[_cell(one[column]) for column in columns] for one in generations])
    if not running:
        print("no daemon runs: the next `cdc-agent run` goes on from here")
    return 0


def _cell(value: object) -> object:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "-" if value in (None, "") else value
