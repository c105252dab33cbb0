"""Which commands there are and what they take. ``docs/CLI.md`` describes them; a test compares the two."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any, NoReturn

from cdc_agent.cli import (
    agents,
    completion,
    dead_letters,
    demo,
    explain,
    facts,
    mcp,
    migrate,
    resync,
    run,
    sagas,
    search,
    slot,
    status,
    token,
    verify,
    wait,
)
from cdc_agent.cli.version import Version
from cdc_agent.errors import UsageError

__all__ = ["DEFAULT_CONFIG", "build_parser"]

DEFAULT_CONFIG = "config/cdc-agent.yaml"

Command = Callable[[argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    """Says what is wrong the way every other error of ours is said."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"{self.prog} --help")


def _check(args: argparse.Namespace) -> int:
    # What it asks is most of what there is to load.
    from cdc_agent.cli import check

    return check.run(args)


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="cdc-agent",
        description="Keeps a vector index true to a Postgres database, change by change.",
        epilog="exit codes: 0 ok, 1 found something, 2 usage, 75 try again, 78 configuration or identity",
    )
    parser.add_argument("--version", action=Version, help="say the versions of what is at work here")
    _add_common(parser, config=os.environ.get("CDC_AGENT_CONFIG") or DEFAULT_CONFIG, json=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_demo(commands)
    _add(commands, "check", _check, "say what is missing in the database, the configuration and this machine")
    run.add_options(_add(commands, "run", run.run, "run the daemon"))
    search.add_options(_add(commands, "search", search.run, "search a collection of the running daemon"))
    explain.add_options(_add(commands, "explain", explain.run, "say why a row is, or is not, in the index"))
    _add(commands, "status", status.run, "show what the running daemon does")
    wait.add_options(_add(commands, "wait", wait.run, "wait until the index holds a commit"))
    resync.add_options(_add(commands, "resync", resync.run, "read tables again and mend what differs"))
    verify.add_options(_add(commands, "verify", verify.run, "audit the index against the source and mend what differs"))
    _add_migrate(commands)
    mcp.add_options(_add(commands, "mcp", mcp.run, "serve the index as tools for language models, over stdio"))
    _add_dead_letters(commands)
    facts.add_options(_add(commands, "facts", facts.run, "show the events that are kept for ever"))
    agents.add_emit_options(_add(commands, "emit", agents.emit, "tell your agents that something happened"))
    _add_agents(commands)
    _add_sagas(commands)
    _add_slot(commands)
    _add_token(commands)
    sentence = "print a script that completes commands and options in a shell"
    completion.add_options(_add(commands, "completion", completion.run, sentence))
    return parser


def _add_demo(commands: Any) -> None:
    """Without the common options: it has a configuration of its own, and talks to people."""
    sentence = "run the whole journey here, with a database and a model of its own"
    parser = commands.add_parser("demo", help=sentence, description=sentence + ".")
    parser.set_defaults(command=demo.run)
    demo.add_options(parser)


def _add_migrate(commands: Any) -> None:
    group = commands.add_parser("migrate", help="another model, template or chunking, without downtime")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    for name, command, sentence in (
        ("plan", migrate.plan, "say what the configuration changes and what building it anew costs"),
        ("start", migrate.start, "build what the configuration describes beside what answers searches"),
        ("status", migrate.status, "show every generation and whether it is ready"),
        ("switch", migrate.switch, "let the new generation answer searches"),
        ("rollback", migrate.rollback, "let the generation before answer searches again"),
        ("finish", migrate.finish, "remove the generation before; there is no way back"),
        ("abort", migrate.abort, "remove the generation that is being built"),
    ):
        migrate.add_options(_add(actions, name, command, sentence))


def _add_dead_letters(commands: Any) -> None:
    group = commands.add_parser("dead-letters", help="documents that could not be indexed")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    dead_letters.add_filters(_add(actions, "list", dead_letters.list_all, "list them"))
    show = _add(actions, "show", dead_letters.show, "show one with its error")
    show.add_argument("id", type=int, help="number of the dead letter")
    for name, command, sentence in (
        ("replay", dead_letters.replay, "read the rows of one or some again and index them as they are now"),
        ("discard", dead_letters.discard, "forget one or some; their documents stay as they are in the index"),
    ):
        dead_letters.add_choice(_add(actions, name, command, sentence))


def _add_agents(commands: Any) -> None:
    group = commands.add_parser("agents", help="your own agents")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    _add(actions, "list", agents.list_all, "list them, with how far behind they are")
    agents.add_limits(_add(actions, "letters", agents.letters, "list the events that they could not handle"))
    agents.add_letter(_add(actions, "show", agents.show, "show one such event, with all that led to it"))
    agents.add_choice(_add(actions, "replay", agents.replay, "let the agent handle one or all of them again"))
    agents.add_choice(_add(actions, "discard", agents.discard, "forget one or all of them"))


def _add_sagas(commands: Any) -> None:
    group = commands.add_parser("sagas", help="sagas of your agents")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    sagas.add_filters(_add(actions, "list", sagas.list_all, "list them"))
    sagas.add_id(_add(actions, "show", sagas.show, "show one with everything that became of it"))
    for name, command, sentence in (
        ("approve", sagas.approve, "say yes to what a saga waits for"),
        ("reject", sagas.reject, "say no to what a saga waits for: what it did is undone"),
    ):
        parser = _add(actions, name, command, sentence)
        sagas.add_answer(parser)
        parser.add_argument("--step", metavar="NAME", help="only if it waits at this approval")
    sagas.add_answer(_add(actions, "cancel", sagas.cancel, "stop a saga: what it did is undone"))


def _add_slot(commands: Any) -> None:
    group = commands.add_parser("slot", help="our replication slot on the server")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    _add(actions, "show", slot.show, "show the slot and the WAL it keeps")
    drop = _add(actions, "drop", slot.drop, "drop the slot: the server forgets us, the next run must resync")
    drop.add_argument("--yes", action="store_true", help="do not ask")


def _add_token(commands: Any) -> None:
    group = commands.add_parser("token", help="bearer tokens for the HTTP interface")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    token.add_options(_add(actions, "new", token.new, "make a token and the lines of the tokens file that let it in"))


def _add(commands: Any, name: str, command: Command, sentence: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=sentence, description=sentence + ".")
    parser.set_defaults(command=command)
    # Also accepted after the command; SUPPRESS keeps what was said before it.
    _add_common(parser, config=argparse.SUPPRESS, json=argparse.SUPPRESS)
    return parser


def _add_common(parser: argparse.ArgumentParser, *, config: str, json: bool | str) -> None:
    parser.add_argument(
        "-c", "--config", metavar="FILE", default=config, help=f"configuration (CDC_AGENT_CONFIG; {DEFAULT_CONFIG})"
    )
    parser.add_argument("--json", action="store_true", default=json, help="print JSON, for machines")
