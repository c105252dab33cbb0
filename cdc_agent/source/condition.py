"""Whether a text is one SQL condition, so that it can stand in parentheses behind ``where`` and mean nothing else.

What it says is for the server to judge. Here only its edges are: it cannot end its parentheses, its statement or the
line after it. Follows Postgres' lexical rules with ``standard_conforming_strings`` on.
https://www.postgresql.org/docs/current/sql-syntax-lexical.html
"""

from __future__ import annotations

import re

from cdc_agent.errors import UsageError

__all__ = ["check_condition"]

_HINT = "an example: created_at > now() - interval '1 day'"
#: In this order: what is skipped as a whole, and what counts.
_TOKEN = re.compile(
    r"""(?P<string>'(?:[^']|'')*')
      | (?P<name>"(?:[^"]|"")*")
      | (?P<refused>--|/\*|;|\\|['"]|\$[A-Za-z_\x80-\uffff0-9]*\$?)
      | (?P<word>[A-Za-z_\x80-\uffff][A-Za-z0-9_$\x80-\uffff]*&?)
      | (?P<open>[(\[])
      | (?P<close>[)\]])""",
    re.VERBOSE,
)
#: Prefixes that give a quote other rules.
_PREFIXES = frozenset({"e", "u&"})


def check_condition(text: str) -> None:
    """Raise ``UsageError`` unless ``text`` stays within its own edges."""
    if not text.strip() or "\0" in text:
        raise UsageError("the condition is empty", hint=_HINT)
    depth, before = 0, None
    for token in _TOKEN.finditer(text):
        kind, found = token.lastgroup, token.group()
        if kind in ("string", "name") and before is not None and before.end() == token.start():
            _refuse_prefix(before)
        if kind == "refused":
            raise UsageError(f"the condition must do without {found!r} outside of quotes", hint=_HINT)
        depth += (kind == "open") - (kind == "close")
        if depth < 0:
            break
        before = token
    if depth != 0:
        raise UsageError("the condition has a parenthesis without its other half", hint=_HINT)


def _refuse_prefix(before: re.Match[str]) -> None:
    if before.lastgroup == "word" and before.group().lower() in _PREFIXES:
        raise UsageError(f"the condition must do without {before.group()}'…' strings", hint="write them plainly: '…'")
