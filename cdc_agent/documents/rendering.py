"""A row becomes text: ``Template`` fills the columns of one row into the configured pattern.

Owns the pattern's syntax and the text form of every value. Which table, which metadata: ``collection``.
"""

from __future__ import annotations

import datetime as dt
import decimal
import json
import re
import uuid
from collections.abc import Mapping
from typing import Any

from cdc_agent.envelope import json_value
from cdc_agent.errors import ConfigError, RenderError
from cdc_agent.events import UNCHANGED

__all__ = ["Template", "json_text", "storable"]

#: One piece of a pattern: an escaped brace, a column in braces, a brace on its own, or plain text.
_PIECE = re.compile(r"(?P<escape>\{\{|\}\})|\{(?P<column>[^{}]*)\}|(?P<brace>[{}])|(?P<plain>[^{}]+)")
_SURROGATE = re.compile("[\ud800-\udfff]")
_HINT = 'write columns in braces, like "{title}\\n\\n{body}", and a brace itself as "{{" or "}}"'


class Template:
    """Columns in braces between plain text; ``{{`` and ``}}`` are the braces themselves.

    A column's name is what stands between the braces, to the letter. Raises ``ConfigError`` for a pattern that is
    malformed or names no column. Equal patterns render equal rows to equal texts, in every process.
    """

    __slots__ = ("_pieces", "columns", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._pieces = tuple(_parse(text))
        self.columns = frozenset(piece for is_column, piece in self._pieces if is_column)
        if not self.columns:
            raise ConfigError(f"the template {text!r} names no column", hint=_HINT)

    def render(self, row: Mapping[str, Any]) -> str:
        """The row as text, without surrounding whitespace. Raises ``RenderError`` for a value that is no text.

        The caller resolves ``UNCHANGED`` values first; meeting one is a ``ValueError``.
        """
        rendered = "".join(_column_text(row, piece) if is_column else piece for is_column, piece in self._pieces)
        return storable(rendered).strip()

    def __eq__(self, other: object) -> bool:
        return self.text == other.text if isinstance(other, Template) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Template({self.text!r})"


def _parse(text: str) -> list[tuple[bool, str]]:
    pieces: list[tuple[bool, str]] = []
    for match in _PIECE.finditer(text):
        if match["brace"]:
            raise ConfigError(
                f"the template {text!r} has a lone {match['brace']!r} at character {match.start() + 1}", hint=_HINT
            )
        if match["column"] is not None:
            pieces.append((True, _column_name(text, match["column"])))
        else:
            pieces.append((False, match["plain"] or match["escape"][0]))
    return pieces


def _column_name(text: str, name: str) -> str:
    if not name.strip():
        raise ConfigError(f"the template {text!r} has empty braces", hint=_HINT)
    if name != name.strip() or any(sign in name for sign in ":!"):
        raise ConfigError(
            f"the template {text!r} has {{{name}}}: only a column's name may stand in braces",
            hint="format specifications are not supported; format the value in a generated column or a view",
        )
    return name


def _column_text(row: Mapping[str, Any], column: str) -> str:
    try:
        return _value_text(row[column], column)
    except KeyError as exc:
        raise RenderError(
            f"the row has no column {column!r}",
            hint=f"does the table still have {column!r}, and does the publication's column list include it?",
        ) from exc
    except UnicodeDecodeError as exc:
        raise RenderError(
            f"column {column!r} holds bytes that are no UTF-8",
            hint="the database's encoding lets them in (SQL_ASCII?); mend the row or leave the column out",
        ) from exc


def _value_text(value: Any, column: str) -> str:  # noqa: PLR0911 (one line per kind of value is a table)
    if value is None:
        return ""
    if value is UNCHANGED:
        raise ValueError(f"column {column!r} is UNCHANGED: resolve it before rendering")
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, decimal.Decimal):
        return format(value, "f") if value.is_finite() else str(value)
    if isinstance(value, int | float | uuid.UUID):
        return str(value)
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        raise RenderError(
            f"column {column!r} is bytea, which is no text",
            hint=f"leave {column!r} out of the template, or keep its text in a column of its own",
        )
    return json_text(value)


def storable(text: str) -> str:
    """The text without what Postgres cannot store but JSON can spell: NUL, and halves of surrogate pairs.

    Neither tokenizers nor stores agree on what these mean, and some refuse the whole batch.
    """
    return _SURROGATE.sub("\ufffd", text.replace("\0", ""))


def json_text(value: Any) -> str:
    """Arrays, JSON and everything without a text form of its own, as JSON; a scalar inside keeps its exact digits."""
    ready = json_value(value)
    return ready if isinstance(ready, str) else json.dumps(ready, ensure_ascii=False)
