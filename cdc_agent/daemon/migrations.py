"""Migrations of a running daemon: begin a new generation, switch to it, go back, finish, abort. One at a time.

The ledger is changed first, in one transaction; memory, store and threads follow, and a start after a crash does what
is left (``migrate.names.settle``, ``complete_drops``). So each operation can be killed anywhere and is then either not
begun or completed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from cdc_agent import metrics
from cdc_agent.config import Config
from cdc_agent.daemon.consumers import STOPPED, Consumers, Served, StillBusy
from cdc_agent.daemon.first_copies import FirstCopies
from cdc_agent.daemon.generations import Embedders, Planned, differences, next_generations
from cdc_agent.daemon.leaving import give_up_place
from cdc_agent.errors import CdcAgentError, StoreUnavailable, UsageError
from cdc_agent.failpoints import hit
from cdc_agent.ledger.base import Generation, Ledger
from cdc_agent.migrate.copying import CopyProgress
from cdc_agent.migrate.names import families, settle, stored_name
from cdc_agent.resync import ResyncRunner
from cdc_agent.retry import Retrier
from cdc_agent.stream.base import Stream
from cdc_agent.vectorstore.base import VectorStore

__all__ = ["Migrations", "complete_drops", "leave_unconfigured", "settle_all"]

log = logging.getLogger(__name__)

#: How long a switch waits for the generation that is to answer to come up with the one that does.
_CATCH_UP_S = 20.0
#: How long searches and writes may be held while it comes up with the last few commits.
_HOLD_S = 1.0
_POLL_S = 0.2


def settle_all(store: VectorStore, generations: Iterable[Generation], uuid: str) -> None:
    """Give every generation its name in the store."""
    unique = {generation.physical: generation for generation in generations}
    for family in families(unique.values()).values():
        settle(store, family, uuid)


def complete_drops(store: VectorStore, ledger: Ledger, stream: Stream) -> None:
    """Drop what was being dropped when we were ended. The names in the store are settled by now."""
    for generation in ledger.generations():
        if generation.state == "dropping":
            _drop(store, ledger, stream, generation)


def leave_unconfigured(config: Config, ledger: Ledger, stream: Stream) -> None:
    """Collections that the configuration names no longer: what they were building goes, and nobody waits for them.

    Their index stays as it is. One that comes back is read again, because changes passed that it was not given.
    """
    names = {collection.name for collection in config.collections}
    kept = [g for g in ledger.generations() if g.state not in ("dropped", "dropping")]
    needed = {g.agent for g in kept if g.collection in names}
    left: dict[str, list[Generation]] = {}
    for generation in kept:
        if generation.collection in names:
            continue
        if generation.state == "live":
            left.setdefault(generation.agent, []).append(generation)
        else:
            ledger.save_generation(replace(generation, state="dropping"))
    for agent, own in left.items():
        if agent not in needed:
            give_up_place(ledger, stream, agent, own)
            continue
        for generation in own:
            ledger.leave_collection(generation)


def _drop(store: VectorStore, ledger: Ledger, stream: Stream, generation: Generation) -> None:
    store.drop_collection(generation.physical)
    hit("migrate_after_store_drop")
    alone = all(
        g.agent != generation.agent or g.physical == generation.physical
        for g in ledger.generations()
        if g.state != "dropped"
    )
    if alone:
        stream.forget(generation.agent)
    ledger.drop_generation(generation, forget_agent=alone)
    if not any(resync.open for resync in ledger.resyncs()):
        # Others may still want vectors that no document uses yet.
        ledger.prune_vectors()
    log.info("generation dropped name=%s", generation.physical)


class Migrations:
    """Operations on generations; each returns the state of the collections that it was about."""

    def __init__(
        self,
        *,
        consumers: Consumers,
        ledger: Ledger,
        stream: Stream,
        store: VectorStore,
        embedders: Embedders,
        resync: ResyncRunner,
        retrier: Retrier,
        copies: FirstCopies,
        serve: Callable[[Planned], Served],
        open_store: Callable[[Served], object],
        forget_store: Callable[[str], None],
        reload: Callable[[], Config],
        tables: frozenset[str],
    ) -> None:
        self._consumers = consumers
        self._ledger = ledger
        self._stream = stream
        self._store = store
        self._embedders = embedders
        self._resync = resync
        self._retrier = retrier
        self._copies = copies
        self._serve = serve
        self._open_store = open_store
        self._forget_store = forget_store
        self._reload = reload
        self._tables = tables
        self._one = threading.Lock()

    # -- operations -------------------------------------------------------------------------------------------

    def start(self, collection: str | None) -> list[dict[str, Any]]:
        """Build what the configuration file describes now, beside what answers searches."""
        with self._one:
            begun = next_generations(self._reload(), self._ledger.generations(), self._embedders, collection)
            for plan in begun:
                self._refuse_new_table(plan.spec.qualified_table)
            for plan in begun:
                self._build(plan)
            return self.status([plan.generation.collection for plan in begun])

    def _refuse_new_table(self, table: str) -> None:
        if table not in self._tables:
            raise UsageError(
                f"table {table} is not followed by this daemon",
                hint="stop it, run cdc-agent migrate start, and start it again",
            )

    def _build(self, plan: Planned) -> None:
        served = self._serve(plan)
        self._ledger.save_generation(plan.generation)
        hit("migrate_after_begin")
        try:
            settle(self._store, [plan.generation], self._ledger.uuid)
            self._open_store(served)
        except CdcAgentError:
            # Nothing of it runs. What is left in the store goes with the next operation, or the next start.
            self._ledger.save_generation(replace(plan.generation, state="dropping"))
            raise
        self._consumers.add(plan.generation.agent, [served])
        self._copies.begin(served)

    def switch(self, collection: str) -> list[dict[str, Any]]:
        """The building generation answers from now on."""
        return self._switch(collection, "building", "there is no new generation: cdc-agent migrate start builds one")

    def rollback(self, collection: str) -> list[dict[str, Any]]:
        """The generation that answered before answers again."""
        return self._switch(collection, "retired", "only what was switched can be rolled back, until it is finished")

    def _switch(self, collection: str, state: str, hint: str) -> list[dict[str, Any]]:
        with self._one:
            old, new = self._one_in(collection, "live", hint), self._one_in(collection, state, hint)
            self._flip(old, new)
            self._settle(collection)
            return self.status([collection])

    def _require_complete(self, served: Served) -> None:
        stopped = [f"{p.name}: {p.message}" for p in self._consumers.problems_of(served) if p.name == STOPPED]
        if stopped:
            raise NotReady(
                f"generation {served.physical} has {'; '.join(stopped)}",
                hint="mend what it says and start the daemon again: it is read again; or cdc-agent migrate abort",
            )
        if reason := _not_complete(self._copies.progress(served)):
            raise NotReady(f"generation {served.physical} is not ready: {reason}", hint="cdc-agent migrate status")

    def _flip(self, old: Served, new: Served) -> None:
        """Change what answers in a moment in which the new generation has all that was said to be there."""
        before, after = self._consumers.watermark_of(old), self._consumers.watermark_of(new)
        deadline = time.monotonic() + _CATCH_UP_S
        while time.monotonic() < deadline:
            self._require_complete(new)
            self._consumers.hurry()
            if not after.wait_lsn(before.applied_lsn, _POLL_S):
                continue
            with before.still() as applied:
                if after.wait_lsn(applied, _HOLD_S) and self._exchange(old, new):
                    log.info("switched from=%s to=%s applied_lsn=%s", old.physical, new.physical, applied)
                    return
        raise NotReady(
            f"generation {new.physical} is behind: it is at {after.applied_lsn}, searches at {before.applied_lsn}",
            hint="wait until cdc-agent migrate status says that it is ready",
        )

    def _exchange(self, old: Served, new: Served) -> bool:
        """False if the new one has just stopped for good."""
        with self._consumers.unless_stopped(new) as working:
            if working:
                self._ledger.switch_generation(old.generation.collection, new.generation.number, time.time())
                hit("migrate_after_flip")
                self._consumers.update(self._ledger.generations())
        return working

    def finish(self, collection: str) -> list[dict[str, Any]]:
        """Remove the generation that answered before; there is no way back."""
        self._refuse_configured(collection)
        return self._remove(collection, "retired", "there is no retired generation: nothing was switched")

    def _refuse_configured(self, collection: str) -> None:
        """After a rollback the configuration still describes what is to go: the next start would find nothing."""
        config = self._reload()
        described = [c for c in config.collections if c.name == collection]
        for served in self._consumers.served:
            generation = served.generation
            if generation.collection != collection or generation.state != "retired" or not described:
                continue
            live = self._one_in(collection, "live", "").generation
            same, also = (differences(g, described[0], config.embedding) == [] for g in (generation, live))
            if same and not also:
                raise UsageError(
                    f"the configuration describes generation {generation.number}, which would be removed",
                    hint="put the configuration of the generation that answers back, or switch again",
                )

    def abort(self, collection: str) -> list[dict[str, Any]]:
        """Remove the generation that is being built."""
        return self._remove(collection, "building", "no generation is being built")

    def _remove(self, collection: str, state: str, hint: str) -> list[dict[str, Any]]:
        with self._one:
            if not self._dropping(collection):
                served = self._one_in(collection, state, hint)
                self._ledger.save_generation(replace(served.generation, state="dropping"))
                hit("migrate_after_dropping")
            for generation in self._dropping(collection):
                self._complete_drop(generation)
            return self.status([collection])

    def _of(self, collection: str) -> list[Generation]:
        return [g for g in self._ledger.generations() if g.collection == collection]

    def _dropping(self, collection: str) -> list[Generation]:
        return [g for g in self._of(collection) if g.state == "dropping"]

    def _complete_drop(self, generation: Generation) -> None:
        for resync in self._ledger.resyncs():
            if resync.open and resync.collections == (generation.physical,):
                self._resync.cancel(resync.id)
        self._consumers.update([generation])
        stream = self._stream
        for served in self._consumers.served:
            if served.physical == generation.physical:
                stream = self._consumers.stream_of(served)
                self._consumers.remove(served)
        self._forget_store(generation.physical)
        # What is dropped is dropped by its name in the store, so that must be known for certain.
        settle_all(self._store, self._of(generation.collection), self._ledger.uuid)
        _drop(self._store, self._ledger, stream, generation)
        self._embedders.keep([s.embedding for s in self._consumers.served])

    def _one_in(self, collection: str, state: str, hint: str) -> Served:
        own = [s for s in self._consumers.served if s.generation.collection == collection]
        if not own:
            names = sorted({s.generation.collection for s in self._consumers.served})
            raise UsageError(f"there is no collection {collection!r}", hint=f"collections here: {', '.join(names)}")
        found = [s for s in own if s.generation.state == state]
        if not found:
            raise UsageError(f"collection {collection} has no generation that is {state}", hint=hint)
        return found[0]

    def _settle(self, collection: str) -> None:
        """Names in the store. Searches do not need them; other readers of the store wait for them."""
        family = families(self._ledger.generations())[collection]
        self._retrier.until_done(
            "vectorstore", lambda: settle(self._store, family, self._ledger.uuid), (StoreUnavailable,)
        )
        hit("migrate_after_rename")

    # -- what is under way ------------------------------------------------------------------------------------

    def tell(self) -> None:
        """Keep the metric fresh; costs nothing while nothing is migrated."""
        for served in self._consumers.served:
            if served.generation.state == "building":
                _measure(served.generation, self._copies.progress(served))

    def status(self, collections: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Every generation of the collections (default: all), JSON-ready."""
        parked = self._ledger.dead_letter_counts()
        resyncs = self._ledger.resyncs()
        found: list[dict[str, Any]] = []
        for served in sorted(self._consumers.served, key=lambda s: (s.generation.collection, s.generation.number)):
            if collections is not None and served.generation.collection not in collections:
                continue
            progress = self._copies.progress(served, resyncs)
            found.append(self._described(served, progress, parked.get(served.physical, 0)))
        return found

    def _described(self, served: Served, progress: CopyProgress, parked: int) -> dict[str, Any]:
        generation = served.generation
        documents, chunks = self._ledger.counts(generation.physical)
        reasons = self._reasons(served, progress) if generation.state != "live" else []
        _measure(generation, progress)
        return {
            "collection": generation.collection,
            "generation": generation.number,
            "state": generation.state,
            "name": generation.physical,
            "stored_as": stored_name(generation),
            "model": served.embedder.model,
            "dimensions": served.embedder.dimensions,
            "documents": documents,
            "chunks": chunks,
            "copy": progress.state,
            "rows_done": progress.rows_done,
            "rows_estimated": progress.rows_estimated,
            "eta_s": progress.eta_s,
            "applied_lsn": str(self._consumers.watermark_of(served).applied_lsn),
            "dead_letters": parked,
            "ready": not reasons,
            "why_not": "; ".join(reasons),
        }

    def _reasons(self, served: Served, progress: CopyProgress) -> list[str]:
        """Why it cannot answer searches yet."""
        reasons = [reason] if (reason := _not_complete(progress)) else []
        reasons += [f"{p.name}: {p.message}" for p in self._consumers.problems_of(served)]
        mark, live = self._consumers.watermark_of(served), self._consumers.watermark
        if mark.offset < live.offset and mark.applied_lsn < live.applied_lsn:
            reasons.append(f"it is {live.offset - mark.offset} changes behind")
        return reasons


def _measure(generation: Generation, progress: CopyProgress) -> None:
    done = 1.0 if progress.state == "done" else progress.rows_done / max(progress.rows_estimated, 1)
    labels = {"collection": generation.collection, "generation": str(generation.number)}
    metrics.GENERATION_PROGRESS.labels(**labels).set(done)


class NotReady(StillBusy):
    """A generation cannot answer searches yet."""


def _not_complete(progress: CopyProgress) -> str:
    match progress.state:
        case "waiting":
            return "its first copy has not begun"
        case "running":
            return f"its first copy is at {progress.rows_done} of about {progress.rows_estimated} rows"
        case "failed":
            return "its first copy was given up: abort it, or cdc-agent resync"
        case _:
            return "a resync of it is running" if progress.busy else ""
