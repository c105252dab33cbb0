"""The contract of every embedding backend, and the checks that every vector must pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Embedder", "Vectors"]

#: One row per text, float32, shape ``(len(texts), dimensions)``, unit length.
Vectors: TypeAlias = npt.NDArray[np.float32]


class Embedder(Protocol):
    """A model. Safe to call from several threads."""

    @property
    def model(self) -> str:
        """Name of the model, part of the fingerprint of a collection."""
        ...

    @property
    def dimensions(self) -> int: ...

    @property
    def max_tokens(self) -> int:
        """The most tokens of one text that the model reads (special tokens already subtracted)."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens not counted, by the model's own tokenizer (or a safe over-estimate)."""
        ...

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Embed texts for storage, in order.

        Every vector is finite and has ``dimensions`` numbers. Raises ``PoisonText`` when exactly one text is to
        blame, ``EmbedderUnavailable`` when trying again can help.
        """
        ...

    def embed_query(self, text: str) -> npt.NDArray[np.float32]:
        """Embed one search text, shape ``(dimensions,)``; overtakes texts that wait in ``embed``."""
        ...

    def close(self) -> None: ...
