"""The diff of a document's chunks against its manifest."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cdc_agent.documents.diff import diff_chunks
from cdc_agent.documents.model import text_hash

TEXTS = st.lists(st.sampled_from("abcd"), max_size=12)


def manifest(*texts: str) -> list[tuple[str, bytes]]:
    return [(f"#{i}", text_hash(text)) for i, text in enumerate(texts)]


def test_an_unchanged_document_keeps_every_id_in_its_place() -> None:
    diff = diff_chunks(manifest("a", "b", "a"), ["a", "b", "a"])

    assert diff.is_empty
    assert diff.kept == {0: "#0", 1: "#1", 2: "#2"}


def test_an_edited_chunk_is_new_and_its_old_id_is_dropped() -> None:
    diff = diff_chunks(manifest("a", "b", "c"), ["a", "B", "c"])

    assert not diff.is_empty
    assert (diff.kept, diff.new, diff.dropped) == ({0: "#0", 2: "#2"}, (1,), ("#1",))


def test_moved_chunks_keep_their_ids() -> None:
    diff = diff_chunks(manifest("a", "b"), ["b", "x", "a"])

    assert (diff.kept, diff.new, diff.dropped) == ({0: "#1", 2: "#0"}, (1,), ())


def test_a_text_that_repeats_more_often_than_before_is_new_where_it_repeats() -> None:
    diff = diff_chunks(manifest("a"), ["a", "a"])

    assert (diff.kept, diff.new, diff.dropped) == ({0: "#0"}, (1,), ())


def test_a_document_that_became_empty_drops_everything() -> None:
    assert diff_chunks(manifest("a", "b"), []).dropped == ("#0", "#1")


@given(TEXTS, TEXTS)
def test_a_diff_is_a_largest_matching_by_text(before: list[str], after: list[str]) -> None:
    # Given a manifest
    old = manifest(*before)

    # When new texts meet it
    diff = diff_chunks(old, after)

    # Then positions and ids are split without rest, and each id is kept once
    assert sorted([*diff.kept, *diff.new]) == list(range(len(after)))
    assert sorted([*diff.kept.values(), *diff.dropped]) == sorted(chunk_id for chunk_id, _ in old)

    # and a position keeps only an id of its own text
    hashes = dict(old)
    assert all(hashes[chunk_id] == text_hash(after[position]) for position, chunk_id in diff.kept.items())

    # and nothing is new that an old chunk could have been
    assert len(diff.kept) == (Counter(before) & Counter(after)).total()


@given(TEXTS, TEXTS)
def test_a_diff_applied_to_the_old_chunks_gives_the_new_ones(before: list[str], after: list[str]) -> None:
    # Given the chunks of a document, each with an id that stands for its vector
    held = {f"d#1.{n}": text for n, text in enumerate(before)}
    diff = diff_chunks([(i, text_hash(text)) for i, text in held.items()], after)

    # When what is dropped goes and what is new comes
    for chunk_id in diff.dropped:
        del held[chunk_id]
    ids = {**diff.kept, **{position: f"d#2.{n}" for n, position in enumerate(diff.new)}}
    held |= {ids[position]: after[position] for position in diff.new}

    # Then the document is the new text, chunk by chunk, and nothing else is there
    assert [held.get(ids[position]) for position in range(len(after))] == after
    assert len(held) == len(after)
