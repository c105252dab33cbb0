"""Compares the whole store with the whole table: the claim at the end that no other claim can replace.

Independent of the ledger and of the chunker: chunks without overlap hold every character of their document but
whitespace, so a document's chunks in their order, whitespace aside, must spell exactly what its row renders to.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from cdc_agent.documents.collection import CollectionSpec
from cdc_agent.documents.model import document_id
from cdc_agent.vectorstore.base import Record, VectorStore

__all__ = ["differences", "settled_differences", "stored_records"]

#: Old chunks are deleted just after their successors became visible.
_SETTLE_S = 10.0


def settled_differences(store: VectorStore, spec: CollectionSpec, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is different, after a moment's patience for deletes that are under way."""
    deadline = time.monotonic() + _SETTLE_S
    while True:
        found = differences(spec, rows, stored_records(store, spec.name))
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def stored_records(store: VectorStore, collection: str) -> list[Record]:
    return [record for page in store.ids(collection) for record in store.get(collection, page)]


def differences(spec: CollectionSpec, rows: Sequence[Mapping[str, Any]], records: Iterable[Record]) -> list[str]:
    """One sentence for each document that the store holds otherwise than the table, or that only one of them has."""
    by_id = {document_id(spec.qualified_table, (str(row["id"]),)): row for row in rows}
    chunks = _by_document(records)
    found = [f"{name} is in the store but not in the table" for name in chunks.keys() - by_id.keys()]
    for name, row in by_id.items():
        if fault := _fault(spec, row, name, chunks.get(name, [])):
            found.append(f"{name} {fault}")
    return sorted(found)


def _by_document(records: Iterable[Record]) -> dict[str, list[Record]]:
    ordered = sorted(records, key=lambda record: (str(record.metadata["cdc_doc"]), record.metadata["cdc_chunk"] or 0))
    return {name: list(group) for name, group in groupby(ordered, key=lambda record: str(record.metadata["cdc_doc"]))}


def _fault(spec: CollectionSpec, row: Mapping[str, Any], name: str, chunks: Sequence[Record]) -> str:
    wanted = spec.render(row, name)
    if not chunks:
        return "is missing in the store"
    if [chunk.metadata["cdc_chunk"] for chunk in chunks] != list(range(len(chunks))):
        return f"has chunks {[chunk.metadata['cdc_chunk'] for chunk in chunks]}"
    if _letters("".join(chunk.text for chunk in chunks)) != _letters(wanted.text):
        return "has another text in the store"
    if any(_own_metadata(chunk) != dict(wanted.metadata) for chunk in chunks):
        return f"has other metadata in the store than {dict(wanted.metadata)}"
    return ""


def _letters(text: str) -> str:
    return "".join(text.split())


def _own_metadata(chunk: Record) -> dict[str, Any]:
    return {key: value for key, value in chunk.metadata.items() if not key.startswith("cdc_")}
