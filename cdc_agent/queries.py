"""SQL lives in ``.sql`` files, as named blocks: a line ``-- name --``, an optional description, the statement."""

from __future__ import annotations

import re
from importlib import resources

__all__ = ["load"]

_HEADER = re.compile(r"^-- (\w+) --$", re.MULTILINE)


def load(package: str, filename: str) -> dict[str, str]:
    """Read the named blocks of one file of a package."""
    text = resources.files(package).joinpath(filename).read_text(encoding="utf-8")
    parts = _HEADER.split(text)
    return {name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}
