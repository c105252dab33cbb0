"""The verdict about one document: which reason overrules which, and what each says to do."""

from __future__ import annotations

from typing import Any

import pytest

from cdc_agent.explain.verdict import Evidence, State, judge
from cdc_agent.ledger.base import DeadLetter, Resync
from cdc_agent.lsn import Lsn, Version
from cdc_agent.verify.defects import Defect, Kind

STALE = [Defect(kind=Kind.STALE, collection="articles", what="the row renders to another text")]
LETTER = DeadLetter(
    id=3,
    agent="indexer",
    collection="articles",
    document_id="public.articles:1",
    table="public.articles",
    key=("1",),
    version=Version(Lsn(0x10), 2),
    reason="embedding",
    error="it is too long",
    attempts=3,
    parked_at=1_767_323_045.0,
)
RESYNC = Resync(id=5, table="public.articles", collections=("articles",), rows_done=10, rows_estimated=90)


def evidence(**more: Any) -> Evidence:
    """A row that is indexed as it should be, but for what the test says."""
    known: dict[str, Any] = {
        "table": "public.articles",
        "document_id": "public.articles:1",
        "key_text": "1",
        "where": None,
        "exists": True,
        "matches": True,
        "indexed_chunks": 2,
        "present": True,
    }
    return Evidence(**{**known, **more})


@pytest.mark.parametrize(
    ("facts", "state", "said", "to_do"),
    [
        ({}, State.INDEXED, "2 chunks", ""),
        ({"indexed_chunks": 0}, State.EMPTY, "renders to no text", "collections[].text"),
        ({"indexed_chunks": None, "exists": False}, State.NO_ROW, "no row 1 in public.articles", "check the key"),
        ({"indexed_chunks": None, "matches": False, "where": "a > 1"}, State.FILTERED, "where (a > 1)", "migrate"),
        ({"differences": STALE, "letter": LETTER, "pending": 1}, State.PARKED, "it is too long", "replay 3"),
        ({"exists": None, "fault": "refused", "letter": None}, State.UNKNOWN, "the source", "ask again"),
        ({"present": None, "fault": "timed out"}, State.UNKNOWN, "the vector store", "ask again"),
        (
            {"differences": STALE, "pending": 2, "pending_lsn": "0/20", "resyncs": [RESYNC], "behind": True},
            State.PENDING,
            "2 changes of it are in the stream",
            "cdc-agent wait 0/20",
        ),
        ({"differences": STALE, "resyncs": [RESYNC]}, State.COPYING, "Resync 5 (running, 10 of about 90 rows)", "wait"),
        ({"differences": STALE, "behind": True, "steady": False}, State.BEHIND, "not arrived", "/readyz"),
        ({"differences": STALE, "steady": False}, State.MOVING, "changed while we looked", "ask again"),
        ({"differences": STALE}, State.WRONG, "renders to another text", "--key '1' --rewrite"),
        # What waits but changes nothing that is searched leaves a document as it should be.
        ({"pending": 1}, State.INDEXED, "as the row is now", ""),
    ],
    ids=lambda value: str(value) if isinstance(value, State) else "",
)
def test_each_reason_has_a_sentence_and_a_remedy(facts: dict[str, Any], state: State, said: str, to_do: str) -> None:
    verdict = judge(evidence(**facts))

    assert verdict.state is state
    assert said in verdict.sentence
    assert to_do in verdict.remedy
    assert verdict.in_index == bool(evidence(**facts).indexed_chunks)


def test_what_holds_a_change_up_is_named() -> None:
    held_up = evidence(differences=STALE, behind=True, problems=["source: connection refused"])

    assert judge(held_up).remedy == "it is held up: source: connection refused"


def test_a_paused_resync_is_to_be_resumed() -> None:
    paused = Resync(id=5, table="public.articles", collections=("articles",), state="paused")

    assert judge(evidence(differences=STALE, resyncs=[paused])).remedy == "cdc-agent resync resume 5"
