"""One batch of events becomes pending documents by collection, and the progress of resyncs.

Owns which collections an event concerns, which manifest a document had before the batch (the ledger's, or that of a
batch in flight), and what the messages of a resync mean.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import orjson

from cdc_agent.agents.folding import Fold, Pending
from cdc_agent.agents.inflight import InFlight
from cdc_agent.agents.planning import Collection
from cdc_agent.documents.model import document_id
from cdc_agent.events import ChangeEvent, Op
from cdc_agent.ledger.base import Ledger, Manifest, Resync
from cdc_agent.snapshot import Snapshot

__all__ = ["RESYNC_PREFIX", "BatchFolder", "Folded", "Step", "is_read", "is_wide", "split"]

#: Logical messages that carry the progress of a resync.
RESYNC_PREFIX = "cdc_agent.resync"
#: Documents of a wide event that are dealt with at a time.
_WIDE_PAGE = 1_000


@dataclass(slots=True)
class Folded:
    """What a batch comes to."""

    folds: dict[str, Fold] = field(default_factory=dict)
    resyncs: dict[int, Resync] = field(default_factory=dict)


@dataclass(slots=True)
class Step:
    """Some changes, or one wide event; ``reads`` came before it."""

    reads: list[ChangeEvent] = field(default_factory=list)
    changes: list[ChangeEvent] = field(default_factory=list)
    wide: ChangeEvent | None = None


def split(events: Sequence[ChangeEvent]) -> tuple[list[Step], list[ChangeEvent]]:
    """The steps of a batch in order, and the reads behind the last one."""
    steps: list[Step] = []
    reads: list[ChangeEvent] = []
    for event in events:
        if is_wide(event):
            steps.append(Step(reads=reads, wide=event))
            reads = []
        elif is_read(event):
            reads.append(event)
        else:
            if not steps or steps[-1].wide is not None:
                steps.append(Step())
            # Changes overtake reads, so those that came in between may as well have come before.
            steps[-1].reads += reads
            steps[-1].changes.append(event)
            reads = []
    return steps, reads


def is_wide(event: ChangeEvent) -> bool:
    """Whether the event may concern any number of documents: a truncate, or the end of a resync."""
    if event.op is Op.TRUNCATE:
        return True
    return _is_progress(event) and event.message is not None and bool(orjson.loads(event.message[1])["done"])


def is_read(event: ChangeEvent) -> bool:
    """Whether the event is part of a resync: a row, or how far it is."""
    return event.op is Op.READ or _is_progress(event)


def _is_progress(event: ChangeEvent) -> bool:
    """Anybody may write a logical message with our prefix; only ours come with a resync."""
    return event.message is not None and event.message[0] == RESYNC_PREFIX and event.resync_id != 0


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
        self._asked: Resync | None = None
        #: Manifests that were fetched for the batch in hand, by collection and document.
        self._bases: dict[str, dict[str, Manifest | None]] = {}
        self._by_root: dict[int, list[Collection]] = {}
        for collection in collections.values():
            self._by_root.setdefault(root_oids[collection.name], []).append(collection)

    def follow(self, table: str, root_oid: int) -> None:
        """Rows of ``table`` come under this oid from now on; those that came under another one count all the same."""
        self._by_root[root_oid] = [c for c in self._collections.values() if c.table == table]

    def fold(self, events: Sequence[ChangeEvent], due: Mapping[tuple[str, str], Pending]) -> Folded:
        """Fold events on top of the documents that waited and are ``due`` (by collection and id)."""
        folded = Folded()
        for (name, document), pending in due.items():
            self._fold_of(self._collections[name], folded).pending[document] = pending
        self._look_up(events)
        for event in events:
            if event.op is Op.MESSAGE:
                self._message(event, folded)
                continue
            assert event.relation is not None
            resync = self._resync(event.resync_id)
            # Only a whole one asks at its end whom it has met. Some rows may be read before a whole one that waits
            # longer, and must not count as met by it.
            whole = resync is not None and not (resync.keys or resync.predicate)
            for collection in self._by_root.get(event.relation.root_oid, ()):
                if resync is None or collection.name in resync.collections:
                    self._fold_of(collection, folded).change(
                        event, epoch=event.resync_id if whole else 0, rewrite=resync is not None and resync.rewrite
                    )
        return folded

    def collection(self, name: str) -> Collection:
        return self._collections[name]

    def collections_of(self, event: ChangeEvent) -> Sequence[Collection]:
        """Those that are made of the event's table."""
        return self._by_root.get(event.relation.root_oid, ()) if event.relation is not None else ()

    def alone(self, collection: Collection, event: ChangeEvent) -> Pending | None:
        """A document after one change of it alone; None if the index knows that already. Takes nothing back that was
        put off."""
        fold = Fold(
            table=collection.table,
            manifest_of=lambda document: self._manifests(collection.name, [document])[document],
            documents_of=lambda _: (),
        )
        fold.change(event)
        return next((pending for pending in fold.pending.values() if pending.touched), None)

    def fold_wide(self, event: ChangeEvent) -> Iterator[tuple[Folded, bool]]:
        """Fold a wide event page by page: each page is to be handed over before the next is asked for. Says of each
        whether it is the last. The event counts as dealt with after that one only, and may be begun anew before."""
        waiting: Folded | None = None
        for page in self._truncated(event) if event.op is Op.TRUNCATE else self._swept(event):
            if waiting is not None:
                yield waiting, False
            waiting = page
        last = waiting or Folded()
        if event.op is not Op.TRUNCATE:
            self._message(event, last)
        yield last, True

    def _truncated(self, event: ChangeEvent) -> Iterator[Folded]:
        assert event.relation is not None
        oid = event.relation.oid
        for collection in self._by_root.get(event.relation.root_oid, ()):
            name = collection.name
            in_flight = self._in_flight.documents_of(name, oid)
            listed = functools.partial(self._ledger.documents_of_relation, name, oid)
            for documents in self._pages(name, in_flight, listed):
                folded = Folded()
                fold = self._fold_of(collection, folded)
                fold.documents_of = lambda _, documents=documents: documents  # type: ignore[misc]
                fold.change(event)
                yield folded

    def _swept(self, event: ChangeEvent) -> Iterator[Folded]:
        """Documents that a whole resync never met are gone from the table."""
        found = self._open(event.resync_id)
        if found is None or found.keys or found.predicate or event.message is None:
            return
        since = Snapshot.parse(orjson.loads(event.message[1])["since"])
        for collection in (self._collections[name] for name in found.collections if name in self._collections):
            name = collection.name
            in_flight = [m.document_id for m in self._in_flight.live(name)]
            listed = functools.partial(self._ledger.unseen, name, event.resync_id)
            for documents in self._pages(name, in_flight, listed):
                folded = Folded()
                fold = self._fold_of(collection, folded)
                for document in documents:
                    fold.gone(document, event, since=since, epoch=event.resync_id)
                yield folded

    def _pages(self, name: str, in_flight: Sequence[str], listed: Callable[..., list[str]]) -> Iterator[list[str]]:
        """Documents in flight or put off first, then those of the ledger: what the writer flips meanwhile leaves the
        overlay only when the ledger has it."""
        first = list(dict.fromkeys([*self._waiting(name), *in_flight]))
        for place in range(0, len(first), _WIDE_PAGE):
            yield self._fetched(name, first[place : place + _WIDE_PAGE])
        known, after = set(first), ""
        while page := listed(after=after, limit=_WIDE_PAGE):
            after = page[-1]
            yield self._fetched(name, [document for document in page if document not in known])

    def _fetched(self, name: str, documents: list[str]) -> list[str]:
        self._bases = {name: self._manifests(name, documents)}
        return documents

    def _look_up(self, events: Sequence[ChangeEvent]) -> None:
        """Fetch the manifests of all rows that were read at once. Only this thread adds to what is in flight, so they
        stay right until the batch is handed over."""
        wanted: dict[str, dict[str, None]] = {}
        for event in events:
            if event.op is Op.READ and event.relation is not None and event.after is not None:
                key = event.after.key()
                for collection in self._by_root.get(event.relation.root_oid, ()) if key else ():
                    wanted.setdefault(collection.name, {})[document_id(collection.table, key or ())] = None
        self._bases = {name: self._manifests(name, list(documents)) for name, documents in wanted.items()}

    def _manifests(self, name: str, documents: Sequence[str]) -> dict[str, Manifest | None]:
        # In this order: what the writer flips meanwhile leaves the overlay only when the ledger has it.
        in_flight = self._in_flight.manifests(name, documents)
        in_ledger = self._ledger.manifests(name, [d for d in documents if d not in in_flight])
        return {d: in_flight.get(d) or in_ledger.get(d) for d in documents}

    def _resync(self, resync_id: int) -> Resync | None:
        """What was asked for; that never changes. None for what is no read of a resync, or of a forgotten one."""
        if resync_id == 0:
            return None
        if self._asked is None or self._asked.id != resync_id:
            self._asked = self._ledger.resync(resync_id)
        return self._asked

    def _fold_of(self, collection: Collection, folded: Folded) -> Fold:
        fold = folded.folds.get(collection.name)
        if fold is None:
            name = collection.name
            fold = folded.folds[name] = Fold(
                table=collection.table,
                manifest_of=functools.partial(self._manifest, name),
                documents_of=lambda _: (),
                resume=functools.partial(self._resume, name),
            )
        return fold

    def _manifest(self, collection: str, document: str) -> Manifest | None:
        fetched = self._bases.get(collection, {})
        if document in fetched:
            return fetched[document]
        return self._manifests(collection, [document])[document]

    def _message(self, event: ChangeEvent, folded: Folded) -> None:
        """A page of a resync ended here: remember how far it is."""
        if not _is_progress(event) or event.message is None:
            return
        found = folded.resyncs.get(event.resync_id) or self._open(event.resync_id)
        if found is None or not any(name in self._collections for name in found.collections):
            return
        body = orjson.loads(event.message[1])
        for collection in (self._collections[name] for name in found.collections if name in self._collections):
            fold = self._fold_of(collection, folded)
            for key in body.get("absent", ()):
                fold.absent(event, tuple(key))
        folded.resyncs[found.id] = replace(
            found,
            last_key=tuple(body["last_key"]) if body["last_key"] else found.last_key,
            rows_done=body["rows_done"],
            state="done" if body["done"] else "running",
            finished_at=self._wall_clock() if body["done"] else None,
        )

    def _open(self, resync_id: int) -> Resync | None:
        found = self._ledger.resync(resync_id)
        return found if found is not None and found.open else None
