"""Asks on every connection whether we may go on where we stopped, and mends a lost place where that is allowed.

Mending is a new slot from now on, and everything before it read again. It is recorded before it begins, each of its
steps may be repeated, and the next life goes on with it: no crash leaves a gap. Where the history that was captured is
not the server's any more, versions and snapshots in ledger and stream mean nothing: both are rebased, which nobody may
see half done, so that happens only before any thread runs (``prepare``); a running daemon starts over for it
(``StartOver``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from cdc_agent import metrics
from cdc_agent.errors import IdentityMismatch, SlotBusy
from cdc_agent.failpoints import hit
from cdc_agent.health import Health
from cdc_agent.identity.checks import (
    ANOTHER_HISTORY,
    MENDABLE,
    STATES,
    Facts,
    check,
    check_resumed,
    refuse_foreign,
)
from cdc_agent.ledger.base import Ledger, SourceIdentity
from cdc_agent.source import slot as slots
from cdc_agent.source.replication import ServerIdentity
from cdc_agent.stream.base import Stream

__all__ = ["Place", "SourceGuard", "StartOver"]

log = logging.getLogger(__name__)

#: A state that comes back more often than this within an hour is not mended but shown.
_MENDINGS_AN_HOUR = 3
_HOUR_S = 3600.0


class StartOver(Exception):
    """Not an error: what the ledger and the stream hold must change under everybody, so the daemon begins anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where in the database we read: its slot and, for plugins that need one, its publication.

    ``publish`` makes the publication, or adds what it lacks. ``settle`` returns once every transaction of now has
    ended for all readers.
    """

    dsn: str
    slot_name: str
    plugin: str
    database_oid: int
    publication: str = ""
    publish: Callable[[], None] = lambda: None
    settle: Callable[[], None] = lambda: None


class SourceGuard:
    """Creates the slot once, and checks on every connection that we go on where we stopped.

    ``resync_all`` records that every table is to be read again, for a reason. ``adopt`` allows, once, that the server
    is another one.
    """

    def __init__(
        self,
        place: Place,
        *,
        ledger: Ledger,
        stream: Stream,
        resync_all: Callable[[str], None],
        mend: bool,
        adopt: bool = False,
        health: Health | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._place = place
        self._ledger = ledger
        self._stream = stream
        self._resync_all = resync_all
        self._mend = mend
        self._adopt = adopt
        self._health = health or Health()
        self._wall_clock = wall_clock
        self._state = ""

    def prepare(self, server: ServerIdentity) -> None:
        """Before any thread runs: make the slot if this ledger never had one; otherwise as ``verify``."""
        self._ensure(server, alone=True)

    def verify(self, server: ServerIdentity) -> None:
        """Return when streaming may go on from the stream's position. Raises ``IdentityMismatch`` for what is not to
        be mended, ``SlotBusy`` while somebody else streams, ``StartOver`` for what cannot be mended while running."""
        self._ensure(server, alone=False)

    def tell(self) -> None:
        """Show in the metrics which states are, or are still being mended."""
        unsettled = {self._state} | {r.reason for r in self._ledger.resyncs() if r.open}
        for state in STATES:
            metrics.MISMATCH.labels(state=state).set(state in unsettled)

    # -- what is -----------------------------------------------------------------------------------------------

    def _ensure(self, server: ServerIdentity, *, alone: bool) -> None:
        try:
            self._settle(server, alone=alone)
        except SlotBusy:
            self._note("SLOT_BUSY")
            raise
        except IdentityMismatch as exc:
            self._note(exc.state)
            raise
        self._note("")

    def _note(self, state: str) -> None:
        self._state = state
        self.tell()

    def _settle(self, server: ServerIdentity, *, alone: bool) -> None:
        identity = self._ledger.identity()
        under_way = self._ledger.mending()
        facts = self._facts(server)
        try:
            if identity is None or not (identity.slot_ready or under_way):
                self._begin(facts, identity)
            elif under_way is None:
                check(facts, identity)
                self._keep(facts, identity)
            else:
                check_resumed(facts, identity, under_way)
                self._carry_out(facts, under_way, alone=alone)
        except IdentityMismatch as exc:
            self._answer(exc, facts, alone=alone)

    def _facts(self, server: ServerIdentity) -> Facts:
        place = self._place
        return Facts(
            server=server,
            database_oid=place.database_oid,
            slot_name=place.slot_name,
            plugin=place.plugin,
            publication=place.publication,
            slot=slots.describe(place.dsn, place.slot_name),
            publication_oid=slots.publication_oid(place.dsn, place.publication) if place.publication else 0,
            position=self._stream.position(),
        )

    def _keep(self, facts: Facts, identity: SourceIdentity) -> None:
        """Remember what may change without harm: a promotion that lost nothing."""
        now = replace(identity, timeline=facts.server.timeline, publication_oid=facts.publication_oid)
        if now != identity:
            self._ledger.save_identity(now)

    def _begin(self, facts: Facts, identity: SourceIdentity | None) -> None:
        """The first slot of this ledger. With an ``identity`` a life ended while it made that."""
        refuse_foreign(facts.slot)
        here = replace(self._identity(facts, ready=False), publication_oid=0)
        begun = identity is not None and replace(identity, publication_oid=0, timeline=here.timeline) == here
        if facts.slot is not None and not begun:
            raise IdentityMismatch(
                "LEDGER_LOST",
                f"slot {facts.slot_name} exists, but this ledger has never used one",
                hint=f"if no other daemon uses it: cdc-agent slot drop, then start again (slot {facts.slot_name})",
            )
        self._ledger.save_identity(self._identity(facts, ready=False))
        # One that is half made: nothing was read from it.
        self._make(facts, "")

    # -- mending -----------------------------------------------------------------------------------------------

    def _answer(self, exc: IdentityMismatch, facts: Facts, *, alone: bool) -> None:
        """Mend a state if that is allowed, wanted and not in vain; raise it otherwise."""
        adopted = exc.state == "OTHER_SERVER" and self._adopt and alone
        if not adopted and not (self._mend and exc.state in MENDABLE):
            raise exc
        if facts.slot is not None and facts.slot.active_pid is not None:
            raise SlotBusy(
                f"SLOT_BUSY: another connection (server process {facts.slot.active_pid}) streams from slot "
                f"{facts.slot_name}",
                hint="this daemon waits until it ends",
            ) from exc
        now = self._wall_clock()
        if self._ledger.mendings_since(exc.state, now - _HOUR_S) >= _MENDINGS_AN_HOUR:
            raise IdentityMismatch(
                exc.state,
                f"mended {_MENDINGS_AN_HOUR} times within an hour, and here again: {exc.message}",
                hint="find out what breaks it; then start again",
            ) from exc
        log.warning("mending state=%s why=%s", exc.state, exc.message)
        self._adopt = False
        self._note(exc.state)
        self._health.report("source", f"{exc.message}; being mended", hint="every table will be read again")
        self._ledger.begin_mending(exc.state, self._identity(facts, ready=False), now)
        hit("mending_begun")
        self._carry_out(facts, exc.state, alone=alone)

    def _carry_out(self, facts: Facts, state: str, *, alone: bool) -> None:
        if state in ANOTHER_HISTORY and not alone:
            raise StartOver(state)
        self._make(facts, state)
        log.warning("mended state=%s, every table is read again", state)

    def _make(self, facts: Facts, state: str) -> None:
        """A new slot in place of the old one. With a ``state`` everything is read again, and that is recorded before
        the slot counts as ready, so that no crash in between leaves a gap."""
        place = self._place
        refuse_foreign(facts.slot)
        # The publication first: a slot whose publication did not exist then is wedged for good.
        if place.publication:
            place.publish()
        slots.drop(place.dsn, place.slot_name)
        hit("mending_after_drop")
        published = slots.publication_oid(place.dsn, place.publication) if place.publication else 0
        position = slots.create_slot(place.dsn, slot_name=place.slot_name, plugin=place.plugin)
        hit("resync_after_slot")
        # What committed before the slot's beginning must be visible to those who read everything again.
        place.settle()
        if state in ANOTHER_HISTORY:
            # The ledger first: a stream that is behind its ledger is a state of its own (STREAM_LOST).
            self._ledger.rebase(self._wall_clock())
            hit("mending_after_ledger")
            self._stream.rebase(position)
        else:
            self._stream.append([], captured_lsn=position)
        if state:
            self._resync_all(state)
        hit("mending_before_ready")
        self._ledger.save_identity(replace(self._identity(facts, ready=True), publication_oid=published))
        log.info("slot created name=%s lsn=%s", place.slot_name, position)

    def _identity(self, facts: Facts, *, ready: bool) -> SourceIdentity:
        return SourceIdentity(
            system_id=facts.server.system_id,
            timeline=facts.server.timeline,
            database_oid=facts.database_oid,
            slot_name=facts.slot_name,
            plugin=facts.plugin,
            slot_ready=ready,
            publication_oid=facts.publication_oid,
        )
