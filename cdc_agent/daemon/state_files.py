"""Opens ledger and stream, and tells whether they are whole and belong together.

Each can be lost alone: removed, put back from an older copy, or damaged on its disk. What the other one says tells:
the stream carries the uuid of its ledger, and neither is ever behind the other. With ``source.on_mismatch: resync`` a
damaged file is put aside and begun anew, and the guard of the source then makes a new slot and reads everything again.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from cdc_agent import metrics
from cdc_agent.agents.indexer import AGENT
from cdc_agent.config import Config
from cdc_agent.daemon.ledgers import ledger_place, open_ledger, put_ledger_aside
from cdc_agent.daemon.streams import open_stream, put_stream_aside
from cdc_agent.errors import IdentityMismatch
from cdc_agent.ledger.base import Checkpoint, Ledger
from cdc_agent.migrate.names import follows_feed
from cdc_agent.reactions.router import CONSUMER
from cdc_agent.sqlite_file import DAMAGED_HINT
from cdc_agent.stream.base import Stream

if TYPE_CHECKING:
    from cdc_agent.ledger.postgres import PostgresLedger
    from cdc_agent.ledger.sqlite import SqliteLedger

__all__ = ["FEED_CORRUPT", "StateFiles", "condemn", "open_state"]

T = TypeVar("T")
log = logging.getLogger(__name__)

#: The state of a feed's stream whose file is not as it was written.
FEED_CORRUPT = "FEED_CORRUPT"
#: A file that has to be begun anew more often than this within an hour is not mended but shown.
_MENDINGS_AN_HOUR = 3
_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StateFiles:
    """``new_life``: there was a ledger before this one. ``predecessor`` is its uuid, if that is known; the stream keeps
    it until it is tied to the new one, once the store is ours."""

    ledger: SqliteLedger | PostgresLedger
    stream: Stream
    new_life: bool = False
    predecessor: str = ""

    @property
    def damage(self) -> IdentityMismatch | None:
        """What was found damaged while it was in use."""
        return self.ledger.damage or self.stream.damage


def open_state(config: Config) -> StateFiles:
    """Raises ``IdentityMismatch`` for what is damaged or lost and not to be mended."""
    mend = config.source.on_mismatch == "resync"
    try:
        return _opened(config, mend=mend)
    except IdentityMismatch as exc:
        metrics.MISMATCH.labels(state=exc.state).set(1)
        raise


def condemn(config: Config, found: IdentityMismatch) -> bool:
    """Put aside a file that turned out to be damaged while it was in use (it is closed by now), so that the next
    opening begins it anew. False if ``found`` is something else, or not to be mended."""
    if found.state in (FEED_CORRUPT, "STREAM_BEHIND"):
        # Its own opening begins it anew: all of it can be asked for again. So can what NATS has lost.
        return True
    ways = {"LEDGER_CORRUPT": put_ledger_aside, "STREAM_CORRUPT": put_stream_aside, "STREAM_LOST": put_stream_aside}
    if found.state not in ways or config.source.on_mismatch != "resync":
        return False
    log.warning("mending state=%s why=%s", found.state, found.message)
    ways[found.state](config)
    return True


def _opened(config: Config, *, mend: bool) -> StateFiles:
    ledger, corrupt = _whole(open_ledger, put_ledger_aside, config, mend=mend)
    try:
        stream, lost = _whole(lambda c: _checked_stream(c, ledger), put_stream_aside, config, mend=mend)
        found = _not_its_stream(ledger, stream) if not lost else None
        if found and config.stream.backend == "jetstream" and _comes_again(ledger, stream):
            log.warning("going on why=%s: NATS lost what it had not written to its disk", found.message)
            _go_on(ledger, stream)
        elif found:
            _refuse_or_log(found, mend=mend)
            stream.close()
            put_stream_aside(config)
            stream, lost = open_stream(config), found.state
        if not lost and (found := _older_ledger(ledger, stream)):
            _refuse_or_log(found, mend=mend)
            ledger.close()
            put_ledger_aside(config)
            ledger = open_ledger(config)
    except BaseException:
        ledger.close()
        raise
    predecessor = stream.ledger() if stream.ledger() != ledger.uuid else ""
    if lost and _has_life(ledger):
        _begin_stream(ledger, stream, lost)
    elif not predecessor:
        stream.tie(ledger.uuid)
    elif predecessor and stream.position().captured_lsn and not mend:
        raise IdentityMismatch(
            "LEDGER_LOST", f"the stream belongs to a ledger that is not in {ledger_place(config)}", hint=DAMAGED_HINT
        )
    if predecessor and not lost:
        # A new ledger knows nothing of later generations; nobody waits for their agents.
        for agent in set(stream.consumers()) - {CONSUMER}:
            stream.forget(agent)
    return StateFiles(
        ledger=ledger, stream=stream, new_life=bool(corrupt or (predecessor and not lost)), predecessor=predecessor
    )


def _whole(
    opened: Callable[[Config], T], aside: Callable[[Config], None], config: Config, *, mend: bool
) -> tuple[T, str]:
    """What is opened, and the state that it had to be begun anew for."""
    try:
        return opened(config), ""
    except IdentityMismatch as exc:
        if not mend:
            raise
        log.warning("mending state=%s why=%s", exc.state, exc.message)
        aside(config)
        return opened(config), exc.state


def _checked_stream(config: Config, ledger: Ledger) -> Stream:
    stream = open_stream(config)
    try:
        stream.check(min(_offsets(ledger)))
    except BaseException:
        stream.close()
        raise
    return stream


def _refuse_or_log(found: IdentityMismatch, *, mend: bool) -> None:
    if not mend:
        raise found
    log.warning("mending state=%s why=%s", found.state, found.message)


def _has_life(ledger: Ledger) -> bool:
    """Whether this ledger has ever had to do with a slot."""
    return ledger.identity() is not None


def _older_ledger(ledger: Ledger, stream: Stream) -> IdentityMismatch | None:
    """A ledger that was put back from a copy has forgotten ids that it gave away. An agent is in the ledger before it
    is in the stream, and leaves the stream first: what the stream says and the ledger does not know is newer."""
    if stream.ledger() != ledger.uuid:
        return None
    found = next(itertools.chain(_behind(ledger, stream), _unknown(ledger, stream), _left(ledger, stream)), "")
    return (
        IdentityMismatch("LEDGER_LOST", f"{found}: the ledger is an older copy", hint=DAMAGED_HINT) if found else None
    )


def _behind(ledger: Ledger, stream: Stream) -> Iterator[str]:
    for agent in sorted(_agents(ledger)):
        offset, released = ledger.checkpoint(agent).offset, stream.released(agent)
        if released > offset:
            yield f"{agent} is at {offset} and was at {released} before"


def _unknown(ledger: Ledger, stream: Stream) -> Iterator[str]:
    for agent in stream.consumers():
        # Where the router is stands in the journal.
        if agent not in {AGENT, CONSUMER} | {generation.agent for generation in ledger.generations()}:
            yield f"{agent} reads the stream, and no generation of it is known"


def _left(ledger: Ledger, stream: Stream) -> Iterator[str]:
    """Agents that have worked and that the stream does not wait for any more (see ``daemon.leaving``)."""
    consumers = set(stream.consumers())
    for generation in ledger.generations():
        if (
            generation.state in ("building", "live", "retired")
            and not follows_feed(generation.agent)
            and generation.agent not in consumers
            and ledger.checkpoint(generation.agent).applied_lsn
            and ledger.collection_fingerprint(generation.physical) is not None
        ):
            yield f"{generation.agent} has left the stream, and its generation {generation.physical} was dropped since"


def _not_its_stream(ledger: Ledger, stream: Stream) -> IdentityMismatch | None:
    if not _has_life(ledger):
        return None
    found = ""
    captured = stream.position().captured_lsn
    applied = max(ledger.checkpoint(agent).applied_lsn for agent in _agents(ledger))
    if stream.ledger() != ledger.uuid:
        found = "is empty" if not stream.ledger() else "belongs to another ledger"
    elif stream.head_offset() < max(_offsets(ledger)) or (captured < applied and ledger.mending() is None):
        found = f"is only at {captured}, the index is at {applied}: it is an older copy"
    return IdentityMismatch("STREAM_LOST", f"the stream {found}", hint=DAMAGED_HINT) if found else None


def _comes_again(ledger: Ledger, stream: Stream) -> bool:
    """Whether nobody has to read what is left of a stream that lost its tail. What it lacks Postgres was told to keep
    (if not, the slot is ahead of it, ``SLOT_ADVANCED``), and whoever has applied it already tells it by its version."""
    head, offsets = stream.head_offset(), _offsets(ledger)
    places = [*offsets, stream.released(CONSUMER)] if CONSUMER in stream.consumers() else offsets
    return stream.ledger() == ledger.uuid and (min(places) >= head or head >= max(offsets))


def _go_on(ledger: Ledger, stream: Stream) -> None:
    """Count on behind everything that was ever read, so that nothing passes for read that comes again. What the stream
    knows of its readers may be older as well."""
    if stream.head_offset() < max(_offsets(ledger)):
        stream.begin_at(max(_offsets(ledger)))
    for agent in set(stream.consumers()) - {AGENT, CONSUMER} - {one.agent for one in ledger.generations()}:
        stream.forget(agent)
    _place_readers(ledger, stream)


def _begin_stream(ledger: Ledger, stream: Stream, state: str) -> None:
    """A new stream goes on counting where the readers of the lost one are, and the guard of the source finds the place
    to be mended."""
    identity = ledger.identity()
    assert identity is not None
    now = time.time()
    if ledger.mendings_since(state, now - _HOUR_S) >= _MENDINGS_AN_HOUR:
        raise IdentityMismatch(
            state,
            f"the stream was begun anew {_MENDINGS_AN_HOUR} times within an hour, and is lost again",
            hint="find out what removes or damages it; then start again",
        )
    ledger.begin_mending(state, replace(identity, slot_ready=False), now)
    stream.begin_at(max(_offsets(ledger)))
    # Before it is tied: what the stream does not know of a ledger of its own would pass for a sign of age.
    _place_readers(ledger, stream)
    stream.tie(ledger.uuid)


def _place_readers(ledger: Ledger, stream: Stream) -> None:
    for agent in _agents(ledger):
        if (checkpoint := ledger.checkpoint(agent)) != Checkpoint():
            stream.release(agent, checkpoint.offset)


def _agents(ledger: Ledger) -> set[str]:
    """Those that the ledger keeps a place for in this stream; feeds have their own."""
    return {g.agent for g in ledger.generations() if g.state != "dropped" and not follows_feed(g.agent)} or {AGENT}


def _offsets(ledger: Ledger) -> list[int]:
    return [ledger.checkpoint(agent).offset for agent in _agents(ledger)]
