"""Path patterns: ``*`` and ``?`` within one name, ``**`` over any number of folders. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["path_filter"]

_PIECE = re.compile(r"\*\*/|\*\*|\*|\?|[^*?]+")
_MEANING = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def path_filter(patterns: Sequence[str]) -> re.Pattern[str]:
    """Matches (``fullmatch``) exactly the paths that one of ``patterns`` describes.

    >>> bool(path_filter(["docs/**/*.md"]).fullmatch("docs/a.md"))
    True
    """
    return re.compile("|".join(f"(?:{_translated(pattern)})" for pattern in patterns), re.DOTALL)


def _translated(pattern: str) -> str:
    return "".join(_MEANING.get(piece) or re.escape(piece) for piece in _PIECE.findall(pattern.lstrip("/")))
