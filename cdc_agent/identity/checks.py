"""What must hold before anything streams. Each thing that does not is a named state with its remedy. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cdc_agent.errors import IdentityMismatch, SlotBusy
from cdc_agent.ledger.base import SourceIdentity
from cdc_agent.lsn import Lsn
from cdc_agent.source.replication import ServerIdentity
from cdc_agent.source.slot import SlotStatus
from cdc_agent.stream.base import Position

__all__ = ["ANOTHER_HISTORY", "MENDABLE", "STATES", "Facts", "check", "check_resumed", "refuse_foreign"]

#: A new slot and a resync of everything mend these on the same server.
MENDABLE = frozenset(
    {
        "SLOT_LOST",
        "SLOT_INVALIDATED",
        "SLOT_ADVANCED",
        "SLOT_CHANGED",
        "SERVER_REWOUND",
        "PUBLICATION_LOST",
        "LEDGER_LOST",
    }
)
#: Here positions and transaction numbers that are kept belong to a history that never happened, or to none.
ANOTHER_HISTORY = frozenset({"SERVER_REWOUND", "OTHER_SERVER", "LEDGER_LOST"})
#: States of the store and of our own files, which others find; they are shown with ours while tables are read again.
LOCAL = frozenset({"STORE_REPLACED", "STORE_CORRUPT", "LEDGER_CORRUPT", "STREAM_LOST", "STREAM_CORRUPT"})
#: Every state that source, store and files can be in.
STATES = tuple(sorted(MENDABLE | LOCAL | {"OTHER_SERVER", "SLOT_BUSY", "SLOT_FOREIGN"}))

_RESYNC_HINT = "start once with CDC_AGENT_SOURCE__ON_MISMATCH=resync: a new slot, and only what differs is embedded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What server and stream are like, beside what is configured.

    ``publication_oid`` is 0 when there is none of that name, or when the plugin needs none.
    """

    server: ServerIdentity
    database_oid: int
    slot_name: str
    plugin: str
    publication: str
    slot: SlotStatus | None
    publication_oid: int
    position: Position


def check(facts: Facts, identity: SourceIdentity) -> None:
    """Raise ``IdentityMismatch`` (or ``SlotBusy``) unless streaming may go on from the stream's position.

    The gravest state is named: a server with another history may have lost the slot as well.
    """
    _check_server(facts, identity)
    _check_busy(facts)
    _check_configured(facts, identity)
    _check_history(facts, identity)
    _check_slot(facts.slot, identity, facts.position.captured_lsn)
    _check_publication(facts, identity)
    _check_refusal(facts)


def check_resumed(facts: Facts, identity: SourceIdentity, state: str) -> None:
    """Mending ``state`` goes on, but not on another server or slot, nor past a history that is another one by now."""
    _check_server(facts, identity)
    _check_busy(facts)
    _refuse_taken(facts, identity)
    if state not in ANOTHER_HISTORY:
        _check_history(facts, identity)


def _check_server(facts: Facts, identity: SourceIdentity) -> None:
    """The same server (a promoted standby is) and the same database."""
    server = facts.server
    if server.system_id != identity.system_id or facts.database_oid != identity.database_oid:
        raise IdentityMismatch(
            "OTHER_SERVER",
            f"this state belongs to system {identity.system_id} database {identity.database_oid}, "
            f"the server is system {server.system_id} database {facts.database_oid}",
            hint="correct source.dsn; if the database has moved, start once with `cdc-agent run --adopt-server`",
        )


def _check_busy(facts: Facts) -> None:
    slot = facts.slot
    if slot is not None and slot.active_pid is not None:
        raise SlotBusy(
            f"SLOT_BUSY: another connection (server process {slot.active_pid}) streams from slot {slot.name}",
            hint="this daemon waits as its standby; stop the other one if it is not meant to run",
        )


def _check_configured(facts: Facts, identity: SourceIdentity) -> None:
    _refuse_taken(facts, identity)
    if facts.slot_name == identity.slot_name and facts.plugin == identity.plugin:
        return
    raise IdentityMismatch(
        "SLOT_CHANGED",
        f"this state uses slot {identity.slot_name} with {identity.plugin}, the configuration says "
        f"{facts.slot_name} with {facts.plugin}",
        hint=f"put source.slot_name and source.plugin back; or {_RESYNC_HINT}, and drop a slot {identity.slot_name} "
        "that nobody uses any more",
    )


