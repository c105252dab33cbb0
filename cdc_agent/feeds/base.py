"""The contract of every feed: documents that somebody else keeps, each with a key and a mark that changes with it.

A webhook is only a doorbell. What a feed says of itself when it is asked is the truth; so whatever came twice, late, in
the wrong order or never ends in the same index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cdc_agent.events import Event

__all__ = ["EVERYTHING", "Examined", "Feed", "Found", "Ring"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A document as it is now. ``etag`` is the mark of this state, empty where it may change without its mark; ``row``
    holds the values of the feed's ``columns`` (UTF-8, None for none)."""

    etag: str
    row: tuple[bytes | None, ...]


@dataclass(frozen=True, slots=True)
class Ring:
    """What a doorbell says: look at ``keys``, and with ``whole`` at everything."""

    keys: frozenset[str] = frozenset()
    whole: bool = False


EVERYTHING = Ring(whole=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """An answer to ``cdc-agent check``."""

    ok: bool
    message: str
    hint: str = ""


class Feed(Protocol):
    """Every question raises ``FeedUnavailable`` when it cannot be answered now. Used by one thread at a time."""

    #: Names of the values of a document; the first is its key.
    columns: tuple[str, ...]
    #: Whether what a listing lacks is gone; otherwise each such key is asked for by itself.
    listing_is_whole: bool

    def heed(self, event: Event) -> Ring | None:
        """What an event is to this feed; None if it is nothing."""
        ...

    def list(self) -> Mapping[str, str]:
        """The mark of each document, by key."""
        ...

    def oddities(self) -> Sequence[str]:
        """What the last listing left out, or lacked, in sentences for the operator."""
        ...

    def fetch(self, key: str, etag: str) -> Found | None:
        """The document (``etag``: as it was listed, empty if it was not); None if it is gone, or none of ours."""
        ...

    def examine(self) -> Sequence[Examined]:
        """Whether it can be followed: token, place, how much there is. Raises nothing."""
        ...

    def close(self) -> None: ...
