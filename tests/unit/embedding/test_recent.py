"""Questions asked again are not embedded again, for a short time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from cdc_agent.embedding.recent import RecentVectors
from cdc_agent.errors import EmbedderUnavailable


class Model:
    """Counts what it embeds."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def embed(self, text: str) -> npt.NDArray[np.float32]:
        self.asked.append(text)
        return np.full(2, len(self.asked), dtype=np.float32)


def test_a_question_asked_again_is_not_embedded_again() -> None:
    model, recent = Model(), RecentVectors()

    first = recent.of("how?", lambda: model.embed("how?"))
    again = recent.of("how?", lambda: model.embed("how?"))
    other = recent.of("why?", lambda: model.embed("why?"))

    assert model.asked == ["how?", "why?"]
    assert again is first
    assert other is not first


def test_a_question_is_forgotten_after_its_time_however_often_it_is_asked() -> None:
    # Given a question that is asked every five seconds
    now = [0.0]
    model, recent = Model(), RecentVectors(kept_s=10.0, clock=lambda: now[0])

    for now[0] in (0.0, 5.0, 9.9, 10.0):
        recent.of("how?", lambda: model.embed("how?"))

    # Then it is embedded once in ten seconds
    assert model.asked == ["how?", "how?"]


def test_the_oldest_goes_when_there_are_too_many() -> None:
    model, recent = Model(), RecentVectors(most=2)

    for text in ("a", "b", "c", "b", "a"):
        recent.of(text, lambda text=text: model.embed(text))

    assert model.asked == ["a", "b", "c", "a"]


def test_a_failure_is_not_remembered() -> None:
    model, recent = Model(), RecentVectors()

    def fail() -> npt.NDArray[np.float32]:
        raise EmbedderUnavailable("away")

    with pytest.raises(EmbedderUnavailable):
        recent.of("how?", fail)

    assert recent.of("how?", lambda: model.embed("how?"))[0] == 1


def test_nobody_can_change_what_is_remembered() -> None:
    model, recent = Model(), RecentVectors()

    vector = recent.of("how?", lambda: model.embed("how?"))

    with pytest.raises(ValueError, match="read-only"):
        vector += 1
