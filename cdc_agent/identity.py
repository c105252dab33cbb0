"""The start-up identity check: server, slot, stream and ledger must belong together, or nothing starts.

START_REPLICATION silently skips or forwards when positions do not fit, so it is only issued after this. Every refusal
is a named state with its remedy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from cdc_agent import metrics
from cdc_agent.errors import IdentityMismatch
from cdc_agent.failpoints import hit
from cdc_agent.ledger.base import Ledger, SourceIdentity
from cdc_agent.lsn import Lsn
from cdc_agent.source import slot as slots
from cdc_agent.source.replication import ServerIdentity
from cdc_agent.source.slot import SlotStatus
from cdc_agent.stream.base import Stream

__all__ = ["SourceGuard"]

log = logging.getLogger(__name__)

#: States that a new slot and a resync mend on the same server.
_MENDABLE = frozenset({"SLOT_LOST", "SLOT_INVALIDATED", "SLOT_ADVANCED"})
_RESYNC_HINT = "start once with CDC_AGENT_SOURCE__ON_MISMATCH=resync: a new slot, and only what differs is embedded"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slot:
    dsn: str
    name: str
    plugin: str


class SourceGuard:
    """Creates the slot once, and checks on every connection that we go on where we stopped."""

    def __init__(
        self,
        *,
        dsn: str,
        slot_name: str,
        plugin: str,
        database_oid: int,
        ledger: Ledger,
        stream: Stream,
        resync_all: Callable[[str], None],
        mend: bool,
    ) -> None:
        self._slot = _Slot(dsn=dsn, name=slot_name, plugin=plugin)
        self._database_oid = database_oid
        self._ledger = ledger
        self._stream = stream
        self._resync_all = resync_all
        self._mend = mend

    def prepare(self, server: ServerIdentity) -> None:
        """Before anything streams: make the slot if this ledger never had one. Raises ``IdentityMismatch``."""
        identity = self._ledger.identity()
        if identity is None or not identity.slot_ready:
            self._create(server, begun=identity is not None)
        else:
            self.verify(server)

    def verify(self, server: ServerIdentity) -> None:
        """Raise ``IdentityMismatch`` unless streaming may go on from the stream's position."""
        identity = self._ledger.identity()
        assert identity is not None
        try:
            self._check(server, identity)
        except IdentityMismatch as exc:
            metrics.MISMATCH.labels(state=exc.state).set(1)
            if not self._mend or exc.state not in _MENDABLE:
                raise
            log.warning("mending state=%s", exc.state)
            self._recreate(server, exc)
        if server.timeline != identity.timeline:
            self._ledger.save_identity(replace(identity, timeline=server.timeline))

    def _create(self, server: ServerIdentity, *, begun: bool) -> None:
        found = slots.describe(self._slot.dsn, self._slot.name)
        if found is not None and not begun:
            raise IdentityMismatch(
                "LEDGER_LOST",
                f"slot {self._slot.name} exists, but this ledger has never used one",
                hint=f"if no other daemon uses it: cdc-agent slot drop, then start again (slot {self._slot.name})",
            )
        self._ledger.save_identity(self._identity(server, ready=False))
        if found is not None:
            # Half made in an earlier life; nothing was read from it.
            slots.drop(self._slot.dsn, self._slot.name)
        # Where something was captured before, that life ended while it mended a lost place.
        self._make(server, "SLOT_LOST" if self._stream.position().captured_lsn else "")

    def _make(self, server: ServerIdentity, lost: str) -> None:
        """Create the slot. Where a place was ``lost`` everything is read again, and that is recorded before the slot
        counts as ready, so that no crash in between leaves a gap."""
        position = slots.create_slot(self._slot.dsn, slot_name=self._slot.name, plugin=self._slot.plugin)
        hit("resync_after_slot")
        self._stream.append([], captured_lsn=position)
        if lost:
            self._resync_all(lost)
        self._ledger.save_identity(self._identity(server, ready=True))
        log.info("slot created name=%s lsn=%s", self._slot.name, position)

    def _recreate(self, server: ServerIdentity, exc: IdentityMismatch) -> None:
        """Same server, lost place: a new slot from now on, and everything before it read again."""
        self._ledger.save_identity(self._identity(server, ready=False))
        slots.drop(self._slot.dsn, self._slot.name)
        self._make(server, exc.state)
        metrics.MISMATCH.labels(state=exc.state).set(0)

    def _identity(self, server: ServerIdentity, *, ready: bool) -> SourceIdentity:
        return SourceIdentity(
            system_id=server.system_id,
            timeline=server.timeline,
            database_oid=self._database_oid,
            slot_name=self._slot.name,
            plugin=self._slot.plugin,
            slot_ready=ready,
        )

    def _check(self, server: ServerIdentity, identity: SourceIdentity) -> None:
        self._check_server(server, identity)
        found = slots.describe(self._slot.dsn, self._slot.name)
        captured = self._stream.position().captured_lsn
        _check_slot(found, identity, captured)
        if captured > server.flush_lsn:
            raise IdentityMismatch(
                "SERVER_REWOUND",
                f"the stream holds changes up to {captured}, the server is only at {server.flush_lsn}",
                hint="it was restored from a backup or failed over with loss; move state_dir away and start anew",
            )

    def _check_server(self, server: ServerIdentity, identity: SourceIdentity) -> None:
        if server.system_id != identity.system_id or self._database_oid != identity.database_oid:
            raise IdentityMismatch(
                "OTHER_SERVER",
                f"this state belongs to system {identity.system_id} database {identity.database_oid}, "
                f"the server is system {server.system_id} database {self._database_oid}",
                hint="correct source.dsn, or give this database a state_dir of its own",
            )
        if self._slot.name != identity.slot_name or self._slot.plugin != identity.plugin:
            raise IdentityMismatch(
                "SLOT_CHANGED",
                f"this state uses slot {identity.slot_name} with {identity.plugin}, the configuration says "
                f"{self._slot.name} with {self._slot.plugin}",
                hint="put source.slot_name and source.plugin back, or start with a new state_dir",
            )


def _check_slot(found: SlotStatus | None, identity: SourceIdentity, captured: Lsn) -> None:
    if found is None:
        raise IdentityMismatch("SLOT_LOST", f"slot {identity.slot_name} is gone", hint=_RESYNC_HINT)
    if found.wal_status == "lost":
        raise IdentityMismatch(
            "SLOT_INVALIDATED", f"Postgres has removed WAL that slot {found.name} needed", hint=_RESYNC_HINT
        )
    if found.plugin != identity.plugin:
        raise IdentityMismatch(
            "SLOT_CHANGED", f"slot {found.name} uses {found.plugin}, not {identity.plugin}", hint=_RESYNC_HINT
        )
    if found.confirmed_flush_lsn is not None and found.confirmed_flush_lsn > captured:
        raise IdentityMismatch(
            "SLOT_ADVANCED",
            f"slot {found.name} is at {found.confirmed_flush_lsn}, the stream only holds up to {captured}",
            hint=_RESYNC_HINT,
        )
