"""``completion``: a script that teaches a shell our commands and options, made from the parser and so never old."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from cdc_agent.cli.output import print_json, wants_json

__all__ = ["SHELLS", "add_options", "run"]

SHELLS = ("bash", "zsh", "fish")
#: Options whose value is a path.
_PATHS = {"config": "FILE", "file": "FILE", "state_dir": "DIRECTORY"}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="for which shell: bash, zsh or fish")


def run(args: argparse.Namespace) -> int:
    # Needed here alone.
    import shtab

    from cdc_agent.cli.parser import build_parser

    parser = build_parser()
    for action in _actions(parser):
        kind = _PATHS.get(action.dest)
        if kind is not None and action.option_strings:
            action.complete = getattr(shtab, kind)  # type: ignore[attr-defined]
    script = shtab.complete(parser, args.shell)
    if wants_json(args):
        print_json({"shell": args.shell, "script": script})
    else:
        print(script)
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _actions(child)
