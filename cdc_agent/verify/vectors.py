"""Do the vectors match their texts? A random sample is embedded again, and each of its chunks is searched with its own
stored vector. An id's text and vector never change, so nothing has to stand still for this."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from cdc_agent.documents.model import text_hash
from cdc_agent.embedding.base import Embedder, Vectors
from cdc_agent.errors import EmbedderUnavailable, PoisonText, StoreUnavailable
from cdc_agent.vectorstore.base import Record
from cdc_agent.vectorstore.finding import unfound
from cdc_agent.vectorstore.records import pages
from cdc_agent.verify.comparison import Place
from cdc_agent.verify.defects import Defect, Kind
from cdc_agent.verify.ends import Audited, Ends

__all__ = ["ChunkPlace", "Sample", "VectorCheck"]

T = TypeVar("T")
log = logging.getLogger(__name__)

#: The least cosine similarity of a stored vector to that of its text; batches of other shapes differ in the last bits.
_ALIKE = 0.999
#: Chunks that one call searches for.
_SEARCHES_PER_CALL = 100
#: Failures in a row of a store that answers pings, until its vectors count as unreadable.
_TRIES = 4
_FIRST_PAUSE_S = 0.25


@dataclass(frozen=True, slots=True)
class ChunkPlace:
    """One live chunk of a document that is right as far as words go."""

    place: Place
    chunk_id: str
    text_hash: bytes


class Sample:
    """A uniform random sample of everything that is offered, in bounded memory."""

    def __init__(self, size: int, seed: int | None = None) -> None:
        self._size = size
        self._random = random.Random(seed)
        self._offered = 0
        self.chosen: list[ChunkPlace] = []

    def offer(self, chunk: ChunkPlace) -> None:
        self._offered += 1
        if len(self.chosen) < self._size:
            self.chosen.append(chunk)
        elif self._size and (slot := self._random.randrange(self._offered)) < self._size:
            self.chosen[slot] = chunk


class VectorCheck:
    def __init__(self, ends: Ends, collections: Mapping[str, Audited]) -> None:
        self._ends = ends
        self._collections = collections

    def check(self, collection: str, chunks: Sequence[ChunkPlace]) -> list[Defect]:
        """Defects among some chunks of one collection."""
        ids = [chunk.chunk_id for chunk in chunks]
        try:
            held = self._patiently(
                lambda: {r.id: r for r in self._ends.store.get(collection, ids, with_embeddings=True)}
            )
            return self._check_held(collection, [c for c in chunks if c.chunk_id in held], held)
        except StoreUnavailable as exc:
            return [_defect(chunk, f"the store cannot read its vector: {exc.message}") for chunk in chunks]

    def _check_held(self, collection: str, chunks: Sequence[ChunkPlace], held: Mapping[str, Record]) -> list[Defect]:
        # A text that is not the manifest's is torn, which is said elsewhere.
        chunks = [c for c in chunks if text_hash(held[c.chunk_id].text) == c.text_hash]
        fresh = self._embed(self._collections[collection].embedder, [held[c.chunk_id].text for c in chunks])
        wrong: list[Defect] = []
        right: dict[str, npt.NDArray[np.float32]] = {}
        for chunk, again in zip(chunks, fresh, strict=True):
            stored = held[chunk.chunk_id].embedding
            if stored is None or again is None:
                continue
            if _cosine(stored, again) >= _ALIKE:
                right[chunk.chunk_id] = stored
            else:
                wrong.append(_defect(chunk, "the vector is not that of the text"))
        lost = set(self._unfound(collection, right))
        wrong += [_defect(c, "a search with its own vector does not find it") for c in chunks if c.chunk_id in lost]
        live = self._ends.ledger.live(collection, [defect.chunk_id for defect in wrong])
        return [defect for defect in wrong if defect.chunk_id in live]

    def _embed(self, embedder: Embedder, texts: Sequence[str]) -> list[npt.NDArray[np.float32] | None]:
        """Vectors of texts; None for one that the model refuses, about which nothing can be said."""
        vectors: list[npt.NDArray[np.float32] | None] = [None] * len(texts)
        left = list(range(len(texts)))
        while left:
            try:
                found = self._embedded(embedder, [texts[i] for i in left])
            except PoisonText as exc:
                log.warning("the model refuses the text of a chunk in the sample error=%s", exc.message)
                del left[exc.index]
                continue
            for i, vector in zip(left, found, strict=True):
                vectors[i] = vector
            break
        return vectors

    def _embedded(self, embedder: Embedder, texts: Sequence[str]) -> Vectors:
        return self._ends.retrier.until_done("verify", lambda: embedder.embed(texts), (EmbedderUnavailable,))

    def _unfound(self, collection: str, vectors: Mapping[str, npt.NDArray[np.float32]]) -> list[str]:
        """Page by page, so that no call of the store is long."""
        lost: list[str] = []
        for page in pages(list(vectors), _SEARCHES_PER_CALL):
            self._ends.check_stop()
            part = {chunk_id: vectors[chunk_id] for chunk_id in page}
            lost += self._patiently(lambda part=part: unfound(self._ends.store, collection, part))  # type: ignore[misc]
        return lost

    def _patiently(self, call: Callable[[], T]) -> T:
        """Waits while the store is away; raises ``StoreUnavailable`` when it is there and fails again and again."""
        failures = 0
        while True:
            try:
                return self._ends.present(call)
            except StoreUnavailable:
                self._ends.in_store(self._ends.store.ping)
                failures += 1
                if failures == _TRIES:
                    raise
                self._ends.stop.wait(_FIRST_PAUSE_S * 2**failures)
                self._ends.check_stop()


def _cosine(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths else 0.0


def _defect(chunk: ChunkPlace, what: str) -> Defect:
    return chunk.place.defect(Kind.VECTOR, what, chunk.chunk_id)
