"""The start-up check of the store: every collection is ours, was built as the configuration says, and is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cdc_agent.documents.model import MetadataValue
from cdc_agent.errors import IdentityMismatch
from cdc_agent.ledger.base import Ledger, Resync
from cdc_agent.vectorstore.base import VectorStore

__all__ = ["first_copies", "marker_of", "open_collections"]


def open_collections(
    store: VectorStore,
    ledger: Ledger,
    fingerprints: Mapping[str, str],
    *,
    model: str,
    dimensions: int,
    tables: Mapping[str, str],
) -> list[Resync]:
    """Open every collection; returns the first copies that are to be made.

    Raises ``IdentityMismatch`` when a collection belongs to another ledger, lost its content, or was built with
    another model, template or chunking than the configuration says.
    """
    wanted: list[Resync] = []
    for name, fingerprint in fingerprints.items():
        marker = marker_of(ledger, model=model, dimensions=dimensions, fingerprint=fingerprint)
        found = store.open_collection(name, dimensions=dimensions, marker=marker)
        _check_marker(name, found, ledger.uuid)
        known = ledger.collection_fingerprint(name)
        if known is None:
            wanted.append(Resync(table=tables[name], collections=(name,), reason="first copy"))
        else:
            _check_known(name, known, fingerprint, store, ledger)
    return wanted


def marker_of(ledger: Ledger, *, model: str, dimensions: int, fingerprint: str) -> dict[str, MetadataValue]:
    """What a collection in the store carries, so that it is known whose it is and how it was built."""
    return {
        "cdc_ledger": ledger.uuid,
        "cdc_model": model,
        "cdc_dimensions": dimensions,
        "cdc_fingerprint": fingerprint,
    }


def _check_marker(name: str, found: Mapping[str, Any], uuid: str) -> None:
    owner = found.get("cdc_ledger")
    if owner != uuid:
        raise IdentityMismatch(
            "STORE_REPLACED",
            f"collection {name} belongs to {'ledger ' + str(owner) if owner else 'somebody else'}, not to this one",
            hint="rename the collection in the config, or delete it in the store if it is yours",
        )


def _check_known(name: str, known: str, fingerprint: str, store: VectorStore, ledger: Ledger) -> None:
    if known != fingerprint:
        raise IdentityMismatch(
            "CONFIG_CHANGED",
            f"collection {name} was built with another model, template, metadata, `where` or chunking",
            hint="put the configuration back, or give the collection a new name: it is built beside the old one",
        )
    if ledger.counts(name)[1] > 0 and store.count(name) == 0:
        raise IdentityMismatch(
            "STORE_REPLACED",
            f"collection {name} is empty, but the ledger has {ledger.counts(name)[1]} chunks in it",
            hint="restore the store; or move state_dir away, drop the slot (cdc-agent slot drop) and start anew",
        )


def first_copies(ledger: Ledger, wanted: Sequence[Resync], fingerprints: Mapping[str, str]) -> None:
    """Record the first copies. In this order a crash in between repeats nothing."""
    running = {name for resync in ledger.resyncs() if resync.open for name in resync.collections}
    for resync in wanted:
        name = resync.collections[0]
        if name not in running:
            ledger.start_resync(resync)
        ledger.save_collection(name, fingerprints[name])
