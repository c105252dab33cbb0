"""A document's text becomes chunks whose boundaries stay where they are when the text around them changes.

Counting tokens from the front would move every boundary behind an edit. Here every place where the text may be cut
(before a paragraph; before a sentence, a word, a few characters only inside of what alone is too long) is a *break*
with a strength of its own, drawn from the content that follows it, and

    a break becomes a boundary exactly when the stretch between the nearest stronger break before it
    and the nearest stronger break after it holds more than the limit.

So no chunk is too long, and whether a break is a boundary depends on the text near it, never on how the document came
to be. A break close to a stronger one is weakened first, which spares us tiny chunks. (Splitting at the strongest
break and recursing gives the same cuts.)
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Final, NamedTuple, TypeAlias

from cdc_agent.errors import ConfigError

__all__ = ["CHUNKER_VERSION", "Chunker", "CountTokens"]

#: Part of every fingerprint: raise it whenever the same text could be cut differently.
CHUNKER_VERSION: Final = 1
#: A break's distance to a stronger one counts in steps of limit / 16 …
ISOLATION_STEPS = 16
#: … up to this many steps; simulated: fewer gives tiny chunks, more makes edits reach further.
ISOLATION_MAX = 5
#: Characters after a break that decide its strength: an edit further on in the paragraph moves no boundary.
HEAD = 32
#: Characters of the longest piece that a word without end (base64, unspaced scripts) is cut into, and of the shortest.
PIECE_MAX, PIECE_MIN = 32, 4
#: The level of the break below a heading: finer than all others.
HELD = 255
#: Bits of a draw: eight bytes for the head, four to tell equal heads apart.
_DRAW_BITS = 96

CountTokens: TypeAlias = Callable[[Sequence[str]], list[int]]
_Span: TypeAlias = tuple[int, int]
_Splitter: TypeAlias = Callable[[str, int, int], Iterator[_Span]]


class _Unit(NamedTuple):
    """A stretch of text that is never cut; ``level`` is how fine the break before it is (0: a paragraph's)."""

    start: int
    end: int
    level: int
    tokens: int


class Chunker:
    """Cuts texts into chunks of at most ``max_tokens``, as ``count_tokens`` counts the finished chunk.

    Every chunk is an exact slice of the text without surrounding whitespace, and together the chunks hold everything
    but whitespace. With ``overlap_tokens``, a chunk begins with the last whole sentences of the one before it, as far
    as they fit into that many tokens. A single character over the limit is the one thing that is never cut.
    The same text gives the same chunks in every process.
    """

    def __init__(self, max_tokens: int, overlap_tokens: int, count_tokens: CountTokens) -> None:
        check_limits(max_tokens, overlap_tokens)
        self._max_tokens = max_tokens
        self._overlap_tokens = overlap_tokens
        self._limit = max_tokens - overlap_tokens
        self._count_tokens = count_tokens

    def chunk(self, text: str) -> list[str]:
        """The chunks of one text, in order; none for a text of whitespace."""
        text = text.strip()
        if not text:
            return []
        units = _below_headings(text, self._units(text))
        spans = self._fitting(text, units)
        if self._overlap_tokens:
            spans = self._overlapping(text, spans)
        return [text[start:end] for start, end in spans]

    def _units(self, text: str) -> list[_Unit]:
        """Units within the limit, as coarse as can be: what is too long is cut finer, level by level."""
        units = self._counted(text, [_Unit(0, len(text), 0, 0)])
        for level, split in enumerate(_SPLITTERS):
            if all(unit.tokens <= self._limit for unit in units):
                break
            units = self._counted(text, _refined(text, units, self._limit, level, split))
        return units

    def _counted(self, text: str, units: list[_Unit]) -> list[_Unit]:
        uncounted = [i for i, unit in enumerate(units) if not unit.tokens]
        counts = self._count_tokens([text[units[i].start : units[i].end] for i in uncounted])
        for i, tokens in zip(uncounted, counts, strict=True):
            # Even a unit that the tokenizer drops takes room; it keeps zero free to mean "not counted yet".
            units[i] = units[i]._replace(tokens=max(tokens, 1))
        return units

    def _fitting(self, text: str, units: list[_Unit]) -> list[_Span]:
        """Chunks as spans of text. Tokens of parts need not add up to those of the whole, so the whole is counted."""
        strengths = _strengths(text, units, self._limit)
        done: list[_Span] = []
        waiting = _stretches(units, strengths, self._limit)
        while waiting:
            spans = [(units[first].start, units[last - 1].end) for first, last in waiting]
            counts = self._count_tokens([text[start:end] for start, end in spans])
            halves: list[_Span] = []
            for (first, last), span, tokens in zip(waiting, spans, counts, strict=True):
                if tokens <= self._limit or last - first == 1:
                    done.append(span)
                else:
                    middle = min(range(first + 1, last), key=strengths.__getitem__)
                    halves += [(first, middle), (middle, last)]
            waiting = halves
        return sorted(done)

    def _overlapping(self, text: str, spans: list[_Span]) -> list[_Span]:
        """Each chunk with the last whole sentences of the one before it, where the result still fits."""
        sentences = [list(_sentences(text, start, end)) for start, end in spans[:-1]]
        counts = iter(self._count_tokens([text[start:end] for group in sentences for start, end in group]))
        starts = [_overlap_start(group, [next(counts) for _ in group], self._overlap_tokens) for group in sentences]
        longer = [
            (begin if begin is not None else start, end)
            for begin, (start, end) in zip([None, *starts], spans, strict=True)
        ]
        totals = self._count_tokens([text[start:end] for start, end in longer])
        return [
            long if tokens <= self._max_tokens else short
            for long, short, tokens in zip(longer, spans, totals, strict=True)
        ]


def check_limits(max_tokens: int, overlap_tokens: int) -> None:
    """Raise ``ConfigError`` unless chunks can hold something besides their overlap."""
    if max_tokens < 1:
        raise ConfigError(f"chunking.max_tokens is {max_tokens}", hint="it must be 1 or more; 256 suits most models")
    if not 0 <= overlap_tokens <= max_tokens // 2:
        raise ConfigError(
            f"chunking.overlap_tokens is {overlap_tokens}, with max_tokens {max_tokens}",
            hint=f"it must lie between 0 and half of max_tokens, {max_tokens // 2}",
        )


def _refined(text: str, units: list[_Unit], limit: int, level: int, split: _Splitter) -> list[_Unit]:
    refined: list[_Unit] = []
    for unit in units:
        if unit.tokens <= limit:
            refined.append(unit)
            continue
        # The first part stands where the whole stood, so it keeps the whole's break.
        levels = accumulate(split(text, unit.start, unit.end), lambda _level, _span: level, initial=unit.level)
        spans = split(text, unit.start, unit.end)
        refined += [_Unit(start, end, at, 0) for at, (start, end) in zip(levels, spans, strict=False)]
    return refined


def _below_headings(text: str, units: list[_Unit]) -> list[_Unit]:
    """The break between a Markdown heading and what it heads becomes the weakest of all: cut only where nothing else
    helps."""
    held = [
        unit._replace(level=HELD) if unit.level == 0 and _HEADING.fullmatch(text, heading.start, heading.end) else unit
        for heading, unit in pairwise(units)
    ]
    return [units[0], *held]


def _weights(units: list[_Unit]) -> list[int]:
    """Tokens of each unit; a heading has those of what it heads, too."""
    weights: list[int] = []
    for unit, follower in zip(reversed(units), [None, *reversed(units)], strict=False):
        headed = weights[-1] if follower is not None and follower.level == HELD else 0
        weights.append(unit.tokens + headed)
    return weights[::-1]


def _strengths(text: str, units: list[_Unit], limit: int) -> list[int]:
    """How strong the break before each unit is: the smaller, the stronger; -1 for both ends of the text.

    Level first, then how far the nearest stronger break is, then the draw.
    """
    draws = list(_draws(text, units, limit))
    drawn = [-1, *(unit.level << _DRAW_BITS | draw for unit, draw in zip(units[1:], draws, strict=True)), -1]
    places = _places(units)
    strengths = [-1]
    for i, (before, after) in enumerate(_stronger_neighbours(drawn), start=1):
        distance = min(places[i] - places[before], places[after] - places[i])
        crowded = ISOLATION_MAX - min(distance * ISOLATION_STEPS // limit, ISOLATION_MAX)
        strengths.append((units[i].level << 8 | crowded) << _DRAW_BITS | draws[i - 1])
    return [*strengths, -1]


def _draws(text: str, units: list[_Unit], limit: int) -> Iterator[int]:
    """A number for each break but the first; only the content behind the break decides it."""
    seen: dict[tuple[str, str], tuple[int, int]] = {}
    breaks = zip(units[1:], _weights(units)[1:], _places(units)[1:], strict=False)
    for unit, weight, place in breaks:
        content, head = text[unit.start : unit.end], text[unit.start : unit.start + HEAD]
        # Text that repeats itself within a chunk's length would draw the same again and again, and be cut at each
        # repetition: there, how often it was repeated tells the breaks apart.
        repeats, last_place = seen.get((head, content), (-1, place))
        repeats = repeats + 1 if place - last_place <= limit else 0
        seen[head, content] = repeats, place
        tail = zlib.crc32(_encoded(content), repeats)
        # Large units open chunks rather than end them: that leaves fewer ways to be cut anew (simulated).
        yield _digest(head) // weight**2 << 32 | tail


def _digest(text: str) -> int:
    """Not ``hash()``, which differs between processes."""
    return int.from_bytes(hashlib.blake2b(_encoded(text), digest_size=8).digest(), "big")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _stretches(units: list[_Unit], strengths: list[int], limit: int) -> list[_Span]:
    """Where chunks begin and end, as indexes into ``units``: the rule at the top of this file."""
    places = _places(units)
    neighbours = enumerate(_stronger_neighbours(strengths), start=1)
    boundaries = [i for i, (before, after) in neighbours if places[after] - places[before] > limit]
    return list(pairwise([0, *boundaries, len(units)]))


def _places(units: list[_Unit]) -> list[int]:
    """Tokens before each break."""
    return list(accumulate((unit.tokens for unit in units), initial=0))


def _stronger_neighbours(strengths: list[int]) -> Iterator[_Span]:
    """For each break but the ends, the nearest stronger ones on either side; of equals, the left one is stronger."""
    befores = _nearest(strengths, lambda mine, other: other <= mine)
    reverse = _nearest(strengths[::-1], lambda mine, other: other < mine)
    last = len(strengths) - 1
    return zip(befores, (last - i for i in reversed(reverse)), strict=True)


def _nearest(strengths: list[int], is_stronger: Callable[[int, int], bool]) -> list[int]:
    """For each element but the ends, the index of the last one before it that is stronger."""
    found: list[int] = []
    stack = [0]
    for i in range(1, len(strengths) - 1):
        while not is_stronger(strengths[i], strengths[stack[-1]]):
            stack.pop()
        found.append(stack[-1])
        stack.append(i)
    return found


def _overlap_start(sentences: list[_Span], counts: list[int], overlap_tokens: int) -> int | None:
    begin = None
    for (start, _end), tokens in zip(reversed(sentences), reversed(counts), strict=True):
        overlap_tokens -= tokens
        if overlap_tokens < 0:
            break
        begin = start
    return begin


def _by_pattern(pattern: re.Pattern[str]) -> _Splitter:
    def split(text: str, start: int, end: int) -> Iterator[_Span]:
        for match in pattern.finditer(text, start, end):
            yield match.start(), match.start() + len(match.group().rstrip())

    return split


def _pieces(text: str, start: int, end: int) -> Iterator[_Span]:
    """Cut a word by its content, so that characters put in at its front leave the later pieces alone."""
    for i in range(start + PIECE_MIN, end):
        length = i - start
        if length < PIECE_MIN:
            continue
        if length >= PIECE_MAX or zlib.crc32(_encoded(text[i - PIECE_MIN : i])) % 16 == 0:
            yield start, i
            start = i
    yield start, end


def _characters(_text: str, start: int, end: int) -> Iterator[_Span]:
    return pairwise(range(start, end + 1))


_HEADING = re.compile(r"#{1,6}\s[^\n]*")
_sentences = _by_pattern(re.compile(r"(?s)\S.*?(?:[.!?…][\"'”’)\]]*(?=\s)|[。！？][”’」』）]*|(?=\n)|\Z)"))
#: Ways to cut, coarsest first; each cuts only what the one before it leaves too long.
_SPLITTERS: tuple[_Splitter, ...] = (
    _by_pattern(re.compile(r"(?s)\S.*?(?=\n[^\S\n]*\n|\Z)")),
    _sentences,
    _by_pattern(re.compile(r"\S+")),
    _pieces,
    _characters,
)
