"""LIKE and ILIKE: the server's patterns as regular expressions."""

from __future__ import annotations

import re

__all__ = ["folded", "like_regex"]


def folded(text: str) -> str:
    """Lower case character by character, like the server: no character becomes two."""
    return "".join(lower if len(lower := character.lower()) == 1 else character for character in text)


def like_regex(like: str, escape: str) -> re.Pattern[str]:
    """A LIKE pattern as a regular expression. Raises ``ValueError`` for one that ends in its escape character."""
    parts = [""]
    characters = iter(like)
    for character in characters:
        if escape and character == escape:
            follower = next(characters, None)
            if follower is None:
                raise ValueError("has a pattern that ends with its escape character")
            parts[-1] += re.escape(follower)
        elif character == "%":
            parts.append("")
        else:
            parts[-1] += "." if character == "_" else re.escape(character)
    if len(parts) == 1:
        return re.compile(parts[0], re.DOTALL)
    first, *middle, last = parts
    # Between two % the first match is as good as any; saying so keeps the search from trying them all.
    return re.compile(first + "".join(f"(?>.*?{part})" for part in middle) + ".*" + last, re.DOTALL)
