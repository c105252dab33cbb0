"""Loads the SQL files of this package. Owns their layout; not what the statements mean.

A file holds named blocks. Comment lines under the name say what the block is for and are not sent to the server::

    -- find_slot --
    -- Our slot, if it exists.
    select plugin from pg_replication_slots where slot_name = %(slot)s;
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType

__all__ = ["load", "parse"]

_NAME = re.compile(r"^-- (\w+) --$", re.MULTILINE)


def load(filename: str) -> Mapping[str, str]:
    """Read a file beside this one and return its blocks by name."""
    return parse(resources.files(__package__).joinpath(filename).read_text(encoding="utf-8"))


def parse(text: str) -> Mapping[str, str]:
    """Cut a file at its names. A name that stands twice is an error, for the second block would hide the first."""
    _, *parts = _NAME.split(text)
    names = parts[::2]
    if len(set(names)) < len(names):
        raise ValueError(f"a block name stands twice among {names}")
    return MappingProxyType(dict(zip(names, map(_statement, parts[1::2]), strict=True)))


def _statement(block: str) -> str:
    lines = (line for line in block.splitlines() if not line.lstrip().startswith("--"))
    return "\n".join(lines).strip().removesuffix(";")