def _refuse_taken(facts: Facts, identity: SourceIdentity) -> None:
    refuse_foreign(facts.slot)
    if facts.slot is not None and facts.slot_name != identity.slot_name:
        raise IdentityMismatch(
            "SLOT_FOREIGN",
            f"slot {facts.slot_name} exists already, and this state has never used it",
            hint=f"put source.slot_name: {identity.slot_name} back, or choose a name that is free",
        )


def refuse_foreign(slot: SlotStatus | None) -> None:
    """A slot with our name that is not of our kind is never touched."""
    if slot is not None and (slot.plugin is None or not slot.ours):
        what = f"belongs to database {slot.database}" if slot.plugin is not None else "is a physical one"
        raise IdentityMismatch(
            "SLOT_FOREIGN", f"slot {slot.name} {what}", hint="choose another source.slot_name, or drop that slot"
        )


def _check_history(facts: Facts, identity: SourceIdentity) -> None:
    """The server still has everything that was captured, on the path that it has come since."""
    server = facts.server
    reached = _reached(facts.position)
    if server.timeline != identity.timeline:
        ended = server.ended.get(identity.timeline)
        if ended is None:
            raise _rewound(f"it is on timeline {server.timeline}, which has not come from timeline {identity.timeline}")
        if reached > ended:
            raise _rewound(f"the stream holds changes up to {reached}, timeline {identity.timeline} ended at {ended}")
    if reached > server.flush_lsn:
        raise _rewound(f"the stream holds changes up to {reached}, the server is only at {server.flush_lsn}")


def _reached(position: Position) -> Lsn:
    """How far the server must have come for everything here to have happened."""
    if position.partial is None:
        return position.captured_lsn
    return max(position.captured_lsn, Lsn(position.partial.commit_lsn + 1))


def _rewound(what: str) -> IdentityMismatch:
    return IdentityMismatch(
        "SERVER_REWOUND", f"{what}: it was restored from a backup, or failed over with loss", hint=_RESYNC_HINT
    )


def _check_slot(slot: SlotStatus | None, identity: SourceIdentity, captured: Lsn) -> None:
    if slot is None:
        raise IdentityMismatch("SLOT_LOST", f"slot {identity.slot_name} is gone", hint=_RESYNC_HINT)
    if slot.wal_status == "lost" or slot.invalidation is not None:
        why = f" ({slot.invalidation})" if slot.invalidation else ""
        raise IdentityMismatch(
            "SLOT_INVALIDATED", f"Postgres has given up slot {slot.name} and removed its WAL{why}", hint=_RESYNC_HINT
        )
    if slot.plugin != identity.plugin:
        raise IdentityMismatch(
            "SLOT_CHANGED", f"slot {slot.name} uses {slot.plugin}, not {identity.plugin}", hint=_RESYNC_HINT
        )
    if slot.confirmed_flush_lsn is None:
        raise IdentityMismatch("SLOT_LOST", f"slot {slot.name} was never finished", hint=_RESYNC_HINT)
    if slot.confirmed_flush_lsn > captured:
        raise IdentityMismatch(
            "SLOT_ADVANCED",
            f"slot {slot.name} is at {slot.confirmed_flush_lsn}, the stream only holds up to {captured}",
            hint=_RESYNC_HINT,
        )


def _check_publication(facts: Facts, identity: SourceIdentity) -> None:
    """The log is decoded with the catalog of its time: a publication of the same name is not the same."""
    if not facts.publication:
        return
    if not facts.publication_oid:
        raise IdentityMismatch("PUBLICATION_LOST", f"publication {facts.publication} is gone", hint=_RESYNC_HINT)
    if identity.publication_oid not in (0, facts.publication_oid):
        raise IdentityMismatch(
            "PUBLICATION_LOST",
            f"publication {facts.publication} was dropped and made again; what was published before cannot be read",
            hint=_RESYNC_HINT,
        )


def _check_refusal(facts: Facts) -> None:
    """All looks well, and still the server does not stream from there."""
    refused = facts.server.refused
    if refused == "42704" and facts.publication:
        raise IdentityMismatch(
            "PUBLICATION_LOST",
            f"publication {facts.publication} did not exist at the place in the log where slot {facts.slot_name} is",
            hint=_RESYNC_HINT,
        )
    if refused:
        raise IdentityMismatch(
            "SLOT_INVALIDATED",
            f"the server does not stream from slot {facts.slot_name} (SQLSTATE {refused})",
            hint=_RESYNC_HINT,
        )
