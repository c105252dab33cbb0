"""Documents of real English: sentences of Python's own manual, in an order of our own. One seed, one set of texts."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pydoc_data.topics import topics

__all__ = ["documents", "short_texts"]

_SENTENCE = re.compile(r"(?<=[.!?] )[A-Z](?:[A-Za-z0-9 ,;:'\"()]|-(?!-)){30,220}[.](?=\s)")
#: Words of one document: from a note to a page, which makes one to four chunks of 256 tokens.
_WORDS = (15, 40, 80, 150, 250, 400, 550, 700)


def documents(count: int, seed: int) -> list[tuple[str, str]]:
    """Title and body; no two bodies are the same."""
    return [(f"Document {seed}-{number}", body) for number, body in zip(range(count), _bodies(seed), strict=False)]


def short_texts(count: int, seed: int) -> list[str]:
    """Texts of one chunk each, about 40 words long and all different."""
    draw = random.Random(seed)
    return [f"Note {seed}-{number}. {_joined(draw, 40)}" for number in range(count)]


def _bodies(seed: int) -> Iterator[str]:
    draw = random.Random(seed)
    while True:
        yield _joined(draw, int(draw.choice(_WORDS) * draw.uniform(0.8, 1.2)))


def _joined(draw: random.Random, words: int) -> str:
    """Whole sentences, about five to a paragraph."""
    text, left = [], words
    while left > 0:
        sentence = draw.choice(_SENTENCES)
        text.append(sentence + (" " if draw.random() < 0.8 else "\n\n"))
        left -= sentence.count(" ") + 1
    return "".join(text).strip()


def _sentences() -> list[str]:
    prose = (" ".join(topic.split()) + " " for topic in topics.values())
    return sorted({sentence for topic in prose for sentence in _SENTENCE.findall(topic)})


_SENTENCES = _sentences()
