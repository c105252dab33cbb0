"""One audit from beginning to end: rows against the index, the index against the rows, the store against both.

It goes page by page with bounded memory, reads from every end in short calls, embeds nothing but the sample, and rests
between pages, longer while live changes wait. What looks wrong is a suspect; ``settling`` decides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from cdc_agent import metrics
from cdc_agent.documents.model import document_id, key_in
from cdc_agent.events import Row
from cdc_agent.ledger.base import Manifest
from cdc_agent.source.base import RowSet
from cdc_agent.verify.comparison import Place
from cdc_agent.verify.defects import Defect, Kind
from cdc_agent.verify.ends import Audited, Ends
from cdc_agent.verify.repair import Repairer
from cdc_agent.verify.report import Report
from cdc_agent.verify.settling import Settler, Strays, look
from cdc_agent.verify.vectors import ChunkPlace, Sample, VectorCheck

__all__ = ["Audit"]

#: Rows of the first page, and of any, so that live work waits for none; a page aims at this many bytes of rows.
_FIRST_ROWS, _MAX_ROWS = 64, 200
_PAGE_BYTES = 1 << 20
#: Suspects that are settled together: each time costs two waits for the index.
_SUSPECTS = 200
#: Chunks of the sample that are embedded at a time.
_VECTORS_AT_A_TIME = 16
#: Rest after a page, as a share of the time that the page took: ordinarily, and while live changes wait.
_REST, _REST_BEHIND = 0.1, 1.0
_REST_MAX_S = 1.0


class Audit:
    """Runs once; ``report`` is what others see of it meanwhile."""

    def __init__(
        self,
        ends: Ends,
        collections: Sequence[Audited],
        report: Report,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ends = ends
        self._collections = {audited.name: audited for audited in collections}
        self._report = report
        self._clock = clock
        self._settler = Settler(ends, self._collections)
        self._strays = Strays(ends)
        self._vector_check = VectorCheck(ends, self._collections)
        self._repairer = Repairer(ends, self._collections)
        self._sample = Sample(report.wanted.sample)
        self._suspects: list[Place] = []

    def run(self) -> None:
        tables: dict[str, list[Audited]] = {}
        for audited in self._collections.values():
            tables.setdefault(audited.collection.table, []).append(audited)
        self._estimate(tables)
        for audited in self._collections.values():
            self._check_generation(audited)
        for table, own in tables.items():
            self._check_rows(table, own)
            for audited in own:
                self._check_documents(table, audited)
        for audited in self._collections.values():
            self._check_records(audited)
        self._check_vectors()

    def _estimate(self, tables: Mapping[str, Sequence[Audited]]) -> None:
        rows = sum(self._ends.estimated_rows(table) for table in tables)
        documents = sum(self._ends.ledger.counts(name)[0] for name in self._collections)
        chunks = sum(self._ends.ledger.counts(name)[1] for name in self._collections)
        self._report.estimated = rows + documents + chunks + min(self._report.wanted.sample, chunks)

    # -- the collection as a whole ----------------------------------------------------------------------------

    def _check_generation(self, audited: Audited) -> None:
        defects = self._wrong_generation(audited)
        self._report.add(defects)
        if defects and self._report.wanted.repair:
            self._repairer.generation(audited)
            self._report.mended(defects, self._wrong_generation(audited))

    def _wrong_generation(self, audited: Audited) -> list[Defect]:
        marker = self._ends.in_store(lambda: self._ends.store.marker(audited.name))
        wrong = sorted(key for key, value in audited.marker.items() if marker.get(key) != value)
        if not wrong:
            return []
        what = f"the store's collection was built otherwise: {', '.join(wrong)}"
        return [Defect(kind=Kind.WRONG_GENERATION, collection=audited.name, what=what)]

    # -- rows against the index -------------------------------------------------------------------------------

    def _check_rows(self, table: str, own: Sequence[Audited]) -> None:
        after: tuple[str, ...] | None = None
        limit = _FIRST_ROWS
        while True:
            began = self._clock()
            page = self._ends.page(table, after, limit)
            rows = [Row(relation, raw) for relation, raw in zip(page.relations, page.rows, strict=True)]
            for audited in own:
                self._compare(table, audited, rows)
            self._report.rows += len(rows)
            metrics.VERIFY_ROWS.inc(len(rows))
            if len(rows) < limit:
                break
            after = rows[-1].key()
            limit = _next_limit(page)
            self._rest(began)
        self._settle(table)

    def _compare(self, table: str, audited: Audited, rows: Sequence[Row]) -> None:
        keyed = {key: row for row in rows if (key := row.key()) is not None}
        places = [Place(audited.name, document_id(table, key), key) for key in keyed]
        manifests, found = look(self._ends, self._collections, places, keyed)
        for place, defects in found.items():
            if defects:
                self._suspect(table, place)
            else:
                self._offer(place, manifests[place])

    def _offer(self, place: Place, manifest: Manifest | None) -> None:
        if manifest is None or manifest.deleted:
            return
        self._report.chunks += len(manifest.chunks)
        for chunk in manifest.chunks:
            self._sample.offer(ChunkPlace(place, chunk.id, chunk.text_hash))

    # -- the index against the rows ---------------------------------------------------------------------------

    def _check_documents(self, table: str, audited: Audited) -> None:
        """Documents that no row stands behind. Those whose row is there were compared with it."""
        columns = self._ends.key_columns(table)
        after = ""
        while documents := self._ends.ledger.documents_after(audited.name, after, _MAX_ROWS):
            began = self._clock()
            places = [Place(audited.name, d, key_in(d, table, columns)) for d in documents]
            _, rows = self._ends.rows(table, [place.key for place in places])
            for place in places:
                if place.key not in rows:
                    self._suspect(table, place)
            self._report.documents += len(documents)
            after = documents[-1]
            self._rest(began)
        self._settle(table)

    # -- what looks wrong -------------------------------------------------------------------------------------

    def _suspect(self, table: str, place: Place) -> None:
        self._suspects.append(place)
        if len(self._suspects) >= _SUSPECTS:
            self._settle(table)

    def _settle(self, table: str) -> None:
        suspects, self._suspects = self._suspects, []
        if not suspects:
            return
        settled = self._settler.settle(table, suspects)
        self._report.add(settled.defects)
        self._report.parked += len(settled.parked)
        self._report.moving += len(settled.moving)
        if settled.defects and self._report.wanted.repair:
            self._repairer.documents(table, settled.defects)
            again = self._settler.settle(table, _places(settled.defects))
            self._report.parked += len(again.parked)
            self._report.mended(settled.defects, again.defects)

    # -- the store against the index --------------------------------------------------------------------------

    def _check_records(self, audited: Audited) -> None:
        """Records that nothing names. Collected first: deleting moves the pages of a listing."""
        unnamed: dict[str, None] = {}
        for page in self._ends.stored_ids(audited.name):
            began = self._clock()
            known = self._ends.ledger.known(audited.name, page)
            unnamed.update((chunk_id, None) for chunk_id in page if chunk_id not in known)
            self._report.records += len(page)
            self._rest(began)
        ids = list(unnamed)
        for start in range(0, len(ids), _SUSPECTS):
            self._settle_strays(audited.name, ids[start : start + _SUSPECTS])

    def _settle_strays(self, name: str, ids: Sequence[str]) -> None:
        defects = self._strays.settle(name, ids)
        self._report.add(defects)
        if defects and self._report.wanted.repair:
            self._repairer.records(name, defects)
            self._report.mended(defects, self._strays.settle(name, [defect.chunk_id for defect in defects]))

    # -- vectors against texts --------------------------------------------------------------------------------

    def _check_vectors(self) -> None:
        chosen: dict[str, list[ChunkPlace]] = {}
        for chunk in self._sample.chosen:
            chosen.setdefault(chunk.place.collection, []).append(chunk)
        for name, chunks in chosen.items():
            for start in range(0, len(chunks), _VECTORS_AT_A_TIME):
                began = self._clock()
                some = chunks[start : start + _VECTORS_AT_A_TIME]
                self._settle_vectors(name, self._vector_check.check(name, some))
                self._report.sampled += len(some)
                self._rest(began)

    def _settle_vectors(self, name: str, defects: Sequence[Defect]) -> None:
        if not defects:
            return
        parked = self._ends.ledger.parked(name, {d.document_id for d in defects})
        defects = [defect for defect in defects if defect.document_id not in parked]
        self._report.parked += len(parked)
        self._report.add(defects)
        if defects and self._report.wanted.repair:
            self._repairer.documents(self._collections[name].collection.table, defects)
            self._report.mended(defects, self._vector_check.check(name, self._chunks_of(name, _places(defects))))

    def _chunks_of(self, name: str, places: Sequence[Place]) -> list[ChunkPlace]:
        """The chunks that these documents have now."""
        manifests = self._ends.manifests(name, [place.document_id for place in places])
        return [
            ChunkPlace(place, chunk.id, chunk.text_hash)
            for place in places
            if place.document_id in manifests
            for chunk in manifests[place.document_id].chunks
        ]

    def _rest(self, began: float) -> None:
        took = self._clock() - began
        self._ends.stop.wait(min(_REST_MAX_S, took * (_REST_BEHIND if self._ends.behind() else _REST)))
        self._ends.check_stop()


def _places(defects: Sequence[Defect]) -> list[Place]:
    return list(dict.fromkeys(Place(d.collection, d.document_id, d.key) for d in defects))


def _next_limit(page: RowSet) -> int:
    size = sum(len(value) for raw in page.rows for value in raw if isinstance(value, bytes))
    return max(1, min(_MAX_ROWS, _PAGE_BYTES * len(page.rows) // max(size, 1)))
