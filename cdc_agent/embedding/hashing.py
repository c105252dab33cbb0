"""A deterministic embedder without a model, for tests only: texts that share words are near each other.

It counts what it was asked for, so that a test can say "one paragraph changed, one text was embedded".
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cdc_agent.embedding.base import Vectors
from cdc_agent.embedding.checks import unit_length
from cdc_agent.errors import PoisonText

__all__ = ["HashingEmbedder"]

#: How much the whole text counts beside its words; keeps "a b" and "b a" apart.
WHOLE_TEXT_WEIGHT = 0.1


class HashingEmbedder:
    """Words hashed into a unit vector. ``texts_embedded`` and ``queries_embedded`` count what was asked."""

    def __init__(self, *, dimensions: int = 64, max_tokens: int = 256, model: str = "hashing") -> None:
        self._dimensions = dimensions
        self._max_tokens = max_tokens
        self._model = f"{model}-{dimensions}"
        self._counting = threading.Lock()
        self.texts_embedded = 0
        self.queries_embedded = 0

    @property
    def model(self) -> str:
        return self._model

    @property
    def dimensions(self) -> int:
        return self._dimensions

    @property
    def max_tokens(self) -> int:
        return self._max_tokens

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def embed(self, texts: Sequence[str]) -> Vectors:
        for index, tokens in enumerate(self.count_tokens(texts)):
            if tokens > self._max_tokens:
                raise PoisonText(f"text has {tokens} tokens, the model reads {self._max_tokens}", index=index)
        with self._counting:
            self.texts_embedded += len(texts)
        return self._vectors(texts)

    def embed_query(self, text: str) -> npt.NDArray[np.float32]:
        with self._counting:
            self.queries_embedded += 1
        vector: npt.NDArray[np.float32] = self._vectors([text])[0]
        return vector

    def close(self) -> None:
        """Nothing is held."""

    def _vectors(self, texts: Sequence[str]) -> Vectors:
        rows = np.zeros((len(texts), self._dimensions), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            row += WHOLE_TEXT_WEIGHT * self._direction(text)
            for word in text.lower().split():
                row += self._direction(word)
        return unit_length(rows)

    def _direction(self, text: str) -> npt.NDArray[np.float32]:
        seed = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=32).digest()
        numbers = np.frombuffer(hashlib.shake_128(seed).digest(self._dimensions), dtype=np.uint8)
        # Half a step off the middle, so that no number is ever zero.
        direction: npt.NDArray[np.float32] = numbers.astype(np.float32) - 127.5
        return direction
