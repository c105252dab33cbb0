"""No vector that is broken, too short or of other dimensions gets past the checks."""

from __future__ import annotations

import numpy as np
import pytest

from cdc_agent.embedding.checks import as_vectors, bad_rows, unit_length
from cdc_agent.errors import EmbeddingError


def test_rows_become_one_float32_matrix() -> None:
    # When lists of numbers are taken
    vectors = as_vectors([[1, 2], [3, 4]], dimensions=2)

    # Then they are a matrix; none at all is one too
    assert (vectors.dtype, vectors.shape) == (np.float32, (2, 2))
    assert as_vectors([], dimensions=2).shape == (0, 2)


def test_one_row_of_other_dimensions_is_a_wrong_model() -> None:
    with pytest.raises(EmbeddingError, match="vector of 3 dimensions") as caught:
        as_vectors([[1, 2], [1, 2, 3]], dimensions=2)
    assert not caught.value.retryable


def test_rows_without_direction_are_found() -> None:
    # Given good rows, and rows with NaN, infinity, a number too large for float32, and only zeros
    nan, inf = float("nan"), float("inf")
    vectors = as_vectors([[1, 0], [nan, 1], [3, 4], [inf, 0], [1e300, 0], [0, 0]], dimensions=2)

    # Then exactly the broken ones are named
    assert bad_rows(vectors) == [1, 3, 4, 5]


def test_vectors_get_unit_length_however_long_they_were() -> None:
    # Given rows whose squares overflow or vanish in float32
    vectors = as_vectors([[3e30, 4e30], [3e-10, 4e-10], [3, 4]], dimensions=2)

    # Then each keeps its direction
    assert bad_rows(vectors) == []
    np.testing.assert_allclose(unit_length(vectors), [[0.6, 0.8]] * 3, rtol=1e-6)
    assert unit_length(vectors).dtype == np.float32
