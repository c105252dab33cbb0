"""Names of tables as people write them: ``articles``, ``cms.articles``, ``"odd.schema"."odd name"``. Pure.

Names are taken exactly as written, upper case included: Postgres folds unquoted names in SQL, but this is no SQL, and
the columns in ``text`` and ``metadata`` are exact too.
"""

from __future__ import annotations

import re

from cdc_agent.config.problems import wrong

__all__ = ["parse_table"]

_PART = r'("(?:[^"]|"")+"|[^".]+)'
_NAME = re.compile(rf"(?:{_PART}\.)?{_PART}")
#: NAMEDATALEN - 1, in bytes.
_MAX_BYTES = 63


def parse_table(text: str) -> tuple[str, str]:
    """Schema and table without quotes; ``public`` when no schema is named."""
    match = _NAME.fullmatch(text)
    if match is None:
        raise wrong(
            f"{text!r} is not the name of a table",
            hint='write schema.table, and "quotes" around a part that contains a dot: "my.schema"."my.table"',
        )
    schema, table = _unquoted(match[1] or "public"), _unquoted(match[2])
    for part in (schema, table):
        if len(part.encode()) > _MAX_BYTES or part != part.strip() or "\0" in part:
            raise wrong(f"{part!r} cannot be a name in Postgres", hint="names have up to 63 bytes; check for blanks")
    return schema, table


def _unquoted(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part
