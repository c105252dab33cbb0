"""Which generation answers for each collection. It changes at once for every reader.

A search takes one generation at its beginning, model and collection together, and stays with it to its end, so no
answer mixes two. What a search took may be dropped under it; then the one that is live by now answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cdc_agent.errors import UsageError
from cdc_agent.search import SearchHit
from cdc_agent.vectorstore.records import CollectionMissing

__all__ = ["LiveSearch", "Target"]


class Searches(Protocol):
    """One generation's ``search.Searcher``."""

    def search(
        self,
        collection: str,
        query: str,
        k: int = 5,
        where: Mapping[str, Any] | None = None,
        *,
        within: Mapping[str, Any] | None = None,
    ) -> list[SearchHit]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The generation that answers: ``physical`` is what its searcher knows it as."""

    physical: str
    searcher: Searches


class LiveSearch:
    """Searches by configured name. ``targets`` answers with what is live now, by collection."""

    def __init__(self, targets: Callable[[], Mapping[str, Target]]) -> None:
        self._targets = targets

    def search(
        self,
        collection: str,
        query: str,
        k: int = 5,
        where: Mapping[str, Any] | None = None,
        *,
        within: Mapping[str, Any] | None = None,
    ) -> Sequence[SearchHit]:
        while True:
            target = self._target(collection)
            try:
                return target.searcher.search(target.physical, query, k, where, within=within)
            except CollectionMissing:
                if self._target(collection) is target:
                    raise

    def _target(self, collection: str) -> Target:
        targets = self._targets()
        try:
            return targets[collection]
        except KeyError:
            names = ", ".join(sorted(targets)) or "none"
            raise UsageError(f"there is no collection {collection!r}", hint=f"collections here: {names}") from None
