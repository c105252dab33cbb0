"""Which chunks of a document stay: new chunk texts against the chunks that the manifest names."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cdc_agent.documents.model import text_hash

__all__ = ["ChunkDiff", "diff_chunks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkDiff:
    """``kept`` maps a position in the new texts to the id that already holds this text; ``new`` are the other
    positions, ascending; ``dropped`` are the ids that no position keeps, in their old order.

    Every position is in exactly one of ``kept`` and ``new``, every old id in exactly one of ``kept`` and ``dropped``.
    As many chunks are kept as any matching by text can keep.
    """

    kept: Mapping[int, str]
    new: tuple[int, ...]
    dropped: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """Nothing to embed and nothing to delete. Chunks may still have moved."""
        return not self.new and not self.dropped


def diff_chunks(old: Sequence[tuple[str, bytes]], texts: Sequence[str]) -> ChunkDiff:
    """Match the new ``texts`` with the ``old`` chunks, each an id and the ``text_hash`` it holds, in their order.

    Chunks of the same text are matched first to first, so that an unchanged document keeps every id in its place.
    """
    waiting: dict[bytes, deque[str]] = defaultdict(deque)
    for chunk_id, digest in old:
        waiting[digest].append(chunk_id)
    kept: dict[int, str] = {}
    new: list[int] = []
    for position, text in enumerate(texts):
        ids = waiting.get(text_hash(text))
        if ids:
            kept[position] = ids.popleft()
        else:
            new.append(position)
    staying = set(kept.values())
    return ChunkDiff(kept=kept, new=tuple(new), dropped=tuple(i for i, _ in old if i not in staying))
