"""Watches Postgres, stream, ledger and store from outside while everything runs, and holds each to the invariants.

A look reads in the order in which truth flows, so that what moves meanwhile can only be ahead, never behind:
first what Postgres was told, then what is durable here; the ledger before and behind the store.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import chromadb
import psycopg

from cdc_agent.config import Config
from cdc_agent.documents.model import text_hash
from cdc_agent.ledger import rows
from cdc_agent.ledger.base import Manifest
from cdc_agent.lsn import Lsn
from tests.support.chaos.record import Record
from tests.support.postgres import Database

__all__ = ["Observer", "Place"]

_INTERVAL_S = 0.25
#: The store is read whole, so not every time.
_STORE_EVERY = 4
Place = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerView:
    """The ledger at one moment."""

    offset: int
    applied: int
    manifests: Mapping[Place, Manifest]
    pending: frozenset[Place]

    def known(self) -> set[Place]:
        """Every chunk that the store may hold."""
        return {(m.collection, c.id) for m in self.manifests.values() for c in m.chunks} | self.pending


class Observer:
    """Looks several times a second. ``late`` tells whether the store may hold what was sent at an earlier time."""

    def __init__(
        self, pg: Database, config: Config, record: Record, late: Callable[[], bool], *, store_port: int
    ) -> None:
        self._pg = pg
        self._config = config
        self._record = record
        self._late = late
        self._store_port = store_port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="observer", daemon=True)
        self._last: LedgerView | None = None
        self._captured = 0
        self._strays: set[Place] = set()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        # A store that is locked may never answer; nobody waits for that look.
        self._thread.join(20)

    def captured(self) -> int:
        """What the stream holds, as its file says; 0 before there is one."""
        found = self._read_stream()
        return found[0] if found else 0

    def offset(self) -> int:
        """How far the indexer has written; 0 before there is a ledger."""
        view = self._read_ledger()
        return view.offset if view else 0

    def _work(self) -> None:
        looks = 0
        while not self._stop.wait(_INTERVAL_S):
            self.look(store=looks % _STORE_EVERY == 0)
            looks += 1

    def look(self, *, store: bool) -> None:
        confirmed = self._confirmed()
        stream = self._read_stream()
        self._record.count("looks")
        if stream is not None and confirmed is not None and confirmed > stream[0]:
            words = f"the slot is at {Lsn(confirmed)}, the stream at {Lsn(stream[0])}"
            self._record.violation("early_ack", words)
        view = self._read_ledger()
        if view is None:
            return
        self._compare(stream, view)
        if store and self._config.vectorstore.mode != "embedded":
            self._look_at_store(view)

    def _compare(self, stream: tuple[int, int] | None, view: LedgerView) -> None:
        last, self._last = self._last, view
        if stream is not None:
            self._never_back("the stream", self._captured, stream[0])
            self._captured = stream[0]
        if last is None:
            return
        self._never_back("the applied position", last.applied, view.applied)
        self._never_back("the offset", last.offset, view.offset)
        for place, before in last.manifests.items():
            after = view.manifests.get(place)
            if after is not None and after.version < before.version:
                self._record.violation("regress", f"{place} went from {before.version} to {after.version}")

    def _never_back(self, what: str, before: int, after: int) -> None:
        if after < before:
            self._record.violation("regress", f"{what} went from {Lsn(before)} to {Lsn(after)}")

    # -- the store --------------------------------------------------------------------------------------------

    def _look_at_store(self, before: LedgerView) -> None:
        late, mending = self._late(), self._record.mending
        held = self._read_store()
        after = self._read_ledger()
        if held is None or after is None:
            return
        if mending or self._record.mending:
            self._strays = set()
            return
        self._record.count("looks_at_the_store")
        self._find_missing(before, after, held)
        strays = set(held) - before.known() - after.known()
        self._judge_strays(strays, late=late)

    def _find_missing(self, before: LedgerView, after: LedgerView, held: Mapping[Place, str]) -> None:
        """What a manifest named all the time must have been there, with its text."""
        for place, manifest in before.manifests.items():
            if after.manifests.get(place) != manifest:
                continue
            for chunk in manifest.chunks:
                text = held.get((manifest.collection, chunk.id))
                if text is None:
                    self._record.violation("lost", f"{chunk.id} of {manifest.collection} is live and not in the store")
                elif text_hash(text) != chunk.text_hash:
                    self._record.violation("stale", f"{chunk.id} holds {text[:80]!r}")

    def _judge_strays(self, strays: set[Place], *, late: bool) -> None:
        """What nobody names, twice in a row: in between it could have been named, deleted and forgotten."""
        for place in () if late else strays & self._strays:
            self._record.violation("orphaned", f"{place} is in the store, and nothing names it")
        self._strays = set() if late else strays

    # -- reading ----------------------------------------------------------------------------------------------

    def _confirmed(self) -> int | None:
        try:
            found = self._pg.execute(
                "select confirmed_flush_lsn::text from pg_replication_slots where slot_name = %s", (self._pg.slot_name,)
            )
        except psycopg.Error:
            return None
        return int(Lsn.parse(found[0][0])) if found and found[0][0] else None

    def _read_stream(self) -> tuple[int, int] | None:
        found = self._select(self._config.stream_path, "select captured_lsn, head_offset from position where id = 1")
        return (int(found[0][0]), int(found[0][1])) if found else None

    def _read_ledger(self) -> LedgerView | None:
        found = self._in_one_view(
            self._config.ledger_path,
            "select stream_offset, applied_lsn from checkpoint where agent = 'indexer'",
            "select * from manifest",
            "select collection, chunk_id from intent union select collection, chunk_id from garbage",
        )
        if found is None:
            return None
        checkpoints, manifests, pending = found
        offset, applied = checkpoints[0] if checkpoints else (0, 0)
        decoded = (_manifest(row) for row in manifests)
        return LedgerView(
            offset=offset,
            applied=applied,
            manifests={(m.collection, m.document_id): m for m in decoded},
            pending=frozenset((collection, chunk) for collection, chunk in pending),
        )

    def _select(self, path: Any, statement: str) -> list[Any] | None:
        found = self._in_one_view(path, statement)
        return found[0] if found else None

    def _in_one_view(self, path: Any, *statements: str) -> list[list[Any]] | None:
        """Several answers of one moment; None while the file cannot be read, as before it is made."""
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None, timeout=2.0)) as file:
                file.execute("begin")
                return [file.execute(statement).fetchall() for statement in statements]
        except sqlite3.Error:
            return None

    def _read_store(self) -> dict[Place, str] | None:
        settings = self._config.vectorstore
        held: dict[Place, str] = {}
        try:
            client = chromadb.HttpClient(host=settings.host, port=self._store_port)
            with client:
                for collection in self._config.collections:
                    found = client.get_collection(collection.name, embedding_function=None).get(include=["documents"])
                    held |= {(collection.name, i): t for i, t in zip(found["ids"], found["documents"], strict=True)}
        except Exception:  # Whatever a client says of a store that is being killed: look again later.
            return None
        return held


def _manifest(row: Any) -> Manifest:
    collection, document_id, lsn, ordinal, xid, oid, chunks, _, *rest = row
    return rows.manifest(collection, document_id, (lsn, ordinal, xid, oid, chunks, *rest))
