"""A collection's shape: the columns it needs, what a row renders to, and its fingerprint."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from cdc_agent.documents.collection import CollectionSpec
from cdc_agent.documents.model import Document
from cdc_agent.documents.predicate import Predicate
from cdc_agent.documents.rendering import Template
from cdc_agent.errors import ConfigError, RenderError


def spec(**changes: Any) -> CollectionSpec:
    shape: dict[str, Any] = {
        "name": "articles",
        "schema": "public",
        "table": "articles",
        "template": Template("{title}\n\n{body}"),
        "metadata": ("lang", "author_id"),
        "predicate": Predicate("published"),
        "max_tokens": 256,
        "overlap_tokens": 0,
    }
    return CollectionSpec(**{**shape, **changes})


def test_needed_columns_are_those_of_text_metadata_and_predicate() -> None:
    collection = spec()

    assert collection.text_columns == {"title", "body"}
    assert collection.needed_columns == {"title", "body", "lang", "author_id", "published"}
    assert spec(predicate=None).needed_columns == {"title", "body", "lang", "author_id"}
    assert collection.qualified_table == "public.articles"


def test_a_row_renders_to_a_document() -> None:
    row = {"title": "Tea", "body": "Hot", "lang": "en", "author_id": None, "published": True, "more": object()}

    assert spec().render(row, "public.articles:1") == Document(
        document_id="public.articles:1", text="Tea\n\nHot", metadata={"lang": "en", "author_id": None}
    )


def test_a_missing_metadata_column_is_named() -> None:
    with pytest.raises(RenderError, match="'lang'"):
        spec().render({"title": "Tea", "body": "Hot"}, "public.articles:1")


@pytest.mark.parametrize(
    "change",
    [
        {"template": Template("{title}\n{body}")},
        {"metadata": ("lang",)},
        {"metadata": ("author_id", "lang")},
        {"metadata": ("langauthor_id",)},
        {"predicate": None},
        {"predicate": Predicate("not published")},
        {"max_tokens": 255},
        {"overlap_tokens": 1},
    ],
)
def test_a_change_of_shape_changes_the_fingerprint(change: dict[str, Any]) -> None:
    assert spec(**change).shape_fingerprint() != spec().shape_fingerprint()


def test_name_and_table_are_no_part_of_the_shape() -> None:
    assert spec(name="other", table="other").shape_fingerprint() == spec().shape_fingerprint()


def test_the_model_is_part_of_the_full_fingerprint() -> None:
    prints = {
        spec().fingerprint("mini", 384),
        spec().fingerprint("maxi", 384),
        spec().fingerprint("mini", 768),
        spec(max_tokens=128).fingerprint("mini", 384),
        spec().shape_fingerprint(),
    }

    assert len(prints) == 5


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    # Given a process with another hash seed
    program = (
        "from cdc_agent.documents.collection import CollectionSpec as S\n"
        "from cdc_agent.documents.rendering import Template as T\n"
        "print(S(name='n', schema='s', table='t', template=T('{a}{b}'), metadata=('x', 'y')).fingerprint('m', 3))"
    )

    # When it computes the fingerprint
    there = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    ).stdout.strip()

    # Then it is ours
    here = CollectionSpec(name="n", schema="s", table="t", template=Template("{a}{b}"), metadata=("x", "y"))
    assert there == here.fingerprint("m", 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metadata": ("cdc_doc",)}, "starts with 'cdc_'"),
        ({"metadata": ("a", "a")}, "twice"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"overlap_tokens": 129}, "overlap_tokens is 129"),
    ],
)
@pytest.mark.fault("metadata-injection")
def test_an_impossible_shape_is_a_config_error(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spec(**change)
