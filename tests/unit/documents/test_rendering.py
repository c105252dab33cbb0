"""Templates: what a row's text looks like, and which templates and rows are refused."""

from __future__ import annotations

import datetime as dt
import decimal
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_agent.documents.rendering import Template
from cdc_agent.errors import ConfigError, RenderError
from cdc_agent.events import UNCHANGED, Column, Relation, Row

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]))


def test_columns_are_filled_in_between_plain_text() -> None:
    template = Template("{title}\n\n{body}!")

    assert template.columns == {"title", "body"}
    assert template.render({"title": "Tea", "body": "Hot", "other": 1}) == "Tea\n\nHot!"


def test_doubled_braces_are_braces() -> None:
    assert Template("{{{a}}} {{b}}").render({"a": "x", "b": "never"}) == "{x} {b}"


def test_a_value_that_looks_like_a_template_is_left_alone() -> None:
    assert Template("{a}").render({"a": "{b} {{ %s", "b": "x"}) == "{b} {{ %s"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "true"),
        (False, "false"),
        (2**80, str(2**80)),
        (0.1, "0.1"),
        (decimal.Decimal("1.10"), "1.10"),
        (decimal.Decimal("1E+3"), "1000"),
        (decimal.Decimal("0.0000001"), "0.0000001"),
        (decimal.Decimal("NaN"), "NaN"),
        (dt.date(2025, 1, 2), "2025-01-02"),
        (dt.datetime(2025, 1, 2, 3, 4, 5, 6, dt.UTC), "2025-01-02T03:04:05.000006+00:00"),
        (dt.time(23, 59), "23:59:00"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ([1, None, "é"], '[1, null, "é"]'),
        ({"b": 1, "a": [True]}, '{"b": 1, "a": [true]}'),
        ("a\0b\ud800c", "ab\ufffdc"),
    ],
)
def test_every_kind_of_value_has_one_text_form(value: object, text: str) -> None:
    assert Template("<{v}>").render({"v": value}) == f"<{text}>"


def test_whitespace_around_the_whole_is_trimmed_and_inside_is_kept() -> None:
    assert Template("{title}\n\n{body}").render({"title": None, "body": " a \n\n b  "}) == "a \n\n b"


@given(TEXT, TEXT)
def test_two_text_columns_render_to_their_texts(title: str, body: str) -> None:
    assert Template("{t}|{b}").render({"t": title, "b": body}) == f"{title}|{body}".strip()


@given(TEXT, TEXT)
def test_escaped_plain_text_renders_to_itself(before: str, after: str) -> None:
    # Given any text around a column, its braces doubled
    escaped_before, escaped_after = (part.replace("{", "{{").replace("}", "}}") for part in (before, after))

    # When it is a template
    template = Template(f"{escaped_before}{{v}}{escaped_after}")

    # Then only the column was replaced
    assert template.columns == {"v"}
    assert template.render({"v": "·"}) == f"{before}·{after}".strip()


@pytest.mark.parametrize(
    "text", ["", "no column", "{", "{a", "a}", "{}", "{ a }", "{a:>3}", "{a!r}", "{a{b}}", "{{a}}", "{a}}"]
)
def test_a_malformed_template_is_a_config_error_with_a_hint(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Template(text)

    assert caught.value.hint


def test_a_missing_column_is_named() -> None:
    with pytest.raises(RenderError, match="'body'") as caught:
        Template("{title}{body}").render({"title": "x"})

    assert "publication" in caught.value.hint


def test_bytes_are_no_text() -> None:
    with pytest.raises(RenderError, match="'blob' is bytea"):
        Template("{blob}").render({"blob": b"x"})


@pytest.mark.fault("bad-text")
def test_bytes_that_are_no_utf8_are_a_render_error_of_this_row() -> None:
    # Given a text column of a SQL_ASCII database
    relation = Relation(
        oid=1, root_oid=1, schema="s", name="t", columns=(Column(name="body", type_oid=25),), key=("body",)
    )

    with pytest.raises(RenderError, match="no UTF-8"):
        Template("{body}").render(Row(relation, (b"caf\xe9",)))


def test_an_unchanged_value_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="UNCHANGED"):
        Template("{a}").render({"a": UNCHANGED})
