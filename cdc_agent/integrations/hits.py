"""What all retrievers share: the clients of one collection, their options, and what a hit says of its source."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from cdc_agent.client import AsyncIndex, Hit, Index

__all__ = ["SOURCE_FIELDS", "Clients", "metadata_of", "not_installed", "overridden"]

#: Metadata beside the configured columns, none of which can have such a name. The first four are those of the record in
#: the store: document, table, and the commit that wrote the chunk as a number and as a time; ``cdc_stale`` says that a
#: newer version waits as a dead letter. Nothing here differs between two queries: LlamaIndex tells nodes apart by it.
SOURCE_FIELDS = ("cdc_doc", "cdc_table", "cdc_lsn", "cdc_commit_ts", "cdc_stale")


class Clients:
    """The client of one collection for programs that wait, and one for each event loop that asks."""

    def __init__(self, url: str, collection: str, *, token: str | None = None) -> None:
        self._token = token
        self.index = Index(url, collection, token=token)
        self._of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncIndex] = WeakKeyDictionary()

    def of_this_loop(self) -> AsyncIndex:
        loop = asyncio.get_running_loop()
        if loop not in self._of_loops:
            self._of_loops[loop] = AsyncIndex(self.index.url, self.index.collection, token=self._token)
        return self._of_loops[loop]

    def close(self) -> None:
        self.index.close()

    async def aclose(self) -> None:
        """Close the one of the running event loop, and the one that waits."""
        self.close()
        index = self._of_loops.pop(asyncio.get_running_loop(), None)
        if index is not None:
            await index.close()


def overridden(options: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Options with some replaced. Raises ``TypeError`` for one that does not exist, as a function does."""
    if unknown := sorted(overrides.keys() - options.keys()):
        raise TypeError(f"there is no option {unknown[0]!r}; there are {', '.join(options)}")
    return {**options, **overrides}


def metadata_of(hit: Hit) -> dict[str, Any]:
    """The configured columns by name, for Chroma gives them in any order, then the ``SOURCE_FIELDS``."""
    source = hit.source
    committed_at = source.committed_at.isoformat() if source.committed_at else None
    fields = (hit.document_id, source.table, int(source.commit_lsn), committed_at, hit.stale)
    return {**dict(sorted(hit.metadata.items())), **dict(zip(SOURCE_FIELDS, fields, strict=True))}


def not_installed(library: str, extra: str) -> ImportError:
    return ImportError(f"{library} is not installed; `pip install 'cdc-agent[{extra}]'` installs it", name=library)
