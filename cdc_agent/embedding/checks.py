"""What every vector must pass before anybody sees it: right shape, finite, not zero, unit length. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cdc_agent.embedding.base import Vectors
from cdc_agent.errors import EmbeddingError

__all__ = ["as_vectors", "bad_rows", "unit_length"]

#: A vector shorter than this has no direction.
SMALLEST_LENGTH = 1e-12


def as_vectors(rows: Sequence[Sequence[float]] | npt.NDArray[np.floating], *, dimensions: int) -> Vectors:
    """Rows as one float32 matrix; raises ``EmbeddingError`` when a row has another number of dimensions."""
    for row in rows:
        if len(row) != dimensions:
            raise EmbeddingError(
                f"the model returned a vector of {len(row)} dimensions, the collection is built with {dimensions}",
                hint="the model behind this name changed, or `embedding.dimensions` is wrong; "
                "a new model needs `cdc-agent migrate`",
            )
    # A number beyond float32 becomes infinite here, and bad_rows() finds it.
    with np.errstate(over="ignore"):
        return np.asarray(rows, dtype=np.float32).reshape(len(rows), dimensions)


def bad_rows(vectors: Vectors) -> list[int]:
    """Rows that hold NaN, infinity or only zeros: no text may be found by them."""
    sound = np.isfinite(vectors).all(axis=1) & (_lengths(vectors) > SMALLEST_LENGTH)
    return [int(row) for row in np.flatnonzero(~sound)]


def unit_length(vectors: Vectors) -> Vectors:
    """The same directions with length 1; every row must have passed ``bad_rows``."""
    return (vectors / _lengths(vectors)[:, np.newaxis]).astype(np.float32)


def _lengths(vectors: Vectors) -> npt.NDArray[np.float64]:
    # In float64: the squares of large float32 numbers overflow.
    with np.errstate(invalid="ignore"):
        lengths: npt.NDArray[np.float64] = np.linalg.norm(vectors.astype(np.float64), axis=1)
        return lengths
