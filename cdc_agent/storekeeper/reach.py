"""Can every chunk be found? Searches for each with its own vector, and has those written anew that no search shows.

Chroma's index is a graph in which deleted records stay, hidden. What is written after a large deletion may be linked to
those alone, and be lost to every search, while it is still read by its id: a table that is truncated and filled again
can lose most of its documents so. Nothing but searching tells.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cdc_agent import metrics
from cdc_agent.documents.model import key_in
from cdc_agent.errors import CdcAgentError
from cdc_agent.ledger.base import Ledger, Resync
from cdc_agent.vectorstore.base import VectorStore
from cdc_agent.vectorstore.finding import unfound
from cdc_agent.vectorstore.records import pages
from cdc_agent.vectorstore.wear import Wear

__all__ = ["REASON", "Reach", "Reached"]

log = logging.getLogger(__name__)

#: Why the rows of lost documents are read again.
REASON = "unfindable"
#: How often it is looked whether a pass is due.
_PAUSE_S = 0.5
#: A pass is due when so many records were deleted, and no fewer than this share of what there is.
_WORN, _WORN_SHARE = 100, 0.05
#: And when nothing was written for so long, or this long after it became due all the same.
_CALM_S, _LATEST_S = 2.0, 60.0
#: Documents that one page of a pass looks at, and chunks that the first look of a life does.
_PAGE, _SAMPLE = 100, 100
#: Chunks that one call of the store searches for: a document may have any number.
_SEARCHES_PER_CALL = 100
#: Pause after a pass that broke off.
_AFTER_FAILURE_S = 5.0
#: A pass rests so many times as long as a page of it took: searches of others come first.
_REST = 4.0
#: What was written anew is looked at again after the first of these, then after twice as long, up to the second.
_FIRST_AGAIN_S, _LAST_AGAIN_S = 1.0, 3600.0
#: Rows that one resync reads by key.
_KEYS_AT_A_TIME = 500


@dataclass(frozen=True, slots=True)
class Reached:
    """A collection that is looked after: its name in ledger and store, and the table its documents come from."""

    name: str
    table: str


@dataclass(slots=True)
class _State:
    #: Whether some of its chunks were searched for in this life.
    sampled: bool = False
    #: What ``Wear`` had counted when the last pass began.
    deleted: int = 0
    due_since: float | None = None
    #: Passes in a row that found something, and when the next one may begin.
    found_in_a_row: int = 0
    not_before: float = 0.0


class Reach:
    """The body of one thread. ``key_columns`` says of how many columns the key of a table is made."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        store: VectorStore,
        wear: Wear,
        collections: Callable[[], Sequence[Reached]],
        key_columns: Callable[[str], int],
        request: Callable[[Resync], object],
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._wear = wear
        self._collections = collections
        self._key_columns = key_columns
        self._request = request
        self._stop = stop
        self._clock = clock
        self._states: dict[str, _State] = {}

    def run(self) -> None:
        """Until stopped. What fails is tried again later: whoever writes to the store says what is wrong with it."""
        while not self._stop.wait(_PAUSE_S):
            for one in self._collections():
                try:
                    self.look_after(one)
                except CdcAgentError as exc:
                    log.debug("reach not examined collection=%s error=%s", one.name, exc.message)

    def look_after(self, one: Reached) -> None:
        """Examine a collection if that is due."""
        state = self._states.setdefault(one.name, _State())
        if self._clock() < state.not_before:
            return
        if not state.sampled:
            self._first_look(one.name, state)
        if self._is_due(one.name, state):
            state.not_before = self._clock() + _AFTER_FAILURE_S
            self._pass(one, state)

    def _first_look(self, name: str, state: _State) -> None:
        """The life before may have ended between a deletion and the pass that was due then."""
        state.not_before = self._clock() + _AFTER_FAILURE_S
        if self._sampled(name):
            state.due_since = self._clock()
        state.sampled, state.not_before = True, self._clock()

    def _is_due(self, name: str, state: _State) -> bool:
        now = self._clock()
        if state.due_since is None and self._is_worn(name, state):
            state.due_since = now
        if state.due_since is None or self._is_mending(name):
            return False
        return self._wear.calm_s(name) >= _CALM_S or now >= state.due_since + _LATEST_S

    def _is_worn(self, name: str, state: _State) -> bool:
        deleted = self._wear.deleted(name) - state.deleted
        return deleted >= _WORN and deleted >= _WORN_SHARE * self._ledger.counts(name)[1]

    def _is_mending(self, name: str) -> bool:
        running = self._ledger.resyncs(running_only=True)
        return any(resync.reason == REASON and name in resync.collections for resync in running)

    def _pass(self, one: Reached, state: _State) -> None:
        deleted, lost, after = self._wear.deleted(one.name), 0, ""
        while documents := self._ledger.documents_after(one.name, after, _PAGE):
            began = self._clock()
            found = self.lost(one.name, documents)
            self._write_anew(one, found)
            lost, after = lost + len(found), documents[-1]
            if self._stop.wait(_REST * (self._clock() - began)):
                return
        # Only now: a pass that broke off is still due.
        state.deleted, state.due_since = deleted, None
        state.found_in_a_row = state.found_in_a_row + 1 if lost else 0
        if lost:
            # Written anew they are not sure to be found, nor are others beside them.
            state.due_since = self._clock()
            state.not_before = self._clock() + min(_LAST_AGAIN_S, _FIRST_AGAIN_S * 2 ** (state.found_in_a_row - 1))
            log.warning("searches do not find documents collection=%s documents=%d", one.name, lost)

    def _sampled(self, name: str) -> list[str]:
        """Of some documents those that are lost."""
        documents = self._ledger.documents_after(name, "", _SAMPLE * _PAGE)
        return self.lost(name, random.sample(documents, min(_SAMPLE, len(documents))))

    def lost(self, name: str, documents: Sequence[str]) -> list[str]:
        """Those of the documents that have a chunk which no search finds."""
        owner = {
            chunk.id: document_id
            for document_id, manifest in self._ledger.manifests(name, documents).items()
            for chunk in manifest.chunks
        }
        missed: list[str] = []
        for ids in pages(list(owner), _SEARCHES_PER_CALL):
            records = self._store.get(name, ids, with_embeddings=True)
            vectors = {record.id: record.embedding for record in records if record.embedding is not None}
            missed += unfound(self._store, name, vectors)
        # What left the index meanwhile is not to be found.
        live = self._ledger.live(name, missed)
        return list(dict.fromkeys(owner[chunk_id] for chunk_id in missed if chunk_id in live))

    def _write_anew(self, one: Reached, documents: Sequence[str]) -> None:
        metrics.UNFINDABLE.labels(collection=one.name).inc(len(documents))
        columns = self._key_columns(one.table) if documents else 0
        keys = [key_in(document_id, one.table, columns) for document_id in documents]
        for start in range(0, len(keys), _KEYS_AT_A_TIME):
            wanted = tuple(keys[start : start + _KEYS_AT_A_TIME])
            self._request(Resync(table=one.table, collections=(one.name,), keys=wanted, rewrite=True, reason=REASON))
