"""Chunks: within the limit, lossless, the same everywhere, and stable under edits."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc_agent.documents.chunking import Chunker
from cdc_agent.errors import ConfigError


def words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def characters(texts: Sequence[str]) -> list[int]:
    return [len(text) for text in texts]


def utf8(texts: Sequence[str]) -> list[int]:
    return [len(text.encode()) for text in texts]


def capricious(texts: Sequence[str]) -> list[int]:
    """Parts do not add up to the whole: every blank line and every fifth word cost extra once they are inside."""
    return [len(text.split()) * 6 // 5 + 2 * text.count("\n\n") for text in texts]


COUNTERS = st.sampled_from([words, characters, utf8, capricious])
TEXTS = st.one_of(
    st.text(max_size=300),
    st.lists(
        st.sampled_from(["word", "Ende.", "好。", "# Title", "\n\n", "\n", " ", "- item", "x" * 40]), max_size=80
    ).map(" ".join),
)


def without_whitespace(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("text", ["", " ", "\n\n \t\n"])
def test_a_text_of_whitespace_has_no_chunks(text: str) -> None:
    assert Chunker(8, 0, words).chunk(text) == []


def test_a_text_within_the_limit_is_one_chunk() -> None:
    assert Chunker(5, 0, words).chunk("  one two\n\nthree four five\n") == ["one two\n\nthree four five"]


def test_paragraphs_stay_whole_where_they_fit() -> None:
    # Given paragraphs of three words, of which two fit into a chunk
    paragraphs = [f"{n}a {n}b {n}c." for n in range(20)]

    # When the text is cut
    chunks = Chunker(7, 0, words).chunk("\n\n".join(paragraphs))

    # Then every boundary is a paragraph's
    assert [p for chunk in chunks for p in chunk.split("\n\n")] == paragraphs
    assert 10 <= len(chunks) < 20


def test_a_long_paragraph_is_cut_between_sentences() -> None:
    sentences = [f"{n} eins zwei drei." for n in range(20)]

    chunks = Chunker(9, 0, words).chunk(" ".join(sentences))

    assert " ".join(chunks).split(". ") == " ".join(sentences).split(". ")
    assert all(chunk.endswith(".") for chunk in chunks)


def test_a_heading_stays_with_what_it_heads() -> None:
    # Given sections of a heading and two paragraphs, of which not all fit into one chunk
    text = "\n\n".join(f"## Part {n}\n\n" + f"first{n} " * 5 + "\n\n" + f"second{n} " * 5 for n in range(30))

    # When the text is cut
    chunks = Chunker(16, 0, words).chunk(text)

    # Then no chunk ends with a heading
    assert len(chunks) > 20
    assert not [chunk for chunk in chunks if chunk.splitlines()[-1].startswith("#")]


@given(TEXTS, COUNTERS, st.integers(1, 60), st.booleans())
@settings(max_examples=400)
@pytest.mark.fault("oversize-text")
def test_no_chunk_exceeds_the_limit(
    text: str, count: Callable[[Sequence[str]], list[int]], limit: int, overlap: bool
) -> None:
    chunks = Chunker(limit, limit // 3 if overlap else 0, count).chunk(text)

    # A single character is the smallest thing there is.
    assert not [chunk for chunk in chunks if count([chunk])[0] > limit and len(chunk) > 1]


@given(TEXTS, COUNTERS, st.integers(1, 60))
@settings(max_examples=400)
def test_chunks_are_consecutive_slices_that_lose_nothing_but_whitespace(
    text: str, count: Callable[[Sequence[str]], list[int]], limit: int
) -> None:
    chunks = Chunker(limit, 0, count).chunk(text)

    # Each is found behind the one before it, with only whitespace between them
    position = 0
    for chunk in chunks:
        found = text.index(chunk, position)
        assert not text[position:found].strip()
        assert chunk == chunk.strip() != ""
        position = found + len(chunk)
    assert not text[position:].strip()


@given(TEXTS, st.integers(4, 60))
def test_overlap_repeats_only_the_end_of_the_chunk_before(text: str, limit: int) -> None:
    # Given the same text cut with the room that the overlap leaves, and with the overlap
    overlap = limit // 2
    plain = Chunker(limit - overlap, 0, words).chunk(text)
    overlapping = Chunker(limit, overlap, words).chunk(text)

    # Then each chunk is the plain one behind a piece of the one before it, within bounds
    assert len(overlapping) == len(plain)
    for before, chunk, longer in zip(["", *plain], plain, overlapping, strict=False):
        assert longer.endswith(chunk)
        prefix = longer[: len(longer) - len(chunk)].rstrip()
        assert before.endswith(prefix)
        assert words([prefix])[0] <= overlap


def test_overlap_takes_whole_sentences() -> None:
    # Given sentences of three words, of which one fits into the overlap
    text = " ".join(f"{letter} b c." for letter in "ABCDEFGHIJKL")

    chunks = Chunker(10, 4, words).chunk(text)

    assert len(chunks) > 2
    for before, chunk in pairwise(chunks):
        assert chunk.startswith(before[-len("A b c.") :] + " ")


def test_a_text_with_one_endless_word_is_cut() -> None:
    # Given a word of 100,000 characters, such as base64
    rng = random.Random(1)
    word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=100_000))

    # When it is cut, and cut again with something in front
    chunker = Chunker(256, 0, characters)
    chunks, shifted = chunker.chunk(word), chunker.chunk("prefix" + word)

    # Then nothing is lost, and only the beginning changed
    assert "".join(chunks) == word
    assert (Counter(shifted) - Counter(chunks)).total() <= 3


def test_a_million_characters_need_only_a_few_calls_of_the_tokenizer() -> None:
    # Given a text of every kind of unit, and a tokenizer that counts its calls
    rng = random.Random(2)
    text = "\n\n".join(
        " ".join(f"w{rng.randrange(10**6)}" for _ in range(rng.choice([3, 40, 900]))) for _ in range(450)
    )
    calls: list[int] = []

    def count(texts: Sequence[str]) -> list[int]:
        calls.append(len(texts))
        return words(texts)

    # When it is cut
    Chunker(256, 0, count).chunk(text)

    # Then texts were counted in batches, not one by one
    assert len(text) > 10**6
    assert len(calls) <= 8


def test_the_same_text_gives_the_same_chunks_in_another_process() -> None:
    program = (
        "from cdc_agent.documents.chunking import Chunker\n"
        "text = '\\n\\n'.join(f'p{n} ' * 7 for n in range(50))\n"
        "print([len(c) for c in Chunker(30, 0, lambda ts: [len(t.split()) for t in ts]).chunk(text)])"
    )

    there = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    ).stdout.strip()

    text = "\n\n".join(f"p{n} " * 7 for n in range(50))
    assert there == str([len(chunk) for chunk in Chunker(30, 0, words).chunk(text)])


# Stability ----------------------------------------------------------------------------------------------------------


def paragraph(rng: random.Random, smallest: int, largest: int) -> str:
    return " ".join(f"w{rng.randrange(100_000)}" for _ in range(rng.randint(smallest, largest)))


def edited(rng: random.Random, paragraphs: list[str], smallest: int, largest: int) -> list[str]:
    """A copy with one paragraph replaced, put in (anywhere, or in front) or taken out."""
    copy, place = list(paragraphs), rng.randrange(len(paragraphs))
    match rng.choice(["replace", "insert", "delete", "front"]):
        case "replace":
            copy[place] = paragraph(rng, smallest, largest)
        case "insert":
            copy.insert(place, paragraph(rng, smallest, largest))
        case "front":
            copy.insert(0, paragraph(rng, smallest, largest))
        case "delete":
            del copy[place]
    return copy


@pytest.mark.parametrize(("smallest", "largest"), [(20, 120), (5, 30)])
def test_one_changed_paragraph_of_a_hundred_changes_three_chunks_at_most(smallest: int, largest: int) -> None:
    # Given documents of a hundred paragraphs, one or many of which fill a chunk
    rng, chunker = random.Random(3), Chunker(256, 0, words)
    changed: Counter[int] = Counter()
    fills = []
    for _ in range(40):
        paragraphs = [paragraph(rng, smallest, largest) for _ in range(100)]
        before = chunker.chunk("\n\n".join(paragraphs))
        fills += [tokens / 256 for tokens in words(before)]

        # When one paragraph changes
        for _ in range(25):
            after = chunker.chunk("\n\n".join(edited(rng, paragraphs, smallest, largest)))
            changed[(Counter(after) - Counter(before)).total()] += 1

    # Then hardly ever more than three chunks must be embedded (a history-free rule has a tail: 0.06 % have four)
    assert max(changed) <= 4
    assert changed[4] <= 3
    assert sum(n * times for n, times in changed.items()) / changed.total() < 1.45

    # and chunks are not bought with emptiness
    assert sum(fills) / len(fills) > 0.55


def test_a_changed_word_in_the_middle_of_a_paragraph_changes_its_own_chunk() -> None:
    rng, chunker = random.Random(4), Chunker(256, 0, words)
    paragraphs = [paragraph(rng, 20, 120) for _ in range(100)]
    before = Counter(chunker.chunk("\n\n".join(paragraphs)))

    for place in range(100):
        copy = list(paragraphs)
        texts = copy[place].split()
        texts[len(texts) // 2] = "changed"
        copy[place] = " ".join(texts)

        assert (Counter(chunker.chunk("\n\n".join(copy))) - before).total() == 1


@given(st.integers(0, 2**32), st.integers(2, 40))
@settings(max_examples=200, deadline=None)
def test_a_change_reaches_no_further_than_the_limit_allows(seed: int, largest: int) -> None:
    # Given a document and one edit of it
    rng, limit = random.Random(seed), 64
    paragraphs = [paragraph(rng, 1, largest) for _ in range(60)]
    chunker = Chunker(limit, 0, words)
    before, after = paragraphs, edited(rng, paragraphs, 1, largest)
    same_front = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 59)
    same_back = next((i for i, (a, b) in enumerate(zip(before[::-1], after[::-1], strict=False)) if a != b), 59)

    # When both are cut
    old, new = (chunker.chunk("\n\n".join(version)) for version in (before, after))

    # Then chunks that lie twice the limit away from it are the same on both sides: that is the reach of the rule
    front = far_enough(old, sum(words(before[:same_front])) - 2 * limit)
    back = far_enough(old[::-1], sum(words(before[len(before) - same_back :])) - 2 * limit)
    assert new[:front] == old[:front]
    assert new[len(new) - back :] == old[len(old) - back :]


def far_enough(chunks: list[str], tokens: int) -> int:
    """How many of the first chunks lie within the first ``tokens``."""
    count = 0
    for size in words(chunks):
        tokens -= size
        if tokens < 0:
            break
        count += 1
    return count


def test_equal_paragraphs_do_not_end_up_alone() -> None:
    chunks = Chunker(256, 0, words).chunk("Yes.\n\n" * 1000)

    assert len(chunks) < 12


@pytest.mark.parametrize("between", [" ", ". ", "\n\n"])
@pytest.mark.parametrize("period", [1, 2, 3, 7, 20])
def test_a_text_that_repeats_itself_is_not_cut_at_each_repetition(period: int, between: str) -> None:
    # Given a few words again and again, as a table without sentences has them
    text = "".join(f"w{i}{between}" for i in range(period)) * (2000 // period)

    # When it is cut
    chunks = Chunker(64, 0, words).chunk(text)

    # Then chunks are about as large as elsewhere
    assert len(chunks) <= 2.2 * 2000 / 64


@pytest.mark.parametrize(("max_tokens", "overlap_tokens"), [(0, 0), (-1, 0), (10, -1), (10, 6), (1, 1)])
def test_impossible_limits_are_config_errors(max_tokens: int, overlap_tokens: int) -> None:
    with pytest.raises(ConfigError) as caught:
        Chunker(max_tokens, overlap_tokens, words)

    assert caught.value.hint
