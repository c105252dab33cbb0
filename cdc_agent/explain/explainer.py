"""Asks source, stream, ledger and store about one document, and looks twice where once could be too early.

A row and its index are read at two moments. So what differs is a verdict only after everything that the read could see
has been waited for (briefly) and a second look saw the same row and the same manifest.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cdc_agent.agents.folding import key_of
from cdc_agent.agents.planning import Collection as IndexedCollection
from cdc_agent.agents.planning import expected
from cdc_agent.agents.watermark import Progress as Watermark
from cdc_agent.documents.metadata import RESERVED_PREFIX
from cdc_agent.documents.model import document_id, key_in
from cdc_agent.errors import CdcAgentError, RenderError, SourceError, UsageError
from cdc_agent.events import Row
from cdc_agent.explain.facts import (
    ChunkFacts,
    Explanation,
    GenerationFacts,
    IndexFacts,
    LetterFacts,
    Progress,
    ResyncFacts,
    RowFacts,
)
from cdc_agent.explain.verdict import Evidence, State, judge
from cdc_agent.explain.waiting import Waiting, waiting
from cdc_agent.grants import check_columns, permits
from cdc_agent.ledger.base import DeadLetter, Generation, Ledger, Manifest, Resync
from cdc_agent.lsn import Lsn
from cdc_agent.stream.base import Stream
from cdc_agent.vectorstore.base import Record, VectorStore
from cdc_agent.verify.comparison import Place, compare
from cdc_agent.verify.ends import KeyedReader

__all__ = ["Explained", "Explainer"]

#: Longest wait for what the first look may have come too early for.
_PATIENCE_S = 2.0
#: What only time can change is looked at again.
_LOOK_AGAIN = frozenset({State.PENDING, State.BEHIND, State.WRONG, State.COPYING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """A collection as it answers searches. ``tables`` are the root oids that its rows come under."""

    generation: Generation
    collection: IndexedCollection
    model: str
    watermark: Watermark
    tables: Collection[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """Everything at one moment."""

    document_id: str
    key: tuple[str, ...]
    row: Row | None
    row_facts: RowFacts
    manifest: Manifest | None
    held: Mapping[str, Record] | None
    letter: DeadLetter | None
    waiting: Waiting
    resyncs: Sequence[Resync]
    source_lsn: Lsn | None
    captured_lsn: Lsn
    applied_lsn: Lsn
    fault: str

    @property
    def content(self) -> tuple[object, ...]:
        """What must be the same in two looks to be believed."""
        return (self.row.raw if self.row is not None else None, self.manifest)


class Explainer:
    """Safe to call from several threads. ``reach`` waits until the index holds a position and says whether it does;
    ``problems`` are sentences about what is wrong with the daemon."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        store: VectorStore,
        stream: Stream,
        reader: KeyedReader,
        source_lsn: Callable[[], Lsn],
        reach: Callable[[Lsn, float], bool],
        lag_s: Callable[[], float | None],
        problems: Callable[[], Sequence[str]],
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._stream = stream
        self._reader = reader
        self._source_lsn = source_lsn
        self._reach = reach
        self._lag_s = lag_s
        self._problems = problems

    def explain(
        self, explained: Explained, document: str, *, within: Mapping[str, Any] | None = None
    ) -> Explanation | None:
        """``document`` is a document's id, or what follows the table in it: the key. None for one that ``within`` (see
        ``grants``) does not show, and for one that has nothing in the index that would tell.

        Raises ``UsageError`` for what cannot be a key of the table, ``NotPermitted`` where nobody can tell.
        """
        if within is not None:
            check_columns(within, explained.collection.spec.metadata)
        first = self._look(explained, document)
        explanation = self._explanation(explained, first, steady=True)
        if not _permitted(explanation, within):
            return None
        if explanation.verdict.state not in _LOOK_AGAIN:
            return explanation
        if first.source_lsn is not None:
            self._reach(first.source_lsn, _PATIENCE_S)
        second = self._look(explained, document)
        explanation = self._explanation(explained, second, steady=first.content == second.content)
        return explanation if _permitted(explanation, within) else None

    # -- one look ---------------------------------------------------------------------------------------------

    def _look(self, explained: Explained, document: str) -> _Look:
        collection, name = explained.collection, explained.generation.physical
        found, key, row, facts = self._row(collection, document)
        source_lsn = self._asked(self._source_lsn)
        # In this order: what leaves the stream's rest is in the ledger by then.
        rest = waiting(self._stream, explained.watermark.offset, tables=explained.tables, key=key)
        manifest = self._ledger.manifests(name, [found]).get(found)
        held, fault = self._held(name, manifest)
        return _Look(
            document_id=found,
            key=key,
            row=row,
            row_facts=facts,
            manifest=manifest,
            held=held,
            letter=self._letter(name, found),
            waiting=rest,
            resyncs=[r for r in self._ledger.resyncs() if r.open and _reads(r, name, collection.table, key)],
            source_lsn=source_lsn,
            captured_lsn=self._stream.position().captured_lsn,
            applied_lsn=explained.watermark.applied_lsn,
            fault=facts.error if facts.exists is None else fault,
        )

    def _row(self, collection: IndexedCollection, document: str) -> tuple[str, tuple[str, ...], Row | None, RowFacts]:
        table = collection.table
        found = document if document.startswith(f"{table}:") else f"{table}:{document}"
        key = key_of(found)
        try:
            names = self._reader.key_names(table)
            key = key_in(found, table, len(names))
            _check_key(table, key, names)
            read = self._reader.by_key(table, [key])
        except (SourceError, RenderError) as exc:
            if isinstance(exc, SourceError) and not exc.retryable:
                hint = f"its key is {', '.join(names)}"
                raise UsageError(f"no row of {table} can have this key: {exc.message}", hint=hint) from exc
            return found, key, None, RowFacts(exists=None, error=exc.message)
        if not read.rows:
            return found, key, None, RowFacts(exists=False)
        row = Row(read.relations[0], read.rows[0])
        # Another spelling of the same key (007) finds the row, but the document is named as the server spells it.
        key = row.key() or key
        return document_id(table, key), key, row, _row_facts(collection, row)

    def _held(self, name: str, manifest: Manifest | None) -> tuple[dict[str, Record] | None, str]:
        ids = [chunk.id for chunk in manifest.chunks] if manifest is not None else []
        if not ids:
            return {}, ""
        try:
            return {record.id: record for record in self._store.get(name, ids)}, ""
        except CdcAgentError as exc:
            return None, exc.message

    def _letter(self, name: str, found: str) -> DeadLetter | None:
        if not self._ledger.parked(name, [found]):
            return None
        letters = self._ledger.dead_letters(collection=name)
        return next((letter for letter in letters if letter.document_id == found), None)

    def _asked(self, question: Callable[[], Lsn]) -> Lsn | None:
        try:
            return question()
        except SourceError:
            # The row says already that the source is away.
            return None

    # -- what it comes to -------------------------------------------------------------------------------------

    def _explanation(self, explained: Explained, look: _Look, *, steady: bool) -> Explanation:
        collection, generation = explained.collection, explained.generation
        place = Place(generation.physical, look.document_id, look.key)
        comparable = look.held is not None and look.row_facts.exists is not None
        differences = compare(collection, place, look.row, look.manifest, look.held or {}) if comparable else []
        live = look.manifest is not None and not look.manifest.deleted
        where = collection.spec.predicate.sql if collection.spec.predicate is not None else None
        behind = look.source_lsn is not None and look.captured_lsn < look.source_lsn
        changes = look.waiting.changes
        verdict = judge(
            Evidence(
                table=collection.table,
                document_id=look.document_id,
                key_text=_key_text(look.key),
                where=where,
                exists=look.row_facts.exists,
                matches=look.row_facts.matches,
                indexed_chunks=len(look.manifest.chunks) if live and look.manifest is not None else None,
                present=None if look.held is None else True,
                differences=differences,
                letter=look.letter,
                pending=look.waiting.count,
                pending_lsn=changes[-1].commit_lsn if changes else "",
                resyncs=look.resyncs,
                behind=behind,
                steady=steady,
                fault=look.fault,
                captured_lsn=str(look.captured_lsn),
                source_lsn=str(look.source_lsn),
                problems=self._problems() if differences else (),
            )
        )
        return Explanation(
            collection=generation.collection,
            document_id=look.document_id,
            table=collection.table,
            key=look.key,
            verdict=verdict,
            where=where,
            row=look.row_facts,
            index=self._index_facts(look.manifest, look.held),
            generation=GenerationFacts(
                number=generation.number,
                physical=generation.physical,
                model=explained.model,
                fingerprint=generation.fingerprint,
                created_at=_iso(generation.created_at) or "",
            ),
            dead_letter=_letter_facts(look.letter),
            pending=changes,
            progress=Progress(
                applied_lsn=str(look.applied_lsn),
                captured_lsn=str(look.captured_lsn),
                source_lsn=None if look.source_lsn is None else str(look.source_lsn),
                lag_s=self._lag_s(),
                waiting=look.waiting.entries,
                examined=look.waiting.examined,
            ),
            resyncs=[_resync_facts(resync) for resync in look.resyncs],
            differences=differences,
        )

    def _index_facts(self, manifest: Manifest | None, held: Mapping[str, Record] | None) -> IndexFacts | None:
        if manifest is None:
            return None
        chunks = [
            self._chunk_facts(place, chunk.id, held is not None, (held or {}).get(chunk.id))
            for place, chunk in enumerate(manifest.chunks)
        ]
        first = (held or {}).get(manifest.chunks[0].id) if manifest.chunks else None
        return IndexFacts(
            version=str(manifest.version),
            commit_lsn=str(manifest.version.commit_lsn),
            deleted=manifest.deleted,
            read_from_table=manifest.snapshot is not None,
            chunks=chunks,
            metadata=None if first is None else _configured(first.metadata),
        )

    def _chunk_facts(self, position: int, chunk_id: str, asked: bool, record: Record | None) -> ChunkFacts:
        metadata = record.metadata if record is not None else {}
        lsn, ts = metadata.get("cdc_lsn"), metadata.get("cdc_commit_ts")
        return ChunkFacts(
            id=chunk_id,
            position=position,
            present=record is not None if asked else None,
            text=record.text if record is not None else None,
            commit_lsn=str(Lsn(int(lsn))) if lsn is not None else None,
            commit_ts=str(ts) if ts is not None else None,
            written_at=_iso(self._ledger.written_at(chunk_id)),
        )


