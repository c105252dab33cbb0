"""Settles what looks wrong: it is a defect only if it is wrong while nothing moves.

A first look compares a row with an index that may be behind it, or ahead of it, and with a store that is being written.
So each suspect is looked at again: read the row (snapshot S), wait until everything that S can have seen is in the
index, read manifest and store, read the row once more, wait again, read the manifest once more. What differs then is a
defect if row and manifest were the same both times and S sees the manifest's last transaction: a commit is in the log,
and may be in the index, before any reader sees it. What a whole resync has not brought yet is waited for. All else is
looked at again, and in the end counted as moving.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cdc_agent.events import Row
from cdc_agent.ledger.base import Manifest
from cdc_agent.snapshot import Snapshot
from cdc_agent.verify.comparison import Place, compare
from cdc_agent.verify.defects import Defect, Kind
from cdc_agent.verify.ends import Audited, Ends

__all__ = ["Settled", "Settler", "look"]

#: Looks at one suspect before it counts as moving.
_LOOKS = 5
#: Pause before each further look, in seconds.
_PAUSE_S = 0.3


@dataclass(slots=True)
class Settled:
    """What became of some suspects: what is wrong, documents with a dead letter, and those that never stood still."""

    defects: list[Defect] = field(default_factory=list)
    parked: list[Place] = field(default_factory=list)
    moving: list[Place] = field(default_factory=list)


def look(
    ends: Ends, collections: Mapping[str, Audited], places: Sequence[Place], rows: Mapping[tuple[str, ...], Row]
) -> tuple[dict[Place, Manifest | None], dict[Place, list[Defect]]]:
    """Manifests of documents and what is wrong with them right now, against rows that were read before."""
    manifests: dict[Place, Manifest | None] = {}
    found: dict[Place, list[Defect]] = {}
    for name, own in _by_collection(places).items():
        known = ends.manifests(name, [place.document_id for place in own])
        held = ends.records(name, [c.id for m in known.values() if not m.deleted for c in m.chunks])
        for place in own:
            manifest = manifests[place] = known.get(place.document_id)
            found[place] = compare(collections[name].collection, place, rows.get(place.key), manifest, held)
    return manifests, found


class Settler:
    def __init__(self, ends: Ends, collections: Mapping[str, Audited]) -> None:
        self._ends = ends
        self._collections = collections

    def settle(self, table: str, suspects: Sequence[Place]) -> Settled:
        """Look at documents of one table until each is known to be right, wrong or moving."""
        settled = Settled()
        left = list(dict.fromkeys(suspects))
        for number in range(_LOOKS):
            if not left:
                break
            self._ends.stop.wait(_PAUSE_S * number)
            self._ends.await_copies({place.collection for place in left})
            left = self._look_closely(table, left, settled)
        settled.moving = left
        self._set_parked_aside(settled)
        return settled

    def _look_closely(self, table: str, places: Sequence[Place], settled: Settled) -> list[Place]:
        """One look; returns what moved meanwhile."""
        ends = self._ends
        ends.check_stop()
        snapshot, rows = ends.rows(table, list(dict.fromkeys(place.key for place in places)))
        ends.catch_up()
        manifests, found = look(ends, self._collections, places, rows)
        wrong = [place for place in places if found[place]]
        if not wrong:
            return []
        _, rows_again = ends.rows(table, list(dict.fromkeys(place.key for place in wrong)))
        ends.catch_up()
        # Asked before the last look at the manifests: one that a rebuilding forgot, and that is not back by then, is
        # being copied now.
        copied = ends.being_copied()
        moved = []
        for place in wrong:
            before = manifests[place]
            again = ends.manifests(place.collection, [place.document_id]).get(place.document_id)
            row, row_again = rows.get(place.key), rows_again.get(place.key)
            if (
                before == again
                and place.collection not in copied
                and self._same_row(place, row, row_again)
                and _is_visible(before, Snapshot.parse(snapshot))
            ):
                settled.defects += found[place]
            else:
                moved.append(place)
        return moved

    def _same_row(self, place: Place, before: Row | None, after: Row | None) -> bool:
        if before is None or after is None:
            return before is after
        needed = self._collections[place.collection].collection.spec.needed_columns
        names = needed & before.relation.index.keys() & after.relation.index.keys()
        return all(before.text(name) == after.text(name) for name in names)

    def _set_parked_aside(self, settled: Settled) -> None:
        """What the index could not take is known already; it is no defect of the index."""
        if not settled.defects:
            return
        letters = {
            (name, document)
            for name in {d.collection for d in settled.defects}
            for document in self._ends.ledger.parked(name, [d.document_id for d in settled.defects])
        }
        parked = {(d.collection, d.document_id): d.key for d in settled.defects if _place(d) in letters}
        settled.parked = [Place(collection, document, key) for (collection, document), key in parked.items()]
        settled.defects = [d for d in settled.defects if _place(d) not in parked]


def _place(defect: Defect) -> tuple[str, str]:
    return (defect.collection, defect.document_id)


def _by_collection(places: Sequence[Place]) -> dict[str, list[Place]]:
    grouped: dict[str, list[Place]] = {}
    for place in places:
        grouped.setdefault(place.collection, []).append(place)
    return grouped


def _is_visible(manifest: Manifest | None, snapshot: Snapshot) -> bool:
    """Whether a read in this snapshot has seen all that the manifest was made of."""
    if manifest is None:
        return True
    read_in = Snapshot.parse(manifest.snapshot) if manifest.snapshot is not None else None
    return snapshot.sees(manifest.xid) and (read_in is None or snapshot.not_before(read_in))


class Strays:
    """Settles ids that the store has and nothing names: they may be garbage that is being collected right now."""

    def __init__(self, ends: Ends) -> None:
        self._ends = ends

    def settle(self, collection: str, ids: Sequence[str]) -> list[Defect]:
        left = self._unnamed(collection, ids)
        if left:
            self._ends.catch_up()
            left = self._unnamed(collection, left)
        return [stray(collection, chunk_id) for chunk_id in left]

    def _unnamed(self, collection: str, ids: Sequence[str]) -> list[str]:
        # In this order: garbage is deleted from the store before the ledger forgets it.
        known = self._ends.ledger.known(collection, ids)
        unknown = [chunk_id for chunk_id in ids if chunk_id not in known]
        held = self._ends.records(collection, unknown) if unknown else {}
        return [chunk_id for chunk_id in unknown if chunk_id in held]


def stray(collection: str, chunk_id: str) -> Defect:
    return Defect(
        kind=Kind.ORPHANED_RECORD,
        collection=collection,
        document_id=chunk_id.rpartition("#")[0],
        chunk_id=chunk_id,
        what="nothing names this record",
    )
