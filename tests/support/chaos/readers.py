"""Readers that hammer /search, and judge every answer by what its texts say of themselves."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
import psycopg

from tests.support.chaos.endpoint import QUERY
from tests.support.chaos.record import Record
from tests.support.chaos.tables import ANCHORS, OWN
from tests.support.chaos.texts import Seen, body_of, new_lines, read, title_of
from tests.support.chaos.writers import Recent
from tests.support.daemon import DaemonProcess
from tests.support.postgres import Database

__all__ = ["Readers"]

Hit = Mapping[str, Any]

#: Answers that a reader has to expect: the daemon is busy or away, the commit is not reached in time.
_AWAY = (429, 503, 504)


class Readers:
    """Three threads: two that look for what was written of late, one that looks for its own writes."""

    def __init__(self, pg: Database, daemon: Callable[[], DaemonProcess], record: Record, recent: Recent, seed: int):
        self._pg = pg
        self._daemon = daemon
        self._record = record
        self._recent = recent
        self._stop = threading.Event()
        self._writing = threading.Lock()
        #: The newest version that an answer held, by collection and row.
        self._floors: dict[tuple[str, str], int] = defaultdict(int)
        #: Rows that are always there, by their key. Known once the first copies are done.
        self._anchors: list[str] = []
        self._threads = [
            threading.Thread(
                target=self._look, args=(random.Random(f"{seed}:reader:{n}"),), name=f"reader-{n}", daemon=True
            )
            for n in range(2)
        ]
        self._threads.append(
            threading.Thread(
                target=self._look_for_own, args=(random.Random(f"{seed}:own"),), name="reader-own", daemon=True
            )
        )

    def start(self) -> None:
        """Once the first copies are done: from then on every anchor is always found."""
        rows = self._pg.execute("select uid from notes where id = any(%s)", ([*ANCHORS],))
        self._anchors = [uid for (uid,) in rows]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def pause(self) -> None:
        """No more writes, until ``resume``; searches go on."""
        self._writing.acquire()

    def resume(self) -> None:
        self._writing.release()

    # -- what was written of late -----------------------------------------------------------------------------

    def _look(self, rng: random.Random) -> None:
        with httpx.Client(timeout=30.0) as client:
            while not self._stop.wait(rng.uniform(0.05, 0.15)):
                anchor = rng.random() < 0.4
                collection, uid = ("notes", rng.choice(self._anchors)) if anchor else self._chosen(rng)
                floor = self._floors[collection, uid]
                hits = self._ask(client, collection, uid)
                if hits is not None:
                    self._judge(collection, uid, hits, floor, required=anchor)

    def _chosen(self, rng: random.Random) -> tuple[str, str]:
        found = self._recent.choose(rng) or ("notes", rng.choice(self._anchors))
        return ("chosen", found[1]) if found[0] == "notes" and rng.random() < 0.3 else found

    def _judge(self, collection: str, uid: str, hits: Sequence[Hit], floor: int, *, required: bool) -> None:
        """One row's hits, all of which one answer must hold."""
        versions = {hit["metadata"]["version"] for hit in hits}
        documents = {hit["document_id"] for hit in hits}
        where = f"{collection} {uid}"
        if not hits:
            if required:
                self._record.violation("lost", f"{where}: the row is always there, and was not found")
            return
        if any(hit["metadata"].get("n") == -1 for hit in hits):
            self._record.violation("ghost", f"{where}: metadata that was rolled back")
        if len(documents) > 1:
            self._record.violation("torn", f"{where}: in one answer as {sorted(documents)}")
        elif len(versions) > 1:
            self._record.violation("torn", f"{where}: in one answer with metadata of {sorted(versions)}")
        newest = max(versions)
        if min(versions) < floor:
            self._record.violation("older", f"{where}: version {min(versions)} after {floor} was seen")
        self._floors[collection, uid] = max(self._floors[collection, uid], newest)
        self._judge_text(where, read(hit["text"] for hit in hits), newest)

    def _judge_text(self, where: str, seen: Seen, version: int) -> None:
        self._record.count("answers_judged")
        if seen.problem:
            kind = "ghost" if "rolled back" in seen.problem else "torn"
            self._record.violation(kind, f"{where}: {seen.problem}")
        elif seen.missing:
            self._record.violation("torn", f"{where}: without {seen.missing}")
        elif seen.version > version:
            self._record.violation("torn", f"{where}: text of {seen.version} with metadata of {version}")

    def _ask(self, client: httpx.Client, collection: str, uid: str, **more: Any) -> list[Hit] | None:
        """The hits of one row, None if there was no answer."""
        mending = self._record.mending
        body = {"collection": collection, "query": f"{QUERY} {uid}", "k": 100, "where": {"uid": uid}, **more}
        try:
            answer = client.post(self._daemon().url + "/search", json=body)
        except httpx.TransportError:
            self._record.count("searches_unanswered")
            return None
        if mending or self._record.mending:
            self._record.count("searches_beside_mending")
            return None
        if answer.status_code == 200:
            self._record.count("searches_answered")
            return list(answer.json()["hits"])
        self._record.count("searches_refused")
        if answer.status_code not in _AWAY:
            self._record.violation("stuck", f"/search answered {answer.status_code}: {answer.text[:300]}")
        return None

    # -- its own writes ---------------------------------------------------------------------------------------

    def _look_for_own(self, rng: random.Random) -> None:
        with httpx.Client(timeout=30.0) as client:
            while not self._stop.wait(rng.uniform(0.05, 0.2)):
                try:
                    with psycopg.connect(self._pg.dsn, autocommit=True) as connection:
                        self._write_and_read(client, connection, rng)
                except psycopg.Error:
                    self._stop.wait(0.2)  # The server is away, as it is meant to be now and then.

    def _write_and_read(self, client: httpx.Client, connection: psycopg.Connection[Any], rng: random.Random) -> None:
        while not self._stop.wait(rng.uniform(0.05, 0.2)):
            with self._writing:
                uid, version = self._write(connection, rng)
            lsn = connection.execute("select pg_current_wal_lsn()::text").fetchone()
            assert lsn is not None
            hits = self._ask(client, "notes", uid, min_lsn=lsn[0], timeout_s=5)
            if hits is not None:
                self._judge_own(uid, version, hits)

    def _write(self, connection: psycopg.Connection[Any], rng: random.Random) -> tuple[str, int | None]:
        """Change a row that nobody else does; returns whose it is and its version, None if it is gone."""
        key = rng.choice(OWN)
        uid = f"u{key}000000"
        drawn = connection.execute("select nextval('versions')").fetchone()
        assert drawn is not None
        version = int(drawn[0])
        if rng.random() < 0.15:
            connection.execute("delete from notes where id = %s", (key,))
            return uid, None
        lines = new_lines(uid, version, rng.choice((1, 4, 9)), rng)
        connection.execute(
            "insert into notes (id, uid, version, n, title, body) values (%s, %s, %s, 0, %s, %s) on conflict (id)"
            " do update set version = excluded.version, title = excluded.title, body = excluded.body",
            (key, uid, version, title_of(uid, version, lines), body_of(lines)),
        )
        return uid, version

    def _judge_own(self, uid: str, version: int | None, hits: Sequence[Hit]) -> None:
        self._record.count("own_writes_read")
        found = {hit["metadata"]["version"] for hit in hits}
        if found != ({version} if version is not None else set()):
            self._record.violation("older", f"{uid}: own version {version} was asked for, and {found or 'none'} found")
        elif hits:
            self._judge_text(f"own {uid}", read(hit["text"] for hit in hits), int(version or 0))
