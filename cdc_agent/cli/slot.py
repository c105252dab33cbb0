"""``slot``: our replication slot as the server has it."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from cdc_agent.cli.configured import load
from cdc_agent.cli.output import human_bytes, print_json, print_mapping, wants_json
from cdc_agent.errors import UsageError

__all__ = ["drop", "show"]


def show(args: argparse.Namespace) -> int:
    """Exit code 1 when there is no slot."""
    from cdc_agent.source.slot import describe

    source = load(args.config).source
    status = describe(source.dsn.get_secret_value(), source.slot_name)
    if wants_json(args):
        print_json(None if status is None else _facts(status))
    elif status is None:
        print(f"there is no slot {source.slot_name}")
    else:
        facts = _facts(status)
        sizes = {name: human_bytes(facts[name]) for name in ("retained_bytes", "lag_bytes")}
        print_mapping(facts | sizes)
    return 1 if status is None else 0


def drop(args: argparse.Namespace) -> int:
    from cdc_agent.source.slot import drop as drop_slot

    source = load(args.config).source
    if not args.yes:
        _ask(source.slot_name, source.redacted_dsn)
    dropped = drop_slot(source.dsn.get_secret_value(), source.slot_name)
    if wants_json(args):
        print_json({"slot_name": source.slot_name, "dropped": dropped})
    else:
        print(f"slot {source.slot_name} is dropped" if dropped else f"there is no slot {source.slot_name}")
    return 0


def _facts(status: Any) -> dict[str, Any]:
    lsns = ("confirmed_flush_lsn", "restart_lsn")
    plain = ("name", "plugin", "database", "active_pid", "wal_status", "retained_bytes", "lag_bytes")
    facts = {name: getattr(status, name) for name in plain}
    return facts | {name: None if getattr(status, name) is None else str(getattr(status, name)) for name in lsns}


def _ask(slot_name: str, dsn: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError(
            f"dropping slot {slot_name} loses every change that is not captured yet", hint="confirm it with --yes"
        )
    if input(f"Drop slot {slot_name} on {dsn}? Changes not captured yet are lost. [y/N] ").strip().lower() != "y":
        raise UsageError("nothing was dropped", hint="answer y, or use --yes")
