"""Documents and chunks: what one row renders to, and the pieces of it that are embedded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Document", "MetadataValue", "document_id", "key_in", "text_hash"]

#: What a vector store takes as metadata.
MetadataValue: TypeAlias = "str | int | float | bool | None"


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What one row of one table renders to.

    ``metadata`` holds the configured columns under their own names; None means the key must be absent in the store.
    """

    document_id: str
    text: str
    metadata: Mapping[str, MetadataValue]


def document_id(table: str, key: tuple[str, ...]) -> str:
    """``schema.table:pk``; composite keys join with commas, so commas and percent signs inside are escaped.

    >>> document_id("public.t", ("a,b", "7"))
    'public.t:a%2Cb,7'
    """
    if len(key) == 1:
        return f"{table}:{key[0]}"
    return f"{table}:" + ",".join(part.replace("%", "%25").replace(",", "%2C") for part in key)


def key_in(document_id: str, table: str, columns: int) -> tuple[str, ...]:
    """The key of ``columns`` parts that a document id was made of.

    >>> key_in("public.t:a%2Cb,7", "public.t", 2)
    ('a,b', '7')
    """
    rest = document_id.removeprefix(f"{table}:")
    if columns == 1:
        return (rest,)
    return tuple(part.replace("%2C", ",").replace("%25", "%") for part in rest.split(","))


def text_hash(text: str) -> bytes:
    """16 bytes that name a text (BLAKE2b)."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
