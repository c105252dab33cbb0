"""One sentence of verdict from the facts of one document, and what to do about it. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from cdc_agent.ledger.base import DeadLetter, Resync
from cdc_agent.verify.defects import Defect

__all__ = ["Evidence", "State", "Verdict", "judge"]


class State(enum.StrEnum):
    """Why a document is or is not in the index. Only ``INDEXED`` is how it should be found by a search."""

    INDEXED = "indexed"
    #: The row renders to no text.
    EMPTY = "empty"
    #: Neither a row nor a document.
    NO_ROW = "no_row"
    #: The row does not satisfy the collection's `where`.
    FILTERED = "filtered"
    #: Its newest version is a dead letter.
    PARKED = "parked"
    #: Its newest change is in the stream, and the indexer has not come to it.
    PENDING = "pending"
    #: A resync will bring it.
    COPYING = "copying"
    #: Its newest change is not in the stream yet.
    BEHIND = "behind"
    #: It changes while we look.
    MOVING = "moving"
    #: The index is not as the row, though nothing is on its way.
    WRONG = "wrong"
    #: Source or store could not be asked.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """``in_index``: a search can find the document, be it in an older version."""

    state: State
    in_index: bool
    sentence: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the verdict hangs on. ``exists`` and ``present`` are None when source or store could not be asked, and
    ``fault`` says why. ``behind``: the source's log is further than the stream. ``steady``: two looks saw the same."""

    table: str
    document_id: str
    key_text: str
    where: str | None
    exists: bool | None
    matches: bool | None
    indexed_chunks: int | None
    present: bool | None
    differences: Sequence[Defect] = ()
    letter: DeadLetter | None = None
    pending: int = 0
    pending_lsn: str = ""
    resyncs: Sequence[Resync] = ()
    behind: bool = False
    steady: bool = True
    fault: str = ""
    captured_lsn: str = ""
    source_lsn: str = ""
    problems: Sequence[str] = field(default=())

    @property
    def in_index(self) -> bool:
        return bool(self.indexed_chunks)


def judge(e: Evidence) -> Verdict:
    """The first of the reasons that apply, in the order in which they overrule each other."""
    if e.letter is not None:
        return _parked(e, e.letter)
    if e.exists is None or e.present is None:
        return _unknown(e)
    if not e.differences:
        return _as_it_should_be(e)
    return _different(e)


def _parked(e: Evidence, letter: DeadLetter) -> Verdict:
    so = "an older version is in the index" if e.in_index else "it is not in the index"
    return Verdict(
        state=State.PARKED,
        in_index=e.in_index,
        sentence=f"Its version {letter.version} could not be indexed ({letter.reason}: {letter.error}), so {so}.",
        remedy=f"mend the row or what refuses it, then: cdc-agent dead-letters replay {letter.id}",
    )


def _unknown(e: Evidence) -> Verdict:
    who = "the source" if e.exists is None else "the vector store"
    held = f"the ledger says that {e.indexed_chunks or 0} chunks of it are in the index"
    return Verdict(
        state=State.UNKNOWN,
        in_index=e.in_index,
        sentence=f"Of {who} nothing is known now ({e.fault}); {held}.",
        remedy="ask again when it answers; GET /readyz says what is wrong",
    )


def _as_it_should_be(e: Evidence) -> Verdict:
    if not e.exists:
        return Verdict(
            state=State.NO_ROW,
            in_index=False,
            sentence=f"There is no row {e.key_text} in {e.table}, and nothing of it in the index.",
            remedy="check the key; a row that was just written is seen once its transaction has committed",
        )
    if not e.matches:
        return Verdict(
            state=State.FILTERED,
            in_index=False,
            sentence=f"The row does not satisfy the collection's where ({e.where}), so it does not belong in it.",
            remedy="change the row, or collections[].where with `cdc-agent migrate`",
        )
    if not e.in_index:
        return Verdict(
            state=State.EMPTY,
            in_index=False,
            sentence="It is indexed, but the row renders to no text, so there is nothing to find.",
            remedy="collections[].text says which columns it is made of",
        )
    chunks = "1 chunk" if e.indexed_chunks == 1 else f"{e.indexed_chunks} chunks"
    return Verdict(state=State.INDEXED, in_index=True, sentence=f"It is in the index, as the row is now: {chunks}.")


def _different(e: Evidence) -> Verdict:
    so = "the index holds an older version" if e.in_index else "it is not in the index"
    if e.pending:
        changes = "1 change of it is" if e.pending == 1 else f"{e.pending} changes of it are"
        return Verdict(
            state=State.PENDING,
            in_index=e.in_index,
            sentence=f"{changes} in the stream and the indexer has not come to that; until then {so}.",
            remedy=f"wait: cdc-agent wait {e.pending_lsn}; {_held_up(e)}",
        )
    if e.resyncs:
        first = e.resyncs[0]
        return Verdict(
            state=State.COPYING,
            in_index=e.in_index,
            sentence=f"Resync {first.id} ({first.state}, {first.rows_done} of about {first.rows_estimated} rows) reads "
            f"{e.table} and has not brought it yet; until then {so}.",
            remedy=_of_resync(first),
        )
    if e.behind:
        return Verdict(
            state=State.BEHIND,
            in_index=e.in_index,
            sentence=f"Its newest change has not arrived: the source's log is at {e.source_lsn}, what we have of it "
            f"ends at {e.captured_lsn}; until then {so}.",
            remedy=_held_up(e),
        )
    if not e.steady:
        return Verdict(
            state=State.MOVING,
            in_index=e.in_index,
            sentence="The row changed while we looked, more than once.",
            remedy="ask again",
        )
    return Verdict(
        state=State.WRONG,
        in_index=e.in_index,
        sentence=f"The index is not as the row: {e.differences[0].what}. Nothing that would change that is on its way.",
        remedy=f"cdc-agent resync --table {e.table} --key '{e.key_text}' --rewrite; "
        "cdc-agent verify --repair for all that differs",
    )


def _held_up(e: Evidence) -> str:
    return f"it is held up: {e.problems[0]}" if e.problems else "GET /readyz would say what holds it up"


def _of_resync(resync: Resync) -> str:
    if resync.state == "paused":
        return f"cdc-agent resync resume {resync.id}"
    return "wait; cdc-agent resync --list shows how far it is"
