"""What a command prints: JSON for machines, plain lines for pipes, colour and tables on a terminal."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from cdc_agent.errors import CdcAgentError

__all__ = ["human_bytes", "print_error", "print_json", "print_mapping", "print_table", "wants_json"]


def wants_json(args: argparse.Namespace) -> bool:
    return bool(args.json)


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def print_error(error: CdcAgentError) -> None:
    """Two lines on standard error; never a traceback."""
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on a terminal, tab-separated lines otherwise."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            print("\t".join(_one_line(cell) for cell in row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(Text(_one_line(cell)) for cell in row))
    Console().print(table)


def print_mapping(values: Mapping[str, Any], indent: int = 0) -> None:
    """``key: value`` lines; mappings and lists go below their key."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            print(f"{' ' * indent}{key}:")
            print_mapping(value, indent + 2)
        elif isinstance(value, list) and value:
            print(f"{' ' * indent}{key}:")
            _print_items(value, indent + 2)
        else:
            print(f"{' ' * indent}{key}: {'-' if value in (None, '', [], {}) else value}")


def human_bytes(size: int | None) -> str:
    """``3.4 MiB``; ``-`` for None."""
    if size is None:
        return "-"
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(amount) < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def _print_items(items: Sequence[Any], indent: int) -> None:
    for item in items:
        line = ", ".join(f"{k}={v}" for k, v in item.items()) if isinstance(item, Mapping) else item
        print(f"{' ' * indent}- {line}")


def _one_line(cell: object) -> str:
    return " ".join(str(cell).split())
