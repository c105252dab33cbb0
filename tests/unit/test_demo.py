"""The demo's props: claims that are counted, a store that is compared, text that is really there."""

from __future__ import annotations

import datetime as dt
import io
from typing import Any

import pytest
from rich.console import Console

from cdc_agent.demo.audit import differences
from cdc_agent.demo.claims import Claim, Claims
from cdc_agent.demo.corpus import LONG_TITLE, SHORTEN_TITLE, load_corpus
from cdc_agent.demo.screen import Screen
from cdc_agent.demo.sight import Sight
from cdc_agent.documents.collection import CollectionSpec
from cdc_agent.documents.rendering import Template
from cdc_agent.vectorstore.base import Record

# -- claims ------------------------------------------------------------------------------------------------------


def test_claims_that_all_hold_are_a_success() -> None:
    shown: list[Claim] = []
    claims = Claims(shown.append)

    claims.check("water is wet", True, "it was dry")

    assert claims.exit_code == 0
    assert shown == [Claim(sentence="water is wet", held=True)]


def test_one_false_claim_is_a_failure_and_is_named() -> None:
    claims = Claims([].append)

    claims.check("water is wet", True)
    claims.check("fire is cold", False, "it was hot")
    claims.check("ice is cold", True)

    assert claims.exit_code == 1
    assert claims.broken == [Claim(sentence="fire is cold", held=False, otherwise="it was hot")]


def test_a_demo_that_claims_nothing_is_no_success() -> None:
    assert Claims([].append).exit_code == 1


def test_a_false_claim_is_shown_with_what_was_seen_instead() -> None:
    output = io.StringIO()
    screen = Screen(Console(file=output, width=40))

    Claims(screen.claim).check("a sentence that is longer than the line is wide", False, "something else")

    lines = [line.rstrip() for line in output.getvalue().splitlines()]
    assert lines == ["   ✗ a sentence that is longer than the line is wide", "     something else"]


# -- what was seen -----------------------------------------------------------------------------------------------

HITS = [{"document_id": "public.articles:7", "text": "Cats purr"}]


def test_a_sight_shows_an_article_only_with_its_text() -> None:
    sight = Sight(hits=HITS)

    assert sight.shows(7, "purr")
    assert not sight.shows(7, "bark")
    assert not sight.shows(8)
    assert not sight.lacks(7)
    assert sight.lacks(8)


def test_an_index_that_was_not_seen_neither_shows_nor_lacks_anything() -> None:
    sight = Sight(hits=None, ms=30_000)

    assert not sight.shows(7)
    assert not sight.lacks(7)
    assert str(sight) == "the index did not reach the commit in 30 s"


# -- the comparison ----------------------------------------------------------------------------------------------

SPEC = CollectionSpec(
    name="articles",
    schema="public",
    table="articles",
    template=Template("{title}\n\n{body}"),
    metadata=("category", "updated_at"),
)
MOMENT = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
ROW = {"id": 7, "title": "Cats", "body": "They purr.\n\nThey sleep.", "category": "pets", "updated_at": MOMENT}


def record(position: int, text: str, **metadata: Any) -> Record:
    own = {"category": "pets", "updated_at": MOMENT.isoformat(), **metadata}
    reserved = {"cdc_doc": "public.articles:7", "cdc_chunk": position, "cdc_lsn": 1, "cdc_commit_ts": "…"}
    return Record(id=f"public.articles:7#1.{position}", text=text, metadata={**reserved, **own})


FIRST, SECOND = record(0, "Cats\n\nThey purr."), record(1, "They sleep.")


def test_a_store_that_holds_the_table_has_no_differences() -> None:
    assert differences(SPEC, [ROW], [SECOND, FIRST]) == []


@pytest.mark.parametrize(
    ("records", "fault"),
    [
        ([], "is missing in the store"),
        ([SECOND], "has chunks [1]"),
        ([FIRST, SECOND, SECOND], "has chunks [0, 1, 1]"),
        ([FIRST, record(1, "They eat.")], "has another text in the store"),
        ([record(0, "Cats"), SECOND], "has another text in the store"),
        ([FIRST, record(1, "They sleep.", extra=1)], "has other metadata in the store"),
        ([FIRST, record(1, "They sleep.", category="dogs")], "has other metadata in the store"),
    ],
)
def test_every_kind_of_difference_is_seen(records: list[Record], fault: str) -> None:
    found = differences(SPEC, [ROW], records)

    assert len(found) == 1
    assert found[0].startswith(f"public.articles:7 {fault}")


def test_a_document_whose_row_is_gone_is_a_difference() -> None:
    assert differences(SPEC, [], [FIRST, SECOND]) == ["public.articles:7 is in the store but not in the table"]


# -- the text ----------------------------------------------------------------------------------------------------


def test_the_corpus_is_real_text_and_always_the_same() -> None:
    articles = load_corpus(100)

    assert articles == load_corpus(100)
    assert len({article.title for article in articles}) == 100
    assert [article.title for article in articles[:2]] == [SHORTEN_TITLE, LONG_TITLE]
    assert "truncate the given text" in articles[0].body
    assert len(articles[1].body) > 10_000
    assert len({article.category for article in articles}) >= 5


def test_a_small_corpus_is_the_beginning_of_a_large_one() -> None:
    assert load_corpus(300)[:20] == load_corpus(20)
