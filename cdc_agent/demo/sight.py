"""What a search sees of the index from one commit on. Not to have seen is neither "it is there" nor "it is gone"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Sight", "document_of"]


def document_of(article_id: int) -> str:
    return f"public.articles:{article_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """``hits`` is None when the index did not reach the commit in time. ``ms`` counts from the commit to the answer."""

    hits: Sequence[dict[str, Any]] | None
    ms: float = 0.0

    def __str__(self) -> str:
        if self.hits is None:
            return f"the index did not reach the commit in {self.ms / 1000:.0f} s"
        found = [f"{hit['document_id']} {hit['text'][:60]!r}" for hit in self.hits]
        return f"what was found: {'; '.join(found) or 'nothing'}"

    @property
    def best(self) -> Sequence[dict[str, Any]]:
        """The best hit, alone in its list; none where there is none."""
        return (self.hits or [])[:1]

    def shows(self, article_id: int, text: str = "") -> bool:
        """The article, with this text, is among the hits."""
        return any(hit["document_id"] == document_of(article_id) and text in hit["text"] for hit in self.hits or [])

    def lacks(self, article_id: int) -> bool:
        """The index was seen, and the article is not among the hits."""
        return self.hits is not None and not self.shows(article_id)