def _permitted(explanation: Explanation, within: Mapping[str, Any] | None) -> bool:
    """Whether all that anybody knows of the document is the asker's: its chunks, and the row as it is now."""
    if within is None:
        return True
    index, row = explanation.index, explanation.row
    if index is None or index.metadata is None:
        return False
    return permits(within, index.metadata) and (row.metadata is None or permits(within, row.metadata))


def _row_facts(collection: IndexedCollection, row: Row) -> RowFacts:
    try:
        wanted = expected(collection, row)
    except RenderError as exc:
        return RowFacts(exists=True, error=f"the row cannot be rendered: {exc.message}")
    if wanted is None:
        return RowFacts(exists=True, matches=False)
    metadata = {name: value for name, value in wanted.metadata.items() if value is not None}
    return RowFacts(exists=True, matches=True, chunks=len(wanted.hashes), metadata=metadata)


def _reads(resync: Resync, name: str, table: str, key: tuple[str, ...]) -> bool:
    concerned = resync.table == table and name in resync.collections
    return concerned and (not resync.keys or key in resync.keys)


def _check_key(table: str, key: tuple[str, ...], names: Sequence[str]) -> None:
    if len(key) != len(names):
        raise UsageError(
            f"a key of {table} has {len(names)} columns: {', '.join(names)}",
            hint='several columns as a JSON list: ["a", "7"]',
        )


def _key_text(key: tuple[str, ...]) -> str:
    """As the command line takes it."""
    return key[0] if len(key) == 1 else "[" + ", ".join(f'"{part}"' for part in key) + "]"


def _configured(metadata: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in metadata.items() if not name.startswith(RESERVED_PREFIX)}


def _letter_facts(letter: DeadLetter | None) -> LetterFacts | None:
    if letter is None:
        return None
    return LetterFacts(
        id=letter.id,
        version=str(letter.version),
        reason=letter.reason,
        error=letter.error,
        attempts=letter.attempts,
        parked_at=_iso(letter.parked_at),
    )


def _resync_facts(resync: Resync) -> ResyncFacts:
    return ResyncFacts(
        id=resync.id,
        state=resync.state,
        reason=resync.reason,
        rows_done=resync.rows_done,
        rows_estimated=resync.rows_estimated,
    )


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="milliseconds")
