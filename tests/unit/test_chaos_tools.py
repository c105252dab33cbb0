"""The kill loop's own judges: each violation that they are there for is seen, and what is right is not called wrong."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from cdc_agent.ledger.base import ChunkRef, Manifest
from cdc_agent.lsn import Lsn, Version
from tests.support.chaos.endpoint import Endpoint
from tests.support.chaos.faults import DEATHS, DISTURBANCES
from tests.support.chaos.loop import only_out_of_sight
from tests.support.chaos.observer import LedgerView, Observer
from tests.support.chaos.readers import Readers
from tests.support.chaos.record import Record
from tests.support.chaos.schedule import schedule
from tests.support.chaos.stage import wants_chroma_restarted
from tests.support.chaos.tap import Tap
from tests.support.chaos.texts import Line, line, new_lines, read, title_of
from tests.support.chaos.writers import Recent
from tests.support.fake_openai import Request

RNG = random.Random(1)
NOTHING: Any = None


def document(version: int, lines: Sequence[Line]) -> list[str]:
    return [title_of("u7", version, lines), *(one.text for one in lines)]


OLD = new_lines("u7", 5, 3, RNG)
EDITED = [OLD[0], line("u7", 1, 9, RNG), OLD[2]]

# -- texts ----------------------------------------------------------------------------------------------------


def test_a_whole_document_is_no_violation_in_whatever_order_it_comes() -> None:
    for lines, version in ((OLD, 5), (EDITED, 9)):
        texts = document(version, lines)
        seen = read(reversed(texts))
        assert (seen.uid, seen.version, seen.problem, seen.missing) == ("u7", version, "", "")


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        ([*document(9, EDITED)[:2], OLD[1].text, OLD[2].text], "lines of other versions"),
        ([*document(9, EDITED), OLD[1].text], "has 3 lines"),
        ([*document(9, EDITED), title_of("u7", 5, OLD)], "several versions"),
        ([*document(5, OLD), line("u8", 3, 5, RNG).text], "several versions"),
        (document(5, [*OLD[:2], line("u7", 2, 5, RNG, ghost=True)]), "rolled back"),
    ],
    ids=["torn", "doubled", "two_titles", "two_rows", "ghost"],
)
def test_chunks_that_cannot_be_of_one_document_are_seen(texts: list[str], problem: str) -> None:
    assert problem in read(texts).problem


@pytest.mark.parametrize("texts", [document(5, OLD)[1:], document(5, OLD)[:-1]], ids=["title", "line"])
def test_a_chunk_that_is_not_there_is_missed(texts: list[str]) -> None:
    assert read(texts).missing


# -- readers --------------------------------------------------------------------------------------------------


def hits(version: int, texts: Sequence[str], document_id: str = "public.notes:1", **metadata: Any) -> list[Any]:
    return [
        {"text": t, "document_id": document_id, "metadata": {"version": version, "n": 1, **metadata}} for t in texts
    ]


def judged(*answers: list[Any], required: bool = False) -> dict[str, int]:
    """The violations of answers that a reader was given one after the other."""
    record = Record(quiet=True)
    readers = Readers(NOTHING, NOTHING, record, Recent(), 1)
    for answer in answers:
        readers._judge("notes", "u7", answer, readers._floors["notes", "u7"], required=required)
    return dict(record.violations)


def test_answers_that_grow_are_no_violation() -> None:
    assert judged(hits(5, document(5, OLD)), hits(8, document(5, OLD)), hits(9, document(9, EDITED)), []) == {}


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ([hits(9, document(9, EDITED)), hits(5, document(5, OLD))], "older"),
        ([hits(5, document(5, OLD)[:2]) + hits(6, document(5, OLD)[2:])], "torn"),
        ([hits(5, document(5, OLD)[:2])], "torn"),
        ([hits(5, document(9, EDITED))], "torn"),
        ([hits(5, document(5, OLD), n=-1)], "ghost"),
    ],
    ids=["older", "mixed_metadata", "a_part", "text_ahead", "ghost"],
)
def test_an_answer_that_nobody_should_be_given_is_seen(answers: list[list[Any]], kind: str) -> None:
    assert judged(*answers) == {kind: 1}


def test_a_row_that_is_always_there_is_missed_when_it_is_not() -> None:
    assert judged([], required=True) == {"lost": 1}


def test_an_own_write_that_is_not_in_the_answer_is_seen() -> None:
    record = Record(quiet=True)
    readers = Readers(NOTHING, NOTHING, record, Recent(), 1)

    readers._judge_own("u7", 9, hits(9, document(9, EDITED)))
    readers._judge_own("u7", None, [])
    assert not record.violations

    readers._judge_own("u7", 9, hits(5, document(5, OLD)))
    readers._judge_own("u7", None, hits(9, document(9, EDITED)))
    assert record.violations == {"older": 2}


# -- the observer ---------------------------------------------------------------------------------------------


def manifest(lsn: int, chunk: str = "1#1.0") -> Manifest:
    return Manifest(
        collection="notes",
        document_id="1",
        version=Version(Lsn(lsn), 0),
        xid=1,
        relation_oid=1,
        chunks=(ChunkRef(chunk, b"not the hash"),),
    )


def view(offset: int, *manifests: Manifest, pending: Sequence[str] = ()) -> LedgerView:
    return LedgerView(
        offset=offset,
        applied=offset * 10,
        manifests={("notes", m.document_id): m for m in manifests},
        pending=frozenset(("notes", chunk) for chunk in pending),
    )


class Watched(Observer):
    """Is shown what it would read: views of the ledger one after the other, and the rest as it is set."""

    def __init__(self, *views: LedgerView, late: bool = False) -> None:
        self.record = Record(quiet=True)
        super().__init__(NOTHING, NOTHING, self.record, lambda: late, store_port=0)
        self.views = list(views)
        self.confirmed, self.captured_lsn = 100, 100
        self.held: dict[tuple[str, str], str] = {}

    def _confirmed(self) -> int | None:
        return self.confirmed

    def _read_stream(self) -> tuple[int, int] | None:
        return self.captured_lsn, 1

    def _read_ledger(self) -> LedgerView | None:
        return self.views.pop(0)

    def _read_store(self) -> dict[tuple[str, str], str] | None:
        return self.held


def test_an_acknowledgement_ahead_of_the_stream_is_seen() -> None:
    watched = Watched(view(1), view(1))
    watched.look(store=False)
    assert not watched.record.violations

    watched.confirmed = 101
    watched.look(store=False)
    assert watched.record.violations == {"early_ack": 1}


def test_what_goes_back_is_seen() -> None:
    watched = Watched(view(2, manifest(50)), view(1, manifest(40)))
    watched.look(store=False)
    watched.captured_lsn = watched.confirmed = 90
    watched.look(store=False)
    # The stream, the applied position, the offset and the document's version.
    assert watched.record.violations == {"regress": 4}


def test_a_live_chunk_that_is_missing_or_another_one_in_the_store_is_seen() -> None:
    same = view(1, manifest(50))
    watched = Watched(same)
    watched._find_missing(same, same, {})
    watched._find_missing(same, same, {("notes", "1#1.0"): "another text"})
    assert watched.record.violations == {"lost": 1, "stale": 1}

    # But not one that changed while the store was read.
    watched._find_missing(same, view(1, manifest(51, "1#2.0")), {})
    assert sum(watched.record.violations.values()) == 2


@pytest.mark.parametrize("late", [False, True])
def test_a_chunk_that_nobody_names_is_seen_when_it_stays_and_nothing_excuses_it(late: bool) -> None:
    watched = Watched(late=late)
    for strays in ({("notes", "1#1.0")}, set(), {("notes", "2#1.0")}, {("notes", "2#1.0")}):
        watched._judge_strays(strays, late=late)
    assert watched.record.violations == ({} if late else {"orphaned": 1})


# -- the rest -------------------------------------------------------------------------------------------------


def test_a_text_that_is_embedded_twice_is_excused_by_a_disturbance_and_by_another_life() -> None:
    endpoint = Endpoint()

    def embed(life: str) -> None:
        endpoint.note_success(Request(texts=("T u7 v1",), model="fake", authorization=life))

    embed("life-1")
    endpoint.disturb()
    embed("life-1")
    # What the first life asked for may be read when the next one has begun.
    embed("life-2")
    assert endpoint.again_undisturbed == []

    embed("life-2")
    (again,) = endpoint.again_undisturbed
    assert again.startswith("'T u7 v1' of life-2")
    assert (endpoint.embedded, endpoint.again, endpoint.again_for_another) == (4, 3, 1)
    endpoint._server.server_close()


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_transactions_that_come_again_are_counted_whatever_pieces_they_come_in(size: int) -> None:
    # Given what a server sends: an answer to a request for TLS, something else, transaction 7 twice and 8 once
    def data(payload: bytes) -> bytes:
        body = b"w" + bytes(24) + payload
        return b"d" + (len(body) + 4).to_bytes(4, "big") + body

    def begin(xid: int) -> bytes:
        return data(b"B" + bytes(16) + xid.to_bytes(4, "big"))

    sent = b"N" + b"Z\0\0\0\5I" + begin(7) + data(b"I...") + begin(8) + data(b'{"action":"B","xid":7,"x":1}')
    tap = Tap()
    session = tap.session()
    for at in range(0, len(sent), size):
        session(sent[at : at + size])

    assert tap.begun == {7: 2, 8: 1}
    assert tap.redelivered == 1


def test_a_seed_draws_the_same_faults_again_and_every_disturbance_comes_up() -> None:
    drawn = [list(schedule(seed, 60, [*DEATHS], [*DISTURBANCES])) for seed in (1, 1, 2)]

    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert {cycle.disturbance for cycle in drawn[0]} == {None, *DISTURBANCES}
    assert drawn[0][3].rng("x").random() == drawn[1][3].rng("x").random()


# -- the operator of somebody else's Chroma --------------------------------------------------------------------

ASKS = "hint: if this stays so, restart the Chroma server: after a full disk it may never be able to write again"


class Complaining:
    """A daemon, as far as its operator reads it."""

    def __init__(self, problems: list[dict[str, Any]] | None, log: str = "") -> None:
        self.log = log
        self._problems = problems

    def problems(self) -> list[dict[str, Any]] | None:
        return self._problems


@pytest.mark.parametrize(
    ("daemon", "wanted"),
    [
        (Complaining([{"name": "vectorstore", "hint": ASKS}]), True),
        (Complaining(None, log=ASKS), True),
        (Complaining([{"name": "vectorstore", "hint": "is it running?"}], log=ASKS), False),
        (Complaining([]), False),
        (Complaining(None, log=ASKS + "x" * 1000), False),
    ],
    ids=["on readyz", "does not get up", "another problem", "well", "long ago"],
)
def test_the_operator_of_chroma_hears_when_the_daemon_asks_for_a_restart(daemon: Any, wanted: bool) -> None:
    assert wants_chroma_restarted(daemon) == wanted


def test_an_audit_is_repeated_only_when_all_it_found_is_out_of_sight() -> None:
    header = "verify ended with 1: kind\tcollection\tdocument_id\tchunk_id\twhat"
    unseen = "vector\tdocs\tpublic.docs:1\tpublic.docs:1#7.0\ta search with its own vector does not find it"
    missing = "missing\tdocs\tpublic.docs:2\t\tthe row is not indexed"

    assert only_out_of_sight("\n".join([header, unseen, "389 rows, 1 defect"]))
    assert not only_out_of_sight("\n".join([header, unseen, missing]))
    assert not only_out_of_sight("verify ended with 75: error: the daemon does not answer")
