"""One batch of events becomes pending documents by collection, and the progress of resyncs.

Owns which collections an event concerns, which manifest a document had before the batch (the ledger's, or that of a
batch in flight), and what the messages of a resync mean.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import orjson

from cdc_agent.agents.folding import Fold, Pending
from cdc_agent.agents.inflight import InFlight
from cdc_agent.agents.planning import Collection
from cdc_agent.events import ChangeEvent, Op
from cdc_agent.ledger.base import Ledger, Manifest, Resync
from cdc_agent.snapshot import Snapshot

__all__ = ["RESYNC_PREFIX", "BatchFolder", "Folded"]

#: Logical messages that carry the progress of a resync.
RESYNC_PREFIX = "cdc_agent.resync"


@dataclass(slots=True)
class Folded:
    """What a batch comes to."""

    folds: dict[str, Fold] = field(default_factory=dict)
    resyncs: dict[int, Resync] = field(default_factory=dict)


#: Takes back a document of a collection that was put off; None if it was not.
Resume = Callable[[str, str], "Pending | None"]
#: Ids of the documents of a collection that were put off.
Waiting = Callable[[str], Sequence[str]]


class BatchFolder:
    """Folds batches; ``resume`` and ``waiting`` lead to documents that were put off."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        in_flight: InFlight,
        collections: Mapping[str, Collection],
        root_oids: Mapping[str, int],
        resume: Resume,
        waiting: Waiting,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._in_flight = in_flight
        self._collections = collections
        self._resume = resume
        self._waiting = waiting
        self._wall_clock = wall_clock
        self._by_root: dict[int, list[Collection]] = {}
        for collection in collections.values():
            self._by_root.setdefault(root_oids[collection.name], []).append(collection)

    def fold(self, events: Sequence[ChangeEvent], due: Mapping[tuple[str, str], Pending]) -> Folded:
        """Fold events on top of the documents that waited and are ``due`` (by collection and id)."""
        folded = Folded()
        for (name, document_id), pending in due.items():
            self._fold_of(self._collections[name], folded).pending[document_id] = pending
        for event in events:
            if event.op is Op.MESSAGE:
                self._message(event, folded)
                continue
            assert event.relation is not None
            for collection in self._by_root.get(event.relation.root_oid, ()):
                self._fold_of(collection, folded).change(event, epoch=event.resync_id)
        return folded

    def _fold_of(self, collection: Collection, folded: Folded) -> Fold:
        fold = folded.folds.get(collection.name)
        if fold is None:
            name = collection.name
            fold = folded.folds[name] = Fold(
                table=collection.table,
                manifest_of=functools.partial(self._manifest, name),
                documents_of=functools.partial(self._documents, name),
                resume=functools.partial(self._resume, name),
            )
        return fold

    def _manifest(self, collection: str, document_id: str) -> Manifest | None:
        pending = self._in_flight.manifest(collection, document_id)
        if pending is not None:
            return pending
        return self._ledger.manifests(collection, [document_id]).get(document_id)

    def _documents(self, collection: str, relation_oid: int) -> list[str]:
        # In this order: what the writer flips meanwhile leaves the overlay only when the ledger has it.
        in_flight = self._in_flight.documents_of(collection, relation_oid)
        in_ledger = self._ledger.documents_of_relation(collection, relation_oid)
        return [*in_ledger, *in_flight, *self._waiting(collection)]

    def _message(self, event: ChangeEvent, folded: Folded) -> None:
        """A page of a resync ended here: remember how far it is; at its end, what it never met is gone."""
        if event.message is None or event.message[0] != RESYNC_PREFIX or event.resync_id == 0:
            return
        found = folded.resyncs.get(event.resync_id) or self._running(event.resync_id)
        if found is None:
            return
        body = orjson.loads(event.message[1])
        for collection in (self._collections[name] for name in found.collections if name in self._collections):
            fold = self._fold_of(collection, folded)
            for key in body.get("absent", ()):
                fold.absent(event, tuple(key))
            if body["done"] and not found.keys:
                self._sweep_out(collection, fold, event, Snapshot.parse(body["since"]))
        folded.resyncs[found.id] = replace(
            found,
            last_key=tuple(body["last_key"]) if body["last_key"] else found.last_key,
            rows_done=body["rows_done"],
            state="done" if body["done"] else "running",
            finished_at=self._wall_clock() if body["done"] else None,
        )

    def _running(self, resync_id: int) -> Resync | None:
        return next((r for r in self._ledger.resyncs(running_only=True) if r.id == resync_id), None)

    def _sweep_out(self, collection: Collection, fold: Fold, event: ChangeEvent, since: Snapshot) -> None:
        """Documents that a whole resync never met are gone from the table."""
        name = collection.name
        # In this order: what the writer flips meanwhile leaves the overlay only when the ledger has it.
        in_flight = [m.document_id for m in self._in_flight.live(name)]
        in_ledger = [m.document_id for m in self._ledger.unseen(name, event.resync_id)]
        for document_id in dict.fromkeys([*fold.pending, *self._waiting(name), *in_flight, *in_ledger]):
            fold.gone(document_id, event, since=since, epoch=event.resync_id)
