"""``--version``: ours, and those of the parts that a report of a fault should name. No heavy one is loaded."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from cdc_agent import __version__

__all__ = ["Version", "versions"]

#: What need not be installed says so instead.
PARTS = ("chromadb", "sentence-transformers", "torch")


class Version(argparse.Action):
    """Prints them, one a line, and ends."""

    def __init__(self, option_strings: Sequence[str], dest: str, **rest: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **rest)

    def __call__(self, parser: argparse.ArgumentParser, *args: object, **rest: object) -> NoReturn:  # noqa: ARG002
        for name, version in versions().items():
            print(name, version)
        parser.exit()


def versions() -> Mapping[str, str]:
    from psycopg import pq

    libpq = pq.version()
    return {
        "cdc-agent": __version__,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "psycopg": _installed("psycopg"),
        "libpq": f"{libpq // 10_000}.{libpq % 10_000}",
    } | {part: _installed(part) for part in PARTS}


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
