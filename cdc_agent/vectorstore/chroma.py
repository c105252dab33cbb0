"""Chroma as the vector store: over HTTP (its own Rust server) or embedded in this process.

Owns what is peculiar about Chroma: its batch limits, its timeouts (its client has none), its stale handles. Measured
with chromadb 1.5.9. What its errors mean is `chroma_faults`' business, starting a server `chroma_server`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter, methodcaller
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from cdc_agent.documents.model import MetadataValue
from cdc_agent.errors import StoreRejected, StoreUnavailable, VectorStoreError
from cdc_agent.vectorstore.base import Hit, Record
from cdc_agent.vectorstore.chroma_faults import WHERE, TooLarge, not_found, translated
from cdc_agent.vectorstore.locks import Locks
from cdc_agent.vectorstore.records import (
    CollectionMissing,
    StoreFailing,
    check_metadata,
    check_records,
    last_of_each_id,
    pages,
)

__all__ = ["ChromaStore"]

#: Records of one call. 100 take about 0.2 s; more is hardly faster, and searches wait behind a call.
RECORDS_PER_CALL = 100
#: Ids of one delete or metadata-only call, which need no index work.
IDS_PER_CALL = 200
#: Ids of one page of a listing.
IDS_PER_PAGE = 1000
#: Ids that a page has in common with the one before: how many deletes between two pages cost nothing.
PAGE_OVERLAP = 200
#: Longest wait for a connection, and for the answer to a ping.
CONNECT_TIMEOUT_S = 5.0
PING_TIMEOUT_S = 2.0
#: What Chroma says when one id of a call is in its tables and not in its index, as during a delete.
_ONE_ID = ("Error finding id", "Error getting embedding")

_COSINE = {"hnsw": {"space": "cosine"}}
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ChromaStore:
    """Collections in Chroma. Build it with ``http`` or ``embedded``; neither needs the store to answer yet.

    Over HTTP every call ends within about ``timeout_s``. Embedded calls run in this process and have no timeout.
    A missing collection raises ``CollectionMissing``, a ``StoreRejected`` that blames no record.
    """

    def __init__(
        self, api: Any, *, ping: Callable[[], None], close: Callable[[], None], locks: Locks | None = None
    ) -> None:
        self._api = api
        #: What its writes tell of locks.
        self.locks = locks or Locks()
        self._ping = ping
        self._close = close
        self._handles: dict[str, Any] = {}
        self._dimensions: dict[str, int] = {}
        self._aliases: dict[str, str] = {}

    @classmethod
    def http(
        cls,
        host: str,
        port: int,
        *,
        ssl: bool = False,
        headers: dict[str, str] | None = None,
        timeout_s: float = 30.0,
        locks: Locks | None = None,
    ) -> ChromaStore:
        """A store behind a Chroma server. Nothing is sent before the first call; ``locks`` learns of every write."""
        system = _system(
            chroma_api_impl="chromadb.api.fastapi.FastAPI",
            chroma_server_host=host,
            chroma_server_http_port=port,
            chroma_server_ssl_enabled=ssl,
            chroma_server_headers=dict(headers or {}),
        )
        api = _server_api(system)
        session = _bounded_session(api, timeout_s, direct=host in _LOOPBACK)
        heartbeat = f"{api.get_api_url()}/heartbeat"

        def ping() -> None:
            answer = session.get(heartbeat, timeout=min(PING_TIMEOUT_S, timeout_s))
            if "nanosecond heartbeat" not in answer.raise_for_status().json():
                raise StoreUnavailable(f"what answers on {host}:{port} is not a Chroma server", hint=WHERE)

        return cls(api, ping=ping, close=session.close, locks=locks)

    @classmethod
    def embedded(cls, path: str | Path) -> ChromaStore:
        """A store in this process. No other process may open the path: its searches would go stale for good."""
        system = _system(is_persistent=True, persist_directory=str(path))
        with translated():
            api = _server_api(system)
            system.start()

        def ping() -> None:
            api.heartbeat()

        return cls(api, ping=ping, close=system.stop)

    def open_collection(self, name: str, *, dimensions: int, marker: Mapping[str, MetadataValue]) -> dict[str, Any]:
        metadata = {key: value for key, value in marker.items() if value is not None} | {"hnsw:space": "cosine"}
        with translated():
            model = self._api.create_collection(
                self._name_of(name), metadata=metadata, configuration=_COSINE, get_or_create=True
            )
            handle = self._handles[name] = _handle(self._api, model)
        self._dimensions[name] = dimensions
        _check_cosine(name, handle.configuration_json)
        return dict(handle.metadata or {})

    def marker(self, name: str) -> dict[str, Any]:
        # Looked up anew: a handle keeps the metadata of its beginning.
        self._handles.pop(name, None)
        return dict(self._with(name, attrgetter("metadata")) or {})

    def set_marker(self, name: str, marker: Mapping[str, MetadataValue]) -> None:
        # Chroma refuses any word about the distance here, also the right one; the configuration keeps it.
        metadata = {key: value for key, value in marker.items() if value is not None and key != "hnsw:space"}
        self._with(name, methodcaller("modify", metadata=metadata))

    def recreate_collection(self, name: str, *, dimensions: int, marker: Mapping[str, MetadataValue]) -> None:
        stored_as = self._name_of(name)
        self.drop_collection(name)
        self._aliases[name] = stored_as
        self.open_collection(name, dimensions=dimensions, marker=marker)

    def stored(self) -> dict[str, dict[str, Any]]:
        with translated():
            return {str(model.name): dict(model.metadata or {}) for model in self._api.list_collections()}

    def alias(self, name: str, stored_as: str) -> None:
        self._aliases[name] = stored_as

    def rename_collection(self, name: str, stored_as: str) -> None:
        # By identity: who holds a handle, here or elsewhere, does not notice.
        try:
            self._with(name, methodcaller("modify", name=stored_as))
        except StoreUnavailable as exc:
            # Chroma calls a name that is taken an internal error.
            if stored_as in self.stored():
                raise StoreRejected(f"there is a collection {stored_as} already") from exc
            raise
        self._aliases[name] = stored_as

    def _name_of(self, collection: str) -> str:
        return self._aliases.get(collection, collection)

    def upsert(self, collection: str, records: Sequence[Record]) -> None:
        check_records(records, dimensions=self._dimensions.get(collection))
        for page in pages(last_of_each_id(records), RECORDS_PER_CALL):
            self._upsert_or_halve(collection, page)

    def update_metadata(self, collection: str, metadata_by_id: Mapping[str, Mapping[str, MetadataValue]]) -> None:
        for record_id, metadata in metadata_by_id.items():
            check_metadata(record_id, metadata)
        # Chroma refuses an empty dictionary, and there is nothing to do for it.
        entries = [(record_id, dict(metadata)) for record_id, metadata in metadata_by_id.items() if metadata]
        for page in pages(entries, IDS_PER_CALL):
            ids, metadatas = [entry[0] for entry in page], [entry[1] for entry in page]
            self._write(collection, methodcaller("update", ids=ids, metadatas=metadatas))

    def delete(self, collection: str, ids: Sequence[str]) -> None:
        for page in pages(list(dict.fromkeys(ids)), IDS_PER_CALL):
            self._write(collection, methodcaller("delete", ids=list(page)))

    def query(
        self, collection: str, vector: npt.NDArray[np.float32], *, k: int, where: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        if k <= 0:
            return []
        found = self._with(
            collection,
            methodcaller(
                "query",
                query_embeddings=[vector],
                n_results=k,
                where=dict(where) if where else None,
                include=["documents", "metadatas", "distances"],
            ),
        )
        columns = (found["ids"][0], found["documents"][0], found["metadatas"][0], found["distances"][0])
        return [
            Hit(id=record_id, text=text or "", metadata=dict(metadata or {}), score=1.0 - distance)
            for record_id, text, metadata, distance in zip(*columns, strict=True)
        ]

    def neighbours(
        self, collection: str, vectors: Sequence[npt.NDArray[np.float32]], *, k: int
    ) -> list[list[tuple[str, float]]]:
        if not vectors or k <= 0:
            return [[] for _ in vectors]
        act = methodcaller("query", query_embeddings=list(vectors), n_results=k, include=["distances"])
        found = self._with(collection, act)
        return [
            [(record_id, 1.0 - distance) for record_id, distance in zip(ids, distances, strict=True)]
            for ids, distances in zip(found["ids"], found["distances"], strict=True)
        ]

    def get(self, collection: str, ids: Sequence[str], *, with_embeddings: bool = False) -> list[Record]:
        include = ["documents", "metadatas", *(["embeddings"] if with_embeddings else [])]
        records: list[Record] = []
        for page in pages(list(dict.fromkeys(ids)), RECORDS_PER_CALL):
            records.extend(self._get_or_halve(collection, page, include))
        return records

    def _get_or_halve(self, collection: str, ids: Sequence[str], include: Sequence[str]) -> list[Record]:
        """One call; if it fails because of one id, which then is probably being deleted, two with half of them."""
        try:
            found = self._with(collection, methodcaller("get", ids=list(ids), include=list(include)))
            return _records(found, "embeddings" in include)
        except StoreFailing as exc:
            if not any(words in exc.message for words in _ONE_ID):
                raise
            if len(ids) == 1:
                if not self._with(collection, methodcaller("get", ids=list(ids), include=[]))["ids"]:
                    return []
                raise
        middle = len(ids) // 2
        return [r for half in (ids[:middle], ids[middle:]) for r in self._get_or_halve(collection, half, include)]

    def ids(self, collection: str) -> Iterator[list[str]]:
        """Every id that is there all the time, at least once; one that many deletes move may be named again.

        Chroma lists by place, in the order of insertion, so a delete moves every later id one place forward. Each page
        therefore begins inside the one before; when its first id is new, something slipped past and we step back.
        """
        offset, before = 0, set[str]()
        while True:
            page = self._page_of_ids(collection, offset)
            if offset and (not page or page[0] not in before):
                offset = max(0, offset - IDS_PER_PAGE)
                continue
            if fresh := [record_id for record_id in page if record_id not in before]:
                yield fresh
            if len(page) < IDS_PER_PAGE:
                return
            offset, before = offset + IDS_PER_PAGE - PAGE_OVERLAP, set(page)

    def count(self, collection: str) -> int:
        return int(self._with(collection, methodcaller("count")))

    def drop_collection(self, name: str) -> None:
        self._handles.pop(name, None)
        self._dimensions.pop(name, None)
        with translated():
            try:
                self._api.delete_collection(self._name_of(name))
            except not_found():
                # Already gone is what was asked for.
                return

    def ping(self) -> None:
        with translated():
            self._ping()

    def close(self) -> None:
        self._handles.clear()
        self._close()

    def _upsert_or_halve(self, collection: str, records: Sequence[Record]) -> None:
        """One call; if it is more bytes than the server takes, two of half the size."""
        try:
            self._write(collection, methodcaller("upsert", **_columns(records)))
        except TooLarge:
            if len(records) == 1:
                raise
            middle = len(records) // 2
            self._upsert_or_halve(collection, records[:middle])
            self._upsert_or_halve(collection, records[middle:])

    def _page_of_ids(self, collection: str, offset: int) -> list[str]:
        found = self._with(collection, methodcaller("get", include=[], limit=IDS_PER_PAGE, offset=offset))
        return list(found["ids"])

    def _write(self, collection: str, act: Callable[[Any], Any]) -> None:
        with self.locks.writing():
            self._with(collection, act)

    def _with(self, name: str, act: Callable[[Any], Any]) -> Any:
        """Act on a collection; one that was deleted and created again has a new identity, so look it up once more."""
        with translated():
            if (handle := self._handles.get(name)) is not None:
                try:
                    return act(handle)
                except not_found():
                    self._handles.pop(name, None)
            try:
                handle = self._handles[name] = _handle(self._api, self._api.get_collection(self._name_of(name)))
                return act(handle)
            except not_found() as exc:
                raise CollectionMissing(name) from exc


def _system(**settings: Any) -> Any:
    """Chroma's own wiring, without its client object, whose constructor talks to the server without a timeout."""
    try:
        from chromadb.config import Settings, System
    except ImportError as exc:
        raise VectorStoreError(
            f"chromadb cannot be loaded: {exc}", hint="install it with `pip install chromadb`"
        ) from exc
    # No .env file of the working directory decides where our vectors go.
    return System(Settings(_env_file=None, anonymized_telemetry=False, **settings))


