"""How fresh the index was, over the last hour and in memory: the time from commit to found of every changed document.

Ages are counted in classes that are two percent apart, so an hour of any traffic takes a bounded place, and any span of
it has honest quantiles: those of buckets cannot be averaged, their counts can be added.
"""

from __future__ import annotations

import collections
import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

__all__ = ["BUCKET_S", "Bucket", "Freshness", "FreshnessHistory"]

#: Seconds of one bucket, and how many are kept.
BUCKET_S = 10
_BUCKETS = 360
#: The width of a class of ages: a quantile is at most this much too large.
_GROWTH = math.log(1.02)
#: Younger counts as this: a commit's clock and ours need not agree to the millisecond.
_LEAST_S = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Freshness:
    """Commit to found, in seconds, of ``count`` documents that were found at ``at`` (Unix time) or shortly after."""

    at: float
    count: int
    p50_s: float
    p99_s: float
    max_s: float


@dataclass(slots=True)
class Bucket:
    """Ages by class, while they gather."""

    at: float
    ages: collections.Counter[int] = field(default_factory=collections.Counter)
    max_s: float = 0.0

    def add(self, age_s: float) -> None:
        self.ages[_class_of(age_s)] += 1
        self.max_s = max(self.max_s, age_s)


class FreshnessHistory:
    """Safe to use from any thread."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._buckets: collections.deque[Bucket] = collections.deque(maxlen=_BUCKETS)
        self._lock = threading.Lock()

    def observe(self, ages_s: Iterable[float]) -> None:
        """Documents were found just now, so long after their commits."""
        ages = [max(_LEAST_S, age) for age in ages_s]
        if not ages:
            return
        at = self._clock() // BUCKET_S * BUCKET_S
        with self._lock:
            # A clock that is set back goes on in the newest bucket.
            if not self._buckets or at > self._buckets[-1].at:
                self._buckets.append(Bucket(at))
            for age in ages:
                self._buckets[-1].add(age)

    def history(self, since: float = 0.0) -> list[Freshness]:
        """One entry for each ten seconds of the last hour in which anything was found, oldest first, from
        ``since`` on."""
        since = max(since, self._clock() - BUCKET_S * _BUCKETS)
        with self._lock:
            return [_summed([bucket]) for bucket in self._buckets if bucket.at >= since]

    def over(self, seconds: float) -> Freshness | None:
        """The last ``seconds`` as one, as exact as buckets are; None when nothing was found."""
        since = self._clock() - seconds
        with self._lock:
            recent = [bucket for bucket in self._buckets if bucket.at + BUCKET_S > since]
            return _summed(recent) if recent else None

    def newest(self) -> Freshness | None:
        """The last ten seconds in which anything was found, however long ago."""
        with self._lock:
            return _summed([self._buckets[-1]]) if self._buckets else None


def _summed(buckets: list[Bucket]) -> Freshness:
    ages: collections.Counter[int] = collections.Counter()
    for bucket in buckets:
        ages.update(bucket.ages)
    largest = max(bucket.max_s for bucket in buckets)
    return Freshness(
        at=buckets[0].at,
        count=ages.total(),
        p50_s=min(largest, _quantile(ages, 0.5)),
        p99_s=min(largest, _quantile(ages, 0.99)),
        max_s=largest,
    )


def _class_of(age_s: float) -> int:
    return math.ceil(math.log(age_s / _LEAST_S) / _GROWTH)


def _quantile(ages: collections.Counter[int], share: float) -> float:
    """The upper end of the class that holds the age which ``share`` of all are not above."""
    rank, seen = math.ceil(share * ages.total()), 0
    for number in sorted(ages):
        seen += ages[number]
        if seen >= rank:
            return _LEAST_S * math.exp(number * _GROWTH)
    raise AssertionError("unreachable")
