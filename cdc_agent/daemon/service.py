"""What the daemon answers to HTTP: search, watermark, status, readiness, dead letters, resyncs."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import cdc_agent
from cdc_agent import metrics
from cdc_agent.agents.watermark import Progress
from cdc_agent.daemon.agency import Agency
from cdc_agent.daemon.consumers import Served
from cdc_agent.daemon.feeds import ROOT_OID, Feeding
from cdc_agent.daemon.lag import oldest_missing_us
from cdc_agent.daemon.mail import Mail
from cdc_agent.daemon.notify import watchdog_s
from cdc_agent.daemon.parts import Daemon
from cdc_agent.errors import CdcAgentError, DaemonUnavailable, LedgerUnavailable, UsageError
from cdc_agent.explain import Explained, Explainer, Explanation
from cdc_agent.health import Problem
from cdc_agent.identity import STATES
from cdc_agent.journal.base import Entry, Query
from cdc_agent.ledger.base import DeadLetter, Resync
from cdc_agent.lsn import Lsn
from cdc_agent.resync_order import ResyncOrder
from cdc_agent.sagas.operations import SagaOperations
from cdc_agent.search import SearchHit
from cdc_agent.source.clock import SourceClock
from cdc_agent.verify.report import Report, Wanted
from cdc_agent.web.answers import json_resync
from cdc_agent.web.service import LetterPage, LetterQuery
from cdc_agent.webhooks.inbox import Receipt

__all__ = ["DaemonService"]

#: How often a waiter asks the server again where it is.
_ASK_INTERVAL_S = 0.25
#: Dead letters whose rows are read again by one resync.
_REPLAYED_AT_ONCE = 1_000
#: How old what a scrape says of our slot may be.
_SCRAPED_SLOT_S = 30.0
_MOVED = {"pause": "paused", "resume": "resumed", "cancel": "cancelled"}


class DaemonService:
    """See ``web.service.Service``."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.started_at = time.time()
        #: Two scrapes at once would see the labels of each other come and go.
        self._scraping = threading.Lock()
        #: What an alert may ask for, and whatever else was wrong since the start.
        self._problem_names = {"source", "embedding", "vectorstore"}
        source = daemon.config.source
        self._clock = SourceClock(source.dsn.get_secret_value(), connect_timeout_s=source.connect_timeout_s)
        self._explainer = Explainer(
            ledger=daemon.ledger,
            store=daemon.store,
            stream=daemon.stream,
            # One row by its key: live changes that need their row again do not notice.
            reader=daemon.rereader,
            source_lsn=self.source_lsn,
            reach=self._reaches,
            lag_s=self.lag_s,
            problems=lambda: [f"{problem.name}: {problem.message}" for problem in self.readiness()],
        )

    def search(
        self,
        collection: str,
        query: str,
        *,
        k: int,
        where: Mapping[str, Any] | None,
        within: Mapping[str, Any] | None = None,
    ) -> Sequence[SearchHit]:
        return self._daemon.searcher.search(collection, query, k, where, within=within)

    def explain(self, collection: str, document: str, *, within: Mapping[str, Any] | None = None) -> Explanation | None:
        explained = self._explained(collection)
        feeding = self._daemon.feeds.of(explained.collection.table)
        explainer = self._explainer if feeding is None else self._explainer_of(feeding, explained.watermark)
        return explainer.explain(explained, document, within=within)

    def _explainer_of(self, feeding: Feeding, watermark: Progress) -> Explainer:
        """A feed has a stream and positions of its own."""
        return Explainer(
            ledger=self._daemon.ledger,
            store=self._daemon.store,
            stream=feeding.stream,
            reader=feeding.reader,
            source_lsn=feeding.follower.head,
            reach=watermark.wait_lsn,
            lag_s=lambda: None,
            problems=lambda: [f"{problem.name}: {problem.message}" for problem in self.readiness()],
        )

    def _explained(self, collection: str) -> Explained:
        live = {s.generation.collection: s for s in self._daemon.indexer.served if s.generation.state == "live"}
        if collection not in live:
            names = ", ".join(sorted(live)) or "none"
            raise UsageError(f"there is no collection {collection!r}", hint=f"collections here: {names}")
        served = live[collection]
        return Explained(
            generation=served.generation,
            collection=served.collection,
            model=served.embedder.model,
            watermark=self._daemon.indexer.watermark_of(served),
            tables=frozenset({self._daemon.roots.get(served.collection.table, ROOT_OID)}),
        )

    def collections(self) -> Sequence[Mapping[str, Any]]:
        live = [s for s in self._daemon.indexer.served if s.generation.state == "live"]
        return [
            {
                "name": served.generation.collection,
                "table": served.collection.table,
                "metadata": list(served.collection.spec.metadata),
            }
            for served in sorted(live, key=lambda s: s.generation.collection)
        ]

    def _reaches(self, lsn: Lsn, timeout_s: float) -> bool:
        try:
            self.wait(lsn, timeout_s)
        except TimeoutError:
            return False
        return True

    def wait(self, lsn: Lsn, timeout_s: float) -> Lsn:
        watermark = self._daemon.indexer.watermark
        deadline = time.monotonic() + timeout_s
        while not watermark.wait_lsn(lsn, 0):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            if self._daemon.stop.is_set():
                raise DaemonUnavailable("the daemon is stopping", hint="ask again when it is back")
            self._hurry()
            watermark.wait_lsn(lsn, min(left, _ASK_INTERVAL_S))
        return watermark.applied_lsn

    def reached(self, lsn: Lsn) -> bool:
        """Whether the index holds every commit up to ``lsn``; if it does not, it hurries."""
        if self.applied_lsn() >= lsn:
            return True
        self._hurry()
        return False

    def _hurry(self) -> None:
        """The watermark may be behind only because the server has had no reason to say how far it is."""
        self._daemon.capture.hurry()
        self._daemon.indexer.hurry()

    def applied_lsn(self) -> Lsn:
        return self._daemon.indexer.watermark.applied_lsn

    def source_lsn(self) -> Lsn:
        return self._clock.now()

    def close(self) -> None:
        self._clock.close()

    def lag_s(self) -> float | None:
        if not self._daemon.capture.streaming.is_set():
            return None
        watermark = self._daemon.indexer.watermark
        oldest = oldest_missing_us(self._daemon.stream, watermark.offset, watermark.applied_lsn)
        return 0.0 if oldest is None else max(0.0, time.time() - oldest / 1_000_000)

    def status(self) -> dict[str, Any]:
        daemon = self._daemon
        watermark = daemon.indexer.watermark
        captured = daemon.stream.position().captured_lsn
        return {
            "version": cdc_agent.__version__,
            "uptime_s": round(time.time() - self.started_at, 1),
            "streaming": daemon.capture.streaming.is_set(),
            "problems": [{"name": p.name, "message": p.message, "hint": p.hint} for p in self.readiness()],
            "captured_lsn": str(captured),
            "applied_lsn": str(watermark.applied_lsn),
            "lag_s": self.lag_s(),
            "stream": {
                "bytes": daemon.stream.size_bytes(),
                "head_offset": daemon.stream.head_offset(),
                "applied_offset": watermark.offset,
            },
            "slot": self.slot(),
            "collections": [self._collection(s) for s in daemon.indexer.served if s.generation.state == "live"],
            "dead_letters": sum(daemon.ledger.dead_letter_counts().values()),
            "resyncs": [json_resync(r, self.resync_rate(r.id)) for r in daemon.ledger.resyncs() if r.open],
        }

    def slot(self, *, max_age_s: float = 0.0) -> dict[str, Any] | None:
        """The slot, JSON-ready, as it was at most so long ago (see ``SlotWatch``); None when nobody can tell."""
        found = self._daemon.slot_watch.look(max_age_s)
        if found is None:
            return None
        return {
            "name": found.name,
            "plugin": found.plugin,
            "wal_status": found.wal_status,
            "confirmed_flush_lsn": str(found.confirmed_flush_lsn),
            "retained_bytes": found.retained_bytes,
            "lag_bytes": found.lag_bytes,
        }

    def _collection(self, served: Served) -> dict[str, Any]:
        name, table = served.generation.collection, served.collection.table
        documents, chunks = self._daemon.ledger.counts(served.physical)
        generations = self._daemon.migrations.status([name])
        known = {"name": name, "table": table, "documents": documents, "chunks": chunks}
        # What was never migrated has nothing to tell.
        return known | ({"generations": generations} if generations[-1]["generation"] > 1 else {})

    def metrics(self) -> bytes:
        """Every metric; what only a question can tell is asked first, the server at most twice a minute."""
        with self._scraping:
            self._measure()
            return metrics.render()

    def _measure(self) -> None:
        for served in self._daemon.indexer.served:
            if served.generation.state == "live":
                documents, chunks = self._daemon.ledger.counts(served.physical)
                metrics.DOCUMENTS.labels(collection=served.generation.collection).set(documents)
                metrics.CHUNKS.labels(collection=served.generation.collection).set(chunks)
        metrics.AGENT_LAG_ENTRIES.clear()
        for agent in self._daemon.indexer.states():
            metrics.AGENT_LAG_ENTRIES.labels(agent=agent.name).set(max(0, agent.head_offset - agent.offset))
        lag_s = self.lag_s()
        metrics.LAG_SECONDS.set(float("nan") if lag_s is None else lag_s)
        self._tell_problems()
        metrics.BUILD_INFO.labels(version=cdc_agent.__version__).set(1)
        self.slot(max_age_s=_SCRAPED_SLOT_S)

    def _tell_problems(self) -> None:
        """What was wrong once stays, as 0: an alert must be able to see that it is over."""
        names = {problem.name for problem in self.readiness()}
        self._problem_names |= names
        for name in self._problem_names:
            metrics.PROBLEM.labels(component=name).set(name in names)

    def alive(self) -> bool:
        return self._daemon.capture.alive_within(watchdog_s())

    def readiness(self) -> Sequence[Problem]:
        problems = list(self._daemon.health.problems())
        names = {problem.name for problem in problems}
        if not self._daemon.capture.streaming.is_set() and "source" not in names:
            problems.append(Problem(name="source", message="not streaming yet", hint="it is connecting"))
        problems += [p for p in self._daemon.indexer.problems() if p.name not in names]
        problems += [*self._daemon.feeds.problems(), *self._daemon.listeners.problems()]
        names |= {problem.name for problem in problems}
        problems += [p for p in self._mending() if p.name not in names]
        if "vectorstore" not in names:
            try:
                self._daemon.store.ping()
            except CdcAgentError as exc:
                problems.append(Problem(name="vectorstore", message=exc.message, hint=exc.hint))
        return problems

    def _mending(self) -> list[Problem]:
        """What happened while a place in the log was lost is in the index only once every table was read again."""
        try:
            reasons = {r.reason for r in self._daemon.ledger.resyncs() if r.open} & set(STATES)
        except LedgerUnavailable as exc:
            return [Problem(name="ledger", message=exc.message, hint=exc.hint)]
        return [
            Problem(name="mending", message=f"{state}: every table is being read again", hint="see /resyncs")
            for state in sorted(reasons)
        ]

    def dead_letters(self, wanted: LetterQuery) -> LetterPage:
        ledger = self._daemon.ledger
        found = ledger.dead_letters(
            collection=wanted.collection, reason=wanted.reason, after=wanted.after, limit=wanted.limit + 1
        )
        letters, more = found[: wanted.limit], len(found) > wanted.limit
        total = sum(ledger.dead_letter_counts().values())
        return LetterPage(letters=letters, next_after=letters[-1].id if more else None, total=total)

    def dead_letter(self, letter_id: int) -> DeadLetter | None:
        return self._daemon.ledger.dead_letter(letter_id)

    def replay_dead_letter(self, letter_id: int) -> bool:
        letter = self._daemon.ledger.dead_letter(letter_id)
        if letter is None:
            return False
        self._daemon.resync.request(_rereading([letter], f"dead letter {letter_id}"))
        return True

    def replay_dead_letters(self, wanted: LetterQuery) -> int:
        after, count = 0, 0
        while letters := self._daemon.ledger.dead_letters(
            collection=wanted.collection, reason=wanted.reason, after=after, limit=_REPLAYED_AT_ONCE
        ):
            for _, same in itertools.groupby(sorted(letters, key=_place), key=_place):
                self._daemon.resync.request(_rereading(list(same), "dead letters"))
            after, count = letters[-1].id, count + len(letters)
        return count

    def discard_dead_letters(self, wanted: LetterQuery) -> int:
        return self._daemon.ledger.discard_dead_letters(collection=wanted.collection, reason=wanted.reason)

    def discard_dead_letter(self, letter_id: int) -> bool:
        return self._daemon.ledger.discard_dead_letter(letter_id)

    def webhook_limit(self, source: str) -> int | None:
        mail = self._daemon.mail
        return mail.inbox.max_body_bytes(source) if mail else None

    def take_webhook(self, source: str, headers: Mapping[str, str], body: bytes) -> Receipt:
        receipt = self._mail().inbox.take(source, headers, body)
        self._daemon.feeds.ring(source)
        return receipt

    def facts(self, wanted: Query) -> Sequence[Entry]:
        return self._mail().journal.find(wanted)

    def agents(self) -> Agency:
        if self._daemon.agency is None:
            raise UsageError("this daemon runs no agents of yours", hint="name their app in agents, see docs/AGENTS.md")
        return self._daemon.agency

    def sagas(self) -> SagaOperations:
        if self._daemon.sagas is None:
            raise UsageError("this daemon has no sagas", hint="declare one in an app of agents, see docs/SAGAS.md")
        return self._daemon.sagas.operations

    def _mail(self) -> Mail:
        if self._daemon.mail is None:
            raise UsageError("this daemon keeps no facts", hint="configure webhooks or agents")
        return self._daemon.mail

    def resyncs(self) -> Sequence[Resync]:
        return self._daemon.ledger.resyncs()

    def verifies(self) -> Sequence[Report]:
        return self._daemon.verify.reports()

    def verify(self, number: int) -> Report | None:
        return self._daemon.verify.report(number)

    def start_verify(self, wanted: Wanted) -> Report:
        return self._daemon.verify.request(wanted)

    def resync_rate(self, resync_id: int) -> float | None:
        return self._daemon.resync.rate(resync_id)

    def start_resync(self, order: ResyncOrder) -> Sequence[Resync]:
        asked = order.resyncs(self._daemon.indexer.tables())
        wanted = [resync for one in asked for resync in self._daemon.indexer.directed(one)]
        reader = self._daemon.row_reader
        for resync in wanted:
            if resync.predicate:
                reader.check_predicate(resync.table, resync.predicate)
            if resync.keys:
                _check_keys(resync, reader.key_names(resync.table))
        return [self._daemon.resync.request(resync) for resync in wanted]

    def move_resync(self, resync_id: int, action: str) -> Resync | None:
        found = self._daemon.ledger.resync(resync_id)
        if found is None:
            return None
        runner = self._daemon.resync
        moved = {"pause": runner.pause, "resume": runner.resume, "cancel": runner.cancel}[action](resync_id)
        if not moved:
            raise UsageError(f"resync {resync_id} is {found.state}: it cannot be {_MOVED[action]}", hint="list them")
        return self._daemon.ledger.resync(resync_id)

    def migrations(self) -> Sequence[Mapping[str, Any]]:
        return self._daemon.migrations.status()

    def start_migration(self, collection: str | None) -> Sequence[Mapping[str, Any]]:
        return self._daemon.migrations.start(collection)

    def move_migration(self, collection: str, action: str) -> Sequence[Mapping[str, Any]]:
        moves = self._daemon.migrations
        acts = {"switch": moves.switch, "rollback": moves.rollback, "finish": moves.finish, "abort": moves.abort}
        return acts[action](collection)


def _place(letter: DeadLetter) -> tuple[str, str]:
    return (letter.table, letter.collection)


def _rereading(letters: Sequence[DeadLetter], reason: str) -> Resync:
    """A resync of the rows of dead letters that are of one table and collection."""
    table, collection = _place(letters[0])
    keys = tuple(dict.fromkeys(letter.key for letter in letters))
    return Resync(table=table, collections=(collection,), keys=keys, reason=reason)


def _check_keys(resync: Resync, names: Sequence[str]) -> None:
    if any(len(key) != len(names) for key in resync.keys):
        raise UsageError(
            f"a key of {resync.table} has {len(names)} columns: {', '.join(names)}",
            hint='several columns as a JSON list: ["a", "7"]',
        )
