"""Vectors of the questions that were asked last: who pages, retries or filters anew asks the same words again.

Bounded in number and in age, in memory only, and one for each model.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["RecentVectors"]

#: A question is forgotten after so many seconds, or when so many others came after it.
KEPT_S = 60.0
MOST = 256


class RecentVectors:
    """Safe to call from several threads."""

    def __init__(
        self, *, kept_s: float = KEPT_S, most: int = MOST, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._kept_s = kept_s
        self._most = most
        self._clock = clock
        self._lock = threading.Lock()
        #: The oldest first.
        self._vectors: OrderedDict[str, tuple[float, npt.NDArray[np.float32]]] = OrderedDict()

    def of(self, text: str, embed: Callable[[], npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """The vector of ``text``: remembered, or else made by ``embed``, whose errors nobody remembers."""
        with self._lock:
            self._forget_old()
            if text in self._vectors:
                return self._vectors[text][1]
        vector = embed()
        # Whoever gets it later must find it as it is now.
        vector.setflags(write=False)
        with self._lock:
            self._vectors.pop(text, None)
            self._vectors[text] = (self._clock(), vector)
            if len(self._vectors) > self._most:
                self._vectors.popitem(last=False)
        return vector

    def _forget_old(self) -> None:
        horizon = self._clock() - self._kept_s
        while self._vectors and next(iter(self._vectors.values()))[0] <= horizon:
            self._vectors.popitem(last=False)
