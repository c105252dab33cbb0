"""Names what is wrong with a collection in the store, and builds it again where that is allowed.

``STORE_REPLACED``: it is gone, empty, or belongs to another ledger. ``STORE_CORRUPT``: the store answers, but the
collection cannot be read, or what it says is not what was written. Building again is: an empty collection with our
marker, a ledger that counts none of its chunks as live, and a resync of its table, which takes the vectors from the
cache. A collection of somebody else is never touched.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdc_agent import metrics
from cdc_agent.documents.model import MetadataValue
from cdc_agent.errors import IdentityMismatch, VectorStoreError
from cdc_agent.ledger.base import Ledger, Resync
from cdc_agent.marker import marker_of
from cdc_agent.storekeeper.salvage import salvaged
from cdc_agent.storekeeper.sampling import Sampler
from cdc_agent.vectorstore.base import VectorStore
from cdc_agent.vectorstore.records import CollectionDamaged, CollectionMissing, StoreFailing, StoreHungUp
from cdc_agent.vectorstore.watched import damage

__all__ = ["STORE_STATES", "Kept", "StoreGuard", "store_damaged"]

log = logging.getLogger(__name__)

REPLACED, CORRUPT = STORE_STATES = "STORE_REPLACED", "STORE_CORRUPT"
_HINT = "start with CDC_AGENT_SOURCE__ON_MISMATCH=resync: it is built again, and nothing that is unchanged is embedded"
_FOREIGN_HINT = "rename the collection in the config, or delete it in the store if it is yours"
#: A collection that has to be built again more often than this within an hour is not mended but shown.
_REBUILDS_AN_HOUR = 3
_HOUR_S = 3600.0
#: Between two looks at something that may only have moved under the first one.
_PAUSE_S = 0.5
#: Between attempts to remove a damaged collection from a server that hangs up; together longer than a restart takes.
_REMOVAL_PAUSES_S = (1.0, 2.0, 4.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One collection that we keep: its name for ledger and store, its table, and how it is built."""

    name: str
    table: str
    fingerprint: str
    model: str
    dimensions: int

    @property
    def vectors(self) -> str:
        """The name of its model in the embedding cache."""
        return f"{self.model}/{self.dimensions}"


