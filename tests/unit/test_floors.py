"""The package has five floors; nothing imports upward, and the ends do not know each other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "cdc_agent"

FLOORS = [
    {
        *("errors", "lsn", "values", "events", "envelope", "cloudevents"),  # 0 words
        *("metrics", "failpoints", "documents"),
        # and what several ends and loops build on: named SQL, visibility, safe files, backoff, what is wrong
        *("queries", "snapshot", "sqlite_file", "sqlite_schema", "retry", "health", "freshness", "tracing"),
    },
    {"source", "stream", "embedding", "vectorstore", "ledger", "journal"},  # 1 ends: one outside system each
    {"agents", "llm", "reactions", "sagas", "webhooks", "feeds", "mqtt"},  # 2 reactions
    {  # 3 loops
        *("capture", "resync", "resync_order", "signals", "verify", "explain", "migrate", "search", "grants"),
        *("identity", "marker", "storekeeper", "tables", "testing"),
    },
    {"config", "daemon", "web", "client", "integrations", "mcp", "cli", "demo"},  # 4 process
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
ENDS = FLOORS[1]

#: In no room: they may be imported from anywhere, and may themselves import nothing of ours but what is named here.
DOORS = {"__init__": set(), "__main__": {"cli"}}

MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_imports_upward(path: Path) -> None:
    # Given a module in its room
    room = room_of(path)

    assert room in FLOOR or room in DOORS, f"{path} stands on no floor: add {room} to FLOORS"

    # When its imports are read, wherever in the file they stand
    imported = set(rooms_imported(path.read_text(), path))

    # Then each of them is on the same floor or below, and an end knows no other end
    for other in imported - {room}:
        assert other in FLOOR, f"{path} imports {other}, which stands on no floor: add it to FLOORS"
        if room in DOORS:
            assert other in DOORS[room], f"{path} is a door and imports {other}"
        else:
            assert FLOOR[other] <= FLOOR[room], f"{path} reaches up to {other}"
            assert not {room, other} <= ENDS, f"the end {room} knows the end {other}"


def test_every_room_stands_on_a_floor() -> None:
    # When all rooms of the package are collected
    rooms = {room_of(path) for path in MODULES}

    # Then each is on the map
    assert rooms - set(FLOOR) - set(DOORS) == set(), "a new room needs a floor: add it to FLOORS here and in DESIGN"


def test_the_architecture_page_shows_every_room_on_its_floor() -> None:
    page = (PACKAGE.parent / "docs" / "ARCHITECTURE.md").read_text()
    there = {room for room in FLOOR if (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").exists()}

    for number, rooms in enumerate(FLOORS):
        shown = re.search(rf"^\| {number} \w+ \| `([a-z_ ]+)`", page, flags=re.MULTILINE)
        assert shown is not None, f"docs/ARCHITECTURE.md has no floor {number}"
        assert set(shown[1].split()) == rooms & there


@pytest.mark.parametrize(
    ("text", "rooms"),
    [
        ("import cdc_agent.web", {"web"}),
        ("import cdc_agent.web.app as app", {"web"}),
        ("from cdc_agent import web, cli", {"web", "cli"}),
        ("from cdc_agent import __version__", set()),
        ("from cdc_agent.web import app", {"web"}),
        ("def f():\n    from cdc_agent.cli import main", {"cli"}),
        ("from . import base", {"stream"}),
        ("from ..ledger.base import Ledger", {"ledger"}),
        ("from .. import ledger", {"ledger"}),
        ("import cdc_agents.other, json", set()),
    ],
)
def test_every_way_to_import_is_seen(text: str, rooms: set[str]) -> None:
    assert set(rooms_imported(text, PACKAGE / "stream" / "sqlite.py")) == rooms


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms_imported(text: str, path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        for name in dotted_names(node, path):
            first, *rest = name.split(".")
            if first == "cdc_agent" and rest and not rest[0].startswith("__"):
                yield rest[0]


def dotted_names(node: ast.AST, path: Path) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [".".join([*origin(node, path), alias.name]) for alias in node.names]
    return []


def origin(node: ast.ImportFrom, path: Path) -> list[str]:
    """The module that ``from`` names, with leading dots resolved against the file's place."""
    named = node.module.split(".") if node.module else []
    if not node.level:
        return named
    package = ["cdc_agent", *path.relative_to(PACKAGE).parts[:-1]]
    return package[: len(package) - node.level + 1] + named
