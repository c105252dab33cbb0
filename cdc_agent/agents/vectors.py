"""Gets the vectors that a batch of plans needs: from the cache by content, then from the chunks that the documents have
already, and only then from the model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence, Set

import numpy as np
import numpy.typing as npt

from cdc_agent import metrics
from cdc_agent.agents.parking import dead_letter
from cdc_agent.agents.planning import Collection, Plan
from cdc_agent.embedding.base import Embedder
from cdc_agent.errors import EmbedderUnavailable, PoisonText, VectorStoreError
from cdc_agent.failpoints import hit
from cdc_agent.ledger.base import DeadLetter, Ledger
from cdc_agent.retry import Retrier
from cdc_agent.vectorstore.base import VectorStore
from cdc_agent.vectorstore.records import pages, usable_vectors

__all__ = ["Vectorizer"]

log = logging.getLogger(__name__)

#: Records read from the store at a time.
_AT_A_TIME = 200


class Vectorizer:
    """Embeds each distinct text of a batch at most once. ``fingerprint`` names the model in the cache."""

    def __init__(
        self,
        *,
        agent: str,
        embedder: Embedder,
        ledger: Ledger,
        store: VectorStore,
        fingerprint: str,
        retrier: Retrier,
        max_attempts: int,
    ) -> None:
        self._agent = agent
        self._store = store
        self._embedder = embedder
        self._ledger = ledger
        self._fingerprint = fingerprint
        self._retrier = retrier
        self._max_attempts = max_attempts

    def vectors(
        self, plans: Sequence[Plan], letters: list[DeadLetter], collections: Mapping[str, Collection]
    ) -> tuple[dict[bytes, npt.NDArray[np.float32]], list[bytes]]:
        """Vectors by text hash, and the hashes of those that the cache must have once their documents are written:
        embedded just now, or found in it. Until then a deletion may take the latter with the document that had them.

        A text that the model refuses again and again parks its documents: they are added to ``letters``.
        """
        wanted = {plan.hashes[i]: plan.texts[i] for plan in plans for i in plan.new}
        known = self._cached(wanted)
        cached = list(known)
        known.update(self._held(plans, wanted.keys() - known.keys()))
        metrics.CHUNKS_CACHED.inc(len(known))
        texts = {digest: text for digest, text in wanted.items() if digest not in known}
        refused = self._embed(texts, known)
        for digest, error in refused.items():
            letters += self._letters(plans, digest, error, collections)
        fresh = [digest for digest in texts if digest in known]
        _count(plans, set(fresh))
        return known, cached + fresh

    def _cached(self, wanted: Mapping[bytes, str]) -> dict[bytes, npt.NDArray[np.float32]]:
        stored = self._ledger.cached_vectors(self._fingerprint, wanted)
        return {digest: np.frombuffer(data, dtype=np.float32) for digest, data in stored.items()}

    def _held(self, plans: Sequence[Plan], wanted: Set[bytes]) -> dict[bytes, npt.NDArray[np.float32]]:
        """Vectors of texts that a document has and keeps, as far as the store gives them: a large index outgrows the
        cache, and an edit must not cost the whole document."""
        found: dict[bytes, npt.NDArray[np.float32]] = {}
        for collection, ids in _chunks_with(plans, wanted).items():
            for part in pages(ids, _AT_A_TIME):
                try:
                    records = self._store.get(collection, part, with_embeddings=True)
                except VectorStoreError as exc:
                    # Costs time, never truth. Whoever writes to the store reports what is wrong with it.
                    log.warning("vectors cannot be read collection=%s error=%s", collection, exc.message)
                    return found
                found.update(usable_vectors(records, dimensions=self._embedder.dimensions))
        return {digest: vector for digest, vector in found.items() if digest in wanted}

    def _embed(
        self, texts: Mapping[bytes, str], known: dict[bytes, npt.NDArray[np.float32]]
    ) -> dict[bytes, PoisonText]:
        """Embed into ``known``; returns what the model refused for good."""
        left = dict(texts)
        refusals: dict[bytes, int] = {}
        refused: dict[bytes, PoisonText] = {}
        while left:
            hit("mid_embed")
            digests = list(left)
            try:
                vectors = self._embed_retrying([left[digest] for digest in digests])
            except PoisonText as exc:
                culprit = digests[exc.index]
                refusals[culprit] = refusals.get(culprit, 0) + 1
                if refusals[culprit] >= self._max_attempts:
                    refused[culprit] = exc
                    del left[culprit]
                continue
            known.update(zip(digests, vectors, strict=True))
            break
        return refused

    def _embed_retrying(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        with metrics.EMBED_BATCH_SECONDS.time():
            return self._retrier.until_done("embedding", lambda: self._embedder.embed(texts), (EmbedderUnavailable,))

    def _letters(
        self, plans: Sequence[Plan], digest: bytes, error: PoisonText, collections: Mapping[str, Collection]
    ) -> list[DeadLetter]:
        return [
            dead_letter(self._agent, collections[p.collection], p.pending, "embedding", error, self._max_attempts)
            for p in plans
            if any(p.hashes[i] == digest for i in p.new)
        ]


def _chunks_with(plans: Sequence[Plan], wanted: Set[bytes]) -> dict[str, list[str]]:
    """Ids of live chunks that hold one of the wanted texts, by collection."""
    ids: dict[str, list[str]] = {}
    for plan in plans:
        # What is to be written anew is not to be trusted.
        base = None if plan.pending.rewrite or not plan.new else plan.pending.base
        chunks = base.chunks if base is not None else ()
        ids.setdefault(plan.collection, []).extend(chunk.id for chunk in chunks if chunk.text_hash in wanted)
    return {collection: found for collection, found in ids.items() if found}


def _count(plans: Sequence[Plan], fresh: set[bytes]) -> None:
    for plan in plans:
        if not plan.new:
            continue
        embedded = {plan.hashes[i] for i in plan.new} & fresh
        fresh = fresh - embedded
        metrics.CHUNKS_EMBEDDED.labels(collection=plan.collection).inc(len(embedded))