class StoreGuard:
    """Safe to call from several threads. ``open`` before anybody writes a collection, ``mend`` in its writer's thread.

    ``new_life``: this ledger was begun because the one before was lost; ``predecessor`` is that one's uuid, if it is
    known. ``begin_afresh`` puts the whole store aside and returns when an empty one answers (None: it is not ours).
    ``ensure_alone`` raises ``StoreUnavailable`` while another daemon streams from our slot: it may be serving from the
    very collection that we would take.
    """

    def __init__(
        self,
        *,
        store: VectorStore,
        ledger: Ledger,
        mend: bool,
        new_life: bool = False,
        predecessor: str = "",
        begin_afresh: Callable[[], bool] = lambda: False,
        ensure_alone: Callable[[], None] = lambda: None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._mend = mend
        self._new_life = new_life
        self._predecessor = predecessor
        self._begin_afresh = begin_afresh
        self._ensure_alone = ensure_alone
        self._sleep = sleep
        self._clock = clock
        self._lock = threading.RLock()
        self._kept: dict[str, Kept] = {}
        self._samplers: dict[str, Sampler] = {}
        self._rebuilt: dict[str, list[float]] = {}

    def open(self, kept: Kept) -> bool:
        """Open a collection; returns whether nothing of it was ever built. Raises ``IdentityMismatch``."""
        known = self._ledger.collection_fingerprint(kept.name)
        if known not in (None, kept.fingerprint):
            raise IdentityMismatch(
                "CONFIG_CHANGED",
                f"collection {kept.name} was built with another model, template, metadata, `where` or chunking",
                hint="put the configuration back, or build it anew beside the old one: cdc-agent migrate",
            )
        with self._lock:
            self._kept[kept.name] = kept
            self._samplers[kept.name] = Sampler(self._store, self._ledger, kept.name, kept.vectors)
            try:
                self._check(kept, create=True)
            except IdentityMismatch as exc:
                self._answer(kept, exc)
        return known is None

    def forget(self, name: str) -> None:
        """A collection is about to be dropped: nobody looks at it any more once this returns."""
        with self._lock:
            self._kept.pop(name, None)
            self._samplers.pop(name, None)

    def check(self, name: str) -> None:
        """Raise ``IdentityMismatch`` if a collection is not as it must be, or ``StoreUnavailable`` if none can tell."""
        with self._lock:
            kept = self._kept.get(name)
            if kept is not None:
                self._check(kept)

    def mend(self, found: VectorStoreError) -> None:
        """A write found the collection missing or damaged. Raises ``IdentityMismatch`` if it is not to be mended."""
        assert isinstance(found, (CollectionMissing, CollectionDamaged))
        with self._lock:
            state = REPLACED if isinstance(found, CollectionMissing) else CORRUPT
            kept = self._kept.get(found.collection)
            if kept is None:
                raise found
            if state == REPLACED and self._is_back(kept):
                return
            self._answer(kept, IdentityMismatch(state, found.message, hint=_HINT))

    def _is_back(self, kept: Kept) -> bool:
        """A collection that is being renamed is missing for a moment."""
        self._sleep(_PAUSE_S)
        try:
            return self._store.marker(kept.name).get("cdc_ledger") == self._ledger.uuid
        except CollectionMissing:
            return False

    def mend_if_needed(self, name: str) -> bool:
        """Look at a collection that was found to be wrong, in its writer's thread; True if it was built again."""
        with self._lock:
            kept = self._kept.get(name)
            if kept is None:
                return False
            try:
                self._check(kept)
            except IdentityMismatch as exc:
                self._answer(kept, exc)
                return True
        return False

    # -- what is -----------------------------------------------------------------------------------------------

    def _check(self, kept: Kept, *, create: bool = False) -> None:
        try:
            self._look(kept, create=create)
        except (StoreFailing, CollectionMissing, IdentityMismatch):
            # A collection that is being written or renamed can disturb one look.
            self._sleep(_PAUSE_S)
            self._look_again(kept, create=create)

    def _look_again(self, kept: Kept, *, create: bool) -> None:
        try:
            self._look(kept, create=create)
        except StoreFailing as exc:
            self._store.ping()
            found = damage(self._store, kept.name, sleep=self._sleep)
            if not found:
                raise
            raise IdentityMismatch(CORRUPT, f"collection {kept.name}: {found}", hint=_HINT) from exc

    def _look(self, kept: Kept, *, create: bool) -> None:
        try:
            self._look_inside(kept, self._store.count(kept.name), create=create)
        except CollectionMissing as exc:
            if chunks := self._ledger.counts(kept.name)[1]:
                raise IdentityMismatch(
                    REPLACED,
                    f"collection {kept.name} is gone from the store, but the ledger has {chunks} chunks in it",
                    hint=_HINT,
                ) from exc
            # Otherwise whoever writes it next will find that, or drops it right now.
            if create:
                self._opened(kept)

    def _look_inside(self, kept: Kept, count: int, *, create: bool) -> None:
        chunks = self._ledger.counts(kept.name)[1]
        found = self._opened(kept) if create else self._store.marker(kept.name)
        if found.get("cdc_ledger") != self._ledger.uuid:
            raise _Foreign(kept.name, found)
        chunks = min(chunks, self._ledger.counts(kept.name)[1])
        if chunks and not count:
            raise IdentityMismatch(
                REPLACED, f"collection {kept.name} is empty, but the ledger has {chunks} chunks in it", hint=_HINT
            )
        if wrong := damage(self._store, kept.name, sleep=self._sleep) or self._samplers[kept.name].look():
            raise IdentityMismatch(CORRUPT, f"collection {kept.name}: {wrong}", hint=_HINT)

    def _opened(self, kept: Kept) -> dict[str, Any]:
        return self._store.open_collection(kept.name, dimensions=kept.dimensions, marker=self._marker(kept))

    def _marker(self, kept: Kept) -> dict[str, MetadataValue]:
        return marker_of(self._ledger, model=kept.model, dimensions=kept.dimensions, fingerprint=kept.fingerprint)

    # -- what is done about it ---------------------------------------------------------------------------------

    def _answer(self, kept: Kept, exc: IdentityMismatch) -> None:
        """Build the collection again if that is allowed, wanted and not in vain; raise otherwise."""
        metrics.MISMATCH.labels(state=exc.state).set(1)
        if not self._mend or (isinstance(exc, _Foreign) and not self._may_take(kept, exc.marker)):
            raise exc
        now = self._clock()
        recent = [at for at in self._rebuilt.get(kept.name, []) if at > now - _HOUR_S]
        if len(recent) >= _REBUILDS_AN_HOUR:
            raise IdentityMismatch(
                exc.state,
                f"built {_REBUILDS_AN_HOUR} times within an hour, and here again: {exc.message}",
                hint="find out what damages the store; then start again",
            ) from exc
        log.warning("mending state=%s why=%s", exc.state, exc.message)
        if isinstance(exc, _Foreign):
            self._salvage(kept, exc.marker)
        self._rebuild(kept, exc.state)
        self._rebuilt[kept.name] = [*recent, now]

    def _may_take(self, kept: Kept, marker: Mapping[str, Any]) -> bool:
        """Whether a collection with another ledger's marker is ours all the same: of the ledger that was lost, or
        built exactly as ours by a ledger that we had (or have, if an older store was put back)."""
        owner = marker.get("cdc_ledger")
        if not owner:
            return False
        had_life = self._new_life or self._ledger.collection_fingerprint(kept.name) is not None
        was_ours = owner == self._predecessor or (had_life and marker.get("cdc_fingerprint") == kept.fingerprint)
        if was_ours:
            self._ensure_alone()
        return was_ours

    def _salvage(self, kept: Kept, marker: Mapping[str, Any]) -> None:
        if (marker.get("cdc_model"), marker.get("cdc_dimensions")) != (kept.model, kept.dimensions):
            return
        for vectors in salvaged(self._store, kept.name, dimensions=kept.dimensions):
            self._ledger.remember_vectors(kept.vectors, vectors)

    def _rebuild(self, kept: Kept, state: str) -> None:
        """In this order a crash in between is found again, as a collection that is empty or gone."""
        if not (state == CORRUPT and self._begin_afresh()):
            self._recreate(kept)
        else:
            self._opened(kept)
        if self._ledger.collection_fingerprint(kept.name) is not None or self._ledger.counts(kept.name)[0]:
            then = Resync(table=kept.table, collections=(kept.name,), reason=state, started_at=time.time())
            self._ledger.forget_collection(kept.name, then)
        log.warning("mended state=%s collection=%s, its table is read again", state, kept.name)

    def _recreate(self, kept: Kept) -> None:
        """Raises ``StoreUnavailable`` when nobody answers; only a store that goes on to fail at this is damaged."""
        for pause_s in (*_REMOVAL_PAUSES_S, None):
            try:
                self._store.recreate_collection(kept.name, dimensions=kept.dimensions, marker=self._marker(kept))
            except (StoreFailing, StoreHungUp) as exc:
                # Who hangs up may only be restarting.
                if pause_s is None or isinstance(exc, StoreFailing):
                    raise IdentityMismatch(
                        CORRUPT,
                        f"collection {kept.name} is damaged, and cannot even be removed: {exc.message}",
                        hint="put the store's folder away, or give us an empty one",
                    ) from exc
                self._sleep(pause_s)
            else:
                return


def store_damaged(folder: Path) -> IdentityMismatch:
    """The whole store of a folder cannot be opened."""
    return IdentityMismatch(CORRUPT, f"the store in {folder} is damaged: SQLite cannot read it", hint=_HINT)


class _Foreign(IdentityMismatch):
    def __init__(self, name: str, marker: Mapping[str, Any]) -> None:
        owner = marker.get("cdc_ledger")
        super().__init__(
            REPLACED,
            f"collection {name} belongs to {f'ledger {owner}' if owner else 'somebody else'}, not to this one",
            hint=_FOREIGN_HINT,
        )
        self.marker = marker