def _server_api(system: Any) -> Any:
    from chromadb.api import ServerAPI

    return system.instance(ServerAPI)


def _handle(api: Any, model: Any) -> Any:
    from chromadb.api.models.Collection import Collection

    return Collection(client=api, model=model, embedding_function=None)


def _bounded_session(api: Any, timeout_s: float, *, direct: bool) -> httpx.Client:
    """Replace the session of Chroma's HTTP client, which waits for ever, with one that does not.

    ``direct`` keeps a proxy of the environment out of the way to our own machine.
    """
    unbounded = getattr(api, "_session", None)
    if not isinstance(unbounded, httpx.Client):
        raise VectorStoreError("this version of chromadb cannot be given timeouts", hint="install chromadb 1.5.9")
    timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s))
    session = httpx.Client(headers=unbounded.headers, limits=api.http_limits, timeout=timeout, trust_env=not direct)
    unbounded.close()
    api._session = session
    return session


def _columns(records: Sequence[Record]) -> dict[str, Any]:
    return {
        "ids": [record.id for record in records],
        "embeddings": [record.embedding for record in records],
        "documents": [record.text for record in records],
        # Chroma refuses an empty dictionary, None means the same.
        "metadatas": [dict(record.metadata) or None for record in records],
    }


def _records(found: Any, with_embeddings: bool) -> list[Record]:
    count = len(found["ids"])
    embeddings = found["embeddings"] if with_embeddings else [None] * count
    return [
        Record(
            id=found["ids"][place],
            text=found["documents"][place] or "",
            metadata=dict(found["metadatas"][place] or {}) if found["metadatas"] else {},
            embedding=np.asarray(embeddings[place], dtype=np.float32) if with_embeddings else None,
        )
        for place in range(count)
    ]


def _check_cosine(name: str, configuration: Mapping[str, Any]) -> None:
    space = (configuration.get("hnsw") or {}).get("space", "cosine")
    if space != "cosine":
        raise StoreRejected(
            f"the collection {name} measures distance by {space}, not by cosine",
            hint="it was not created by cdc-agent; choose another `collections.name`, or delete the collection",
        )
