"""What the HTTP interface needs from the daemon. The daemon implements it; tests bring a small one of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cdc_agent.explain import Explanation
from cdc_agent.health import Problem
from cdc_agent.journal.base import Entry, Query
from cdc_agent.ledger.base import DeadLetter, Resync
from cdc_agent.lsn import Lsn
from cdc_agent.resync_order import ResyncOrder
from cdc_agent.search import SearchHit
from cdc_agent.verify.report import Report, Wanted
from cdc_agent.web.agents import AgentService
from cdc_agent.web.sagas import SagaService
from cdc_agent.webhooks.inbox import Receipt

__all__ = ["LetterPage", "LetterQuery", "Problem", "Service"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterQuery:
    """Some dead letters: of one collection (as a letter names it) or of all, parked for one reason or any."""

    collection: str | None = None
    reason: str | None = None
    after: int = 0
    limit: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterPage:
    """``next_after`` is where the next page begins, None on the last; ``total`` counts every letter there is."""

    letters: Sequence[DeadLetter]
    next_after: int | None
    total: int


class Service(Protocol):
    """Every method may be called from several threads at once and may block, but for no longer than it says.

    Errors are ``CdcAgentError``s: ``UsageError`` becomes 400, a retryable one 503, any other 500.
    """

    def search(
        self,
        collection: str,
        query: str,
        *,
        k: int,
        where: Mapping[str, Any] | None,
        within: Mapping[str, Any] | None,
    ) -> Sequence[SearchHit]:
        """``within`` is what the sender may see at all, ``where`` what is wanted of it. Raises ``NotPermitted`` when
        the collection cannot be parted."""
        ...

    def explain(self, collection: str, document: str, *, within: Mapping[str, Any] | None = None) -> Explanation | None:
        """Why a document is, or is not, in the index. Answers within some seconds. None when ``within`` does not let
        its asker see it, or there is nothing to tell whose it is."""
        ...

    def collections(self) -> Sequence[Mapping[str, Any]]:
        """What can be searched, JSON-ready: names, tables, and the metadata columns that conditions may name."""
        ...

    def wait(self, lsn: Lsn, timeout_s: float) -> Lsn:
        """Block until the index is complete up to ``lsn``; return how far it is.

        Raises ``TimeoutError`` after ``timeout_s``. Called in slices of at most a second, so that shutdown and
        clients that hang up are noticed.
        """
        ...

    def applied_lsn(self) -> Lsn:
        """The commit up to which the index is complete. Never blocks."""
        ...

    def source_lsn(self) -> Lsn:
        """Where the source's log is now: every commit that was acknowledged until now lies before it."""
        ...

    def lag_s(self) -> float | None:
        """Seconds that the index is behind the source, 0 when it is not; None when that is unknown."""
        ...

    def status(self) -> dict[str, Any]:
        """What an operator wants to see, JSON-ready."""
        ...

    def metrics(self) -> bytes:
        """Every metric in Prometheus' text format."""
        ...

    def alive(self) -> bool:
        """Whether the replication loop turns. Answers at once, whatever hangs."""
        ...

    def readiness(self) -> Sequence[Problem]:
        """Why searches may be refused or stale; empty when all is well. Answers within five seconds."""
        ...

    def dead_letters(self, wanted: LetterQuery) -> LetterPage: ...

    def dead_letter(self, letter_id: int) -> DeadLetter | None: ...

    def replay_dead_letter(self, letter_id: int) -> bool:
        """Read the row again and index it as it is now. False when there is no such letter."""
        ...

    def discard_dead_letter(self, letter_id: int) -> bool:
        """Forget the letter; the document stays as it is in the index. False when there is no such letter."""
        ...

    def replay_dead_letters(self, wanted: LetterQuery) -> int:
        """Read the rows of all these again, page or not; returns how many letters there are."""
        ...

    def discard_dead_letters(self, wanted: LetterQuery) -> int:
        """Forget all these, page or not, as far as there are any now; returns how many they were."""
        ...

    def webhook_limit(self, source: str) -> int | None:
        """Most bytes of one delivery of this sender; None when it is not configured. Never blocks."""
        ...

    def take_webhook(self, source: str, headers: Mapping[str, str], body: bytes) -> Receipt:
        """Prove a delivery and record what it says; durable on return. Raises ``WebhookError``s, ``JournalFull``."""
        ...

    def agents(self) -> AgentService:
        """The user's agents. Raises ``UsageError`` where none are configured."""

    def sagas(self) -> SagaService:
        """Sagas of the user's agents. Raises ``UsageError`` where there are none."""
        ...

    def facts(self, wanted: Query) -> Sequence[Entry]:
        """Entries of the journal. Raises ``UsageError`` when this daemon keeps none."""
        ...

    def resyncs(self) -> Sequence[Resync]: ...

    def resync_rate(self, resync_id: int) -> float | None:
        """Rows a second that a running resync makes; None when it is not known."""
        ...

    def start_resync(self, order: ResyncOrder) -> Sequence[Resync]:
        """Record what is to be read again and return it; it begins by itself."""
        ...

    def move_resync(self, resync_id: int, action: str) -> Resync | None:
        """``pause``, ``resume`` or ``cancel`` a resync. None when there is no such resync."""
        ...

    def verifies(self) -> Sequence[Report]: ...

    def verify(self, number: int) -> Report | None: ...

    def start_verify(self, wanted: Wanted) -> Report:
        """Begin an audit. Raises ``UsageError`` while another is not finished."""
        ...

    def migrations(self) -> Sequence[Mapping[str, Any]]:
        """Every generation of every collection, JSON-ready."""
        ...

    def start_migration(self, collection: str | None) -> Sequence[Mapping[str, Any]]:
        """Build what the configuration file describes now beside what answers searches; return what was begun."""
        ...

    def move_migration(self, collection: str, action: str) -> Sequence[Mapping[str, Any]]:
        """``switch``, ``rollback``, ``finish`` or ``abort``. Returns when it is done."""
        ...
