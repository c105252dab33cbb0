"""docs/CLI.md describes every command and option, and no other."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdc_agent.cli.parser import build_parser

PAGE = (Path(__file__).parents[2] / "docs" / "CLI.md").read_text()
COMMON = {"-h", "--help", "-c", "--config", "--json"}


def leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for group in groups:
        for child in group.choices.values():
            yield from leaves(child)
    if not groups:
        yield parser


COMMANDS = {parser.prog: parser for parser in leaves(build_parser())}


def section(command: str) -> str:
    """The part of the page under the command's heading."""
    match = re.search(rf"^## {re.escape(command)}\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert match is not None, f"docs/CLI.md has no section '## {command}'"
    return match[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_describes_the_command_and_its_options(command: str) -> None:
    text = section(command)

    for action in COMMANDS[command]._actions:
        for name in action.option_strings or [action.dest]:
            if name not in COMMON:
                assert re.search(rf"^\| .*`{re.escape(name)}[ `]", text, flags=re.MULTILINE), f"{command} {name}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_help_sentence(command: str) -> None:
    for action in COMMANDS[command]._actions:
        assert action.help, f"{command} {action.dest}"


def test_the_common_options_are_described() -> None:
    for name in COMMON:
        assert f"`{name}" in PAGE


def test_the_page_describes_nothing_that_does_not_exist() -> None:
    assert set(re.findall(r"^## (.+)$", PAGE, flags=re.MULTILINE)) == set(COMMANDS)
    for command, parser in COMMANDS.items():
        known = {name for action in parser._actions for name in (*action.option_strings, action.dest)}
        for name in re.findall(r"^\| `([a-z-]+)", section(command), flags=re.MULTILINE):
            assert name in known, f"{command} {name}"
