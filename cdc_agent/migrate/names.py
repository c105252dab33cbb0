"""What generations are called: in the ledger for ever the same, in the store by what they are to readers.

The live generation has the collection's configured name in the store, so that other readers of the store find it; all
others are called ``<collection>.g<number>``. Which is which is read from the marker in the store, never from a name, so
that an interrupted renaming goes on from any point.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cdc_agent.errors import StoreRejected
from cdc_agent.failpoints import hit
from cdc_agent.ledger.base import Generation
from cdc_agent.vectorstore.base import VectorStore

__all__ = ["agent_of", "families", "feed_agent_of", "follows_feed", "physical_name", "settle", "stored_name"]

log = logging.getLogger(__name__)

_FEED = "feed:"


def physical_name(collection: str, number: int) -> str:
    """The name in manifests. ``@`` cannot stand in a configured name, so nothing else can be called so."""
    return collection if number == 1 else f"{collection}@{number}"


def agent_of(physical: str) -> str:
    """The consumer of the stream that builds and keeps a later generation."""
    return f"indexer:{physical}"


def feed_agent_of(physical: str) -> str:
    """The consumer that builds and keeps a generation of a feed's documents: it reads that feed's stream."""
    return f"{_FEED}{physical}"


def follows_feed(agent: str) -> bool:
    return agent.startswith(_FEED)


def stored_name(generation: Generation) -> str:
    """The name in the store that it is to have now."""
    return generation.collection if generation.state == "live" else _set_aside(generation)


def _set_aside(generation: Generation) -> str:
    return f"{generation.collection}.g{generation.number}"


def families(generations: Iterable[Generation]) -> dict[str, list[Generation]]:
    """Generations that still have a place in the store, by collection."""
    found: dict[str, list[Generation]] = {}
    for generation in generations:
        if generation.state != "dropped":
            found.setdefault(generation.collection, []).append(generation)
    return found


def settle(store: VectorStore, family: Sequence[Generation], uuid: str) -> None:
    """Give every generation of one collection the name that is due to it, and tell the store what we call it.

    The name of the live one is free once all others have left it. Repeating this changes nothing.
    """
    stored = store.stored()
    for generation in sorted(family, key=lambda g: g.state == "live"):
        wanted = stored_name(generation)
        actual = _found(stored, generation, uuid)
        store.alias(generation.physical, actual or wanted)
        if actual is None or actual == wanted:
            continue
        hit("migrate_before_rename")
        _rename(store, generation.physical, wanted)
        log.info("renamed in the store generation=%s from=%s to=%s", generation.physical, actual, wanted)


def _rename(store: VectorStore, physical: str, wanted: str) -> None:
    try:
        store.rename_collection(physical, wanted)
    except StoreRejected:
        _evict(store, wanted)
        store.rename_collection(physical, wanted)


def _evict(store: VectorStore, name: str) -> None:
    """Somebody who looked the name up while nobody had it made a collection of it: that one holds nothing, and goes."""
    squatter = f"{name} of somebody else"
    store.alias(squatter, name)
    if store.count(squatter):
        raise StoreRejected(
            f"the store has a collection {name} that is not ours", hint="rename it or delete it, then start again"
        )
    store.drop_collection(squatter)
    log.warning("removed an empty collection that had our name name=%s", name)


def _found(stored: Mapping[str, Mapping[str, Any]], generation: Generation, uuid: str) -> str | None:
    """Under which of its two names the generation lies in the store."""
    ours = {"cdc_ledger": uuid, "cdc_fingerprint": generation.fingerprint}
    for name in (generation.collection, _set_aside(generation)):
        marker = stored.get(name, {})
        if all(marker.get(key) == value for key, value in ours.items()):
            return name
    return None
