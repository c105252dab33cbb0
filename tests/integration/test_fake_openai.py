"""The stand-in for OpenAI answers as OpenAI does, and fails as told."""

from __future__ import annotations

import base64
import math
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support import fake_openai as openai
from tests.support.fake_openai import FakeOpenAI


def embed(fake: FakeOpenAI, *texts: str, **more: Any) -> httpx.Response:
    body = {"model": "text-embedding-3-small", "input": list(texts), **more}
    return httpx.post(f"{fake.base_url}/embeddings", json=body, timeout=more.pop("timeout", 5))


def vectors(answer: httpx.Response) -> list[list[float]]:
    return [item["embedding"] for item in answer.raise_for_status().json()["data"]]


def test_equal_texts_have_equal_unit_vectors(fake_openai: FakeOpenAI) -> None:
    # When three texts are embedded, two of them equal
    first, other, second = vectors(embed(fake_openai, "a", "b", "a"))

    # Then the equal ones agree, the other one does not, and all are of length one
    assert first == second != other
    assert math.isclose(math.hypot(*other), 1)
    assert len(other) == fake_openai.dimension
    assert fake_openai.texts_seen == {"a": 2, "b": 1} == fake_openai.texts_embedded


def test_base64_holds_the_same_numbers(fake_openai: FakeOpenAI) -> None:
    # When the official client's format is asked for
    (coded,) = vectors(embed(fake_openai, "a", encoding_format="base64"))

    # Then it decodes to the same vector
    assert np.allclose(np.frombuffer(base64.b64decode(coded), dtype="<f4"), fake_openai.vector_of("a"), atol=1e-6)


def test_faults_come_first_in_first_out_and_then_stop(fake_openai: FakeOpenAI) -> None:
    # Given a script of everything that goes wrong
    fake_openai.script(
        openai.rate_limited(retry_after_s=1.5),
        openai.server_error(503),
        openai.garbage(),
        openai.not_a_number(),
        openai.wrong_dimension(3),
        openai.too_few(),
        openai.reversed_order(),
    )

    # When requests come in, Then each meets its fate
    limited = embed(fake_openai, "a")
    assert (limited.status_code, limited.headers["Retry-After"]) == (429, "1.5")
    assert embed(fake_openai, "a").status_code == 503
    with pytest.raises(ValueError, match="Expecting value"):
        embed(fake_openai, "a").json()
    assert math.isnan(vectors(embed(fake_openai, "a"))[0][0])
    assert len(vectors(embed(fake_openai, "a"))[0]) == 3
    assert len(vectors(embed(fake_openai, "a", "b"))) == 1
    assert [item["index"] for item in embed(fake_openai, "a", "b").json()["data"]] == [1, 0]

    # And the next is answered well
    assert vectors(embed(fake_openai, "a")) == [fake_openai.vector_of("a")]
    assert fake_openai.texts_seen["a"] == 8
    assert fake_openai.texts_embedded["a"] == 2


def test_a_poisoned_text_is_refused_with_its_whole_request(fake_openai: FakeOpenAI) -> None:
    # Given a poison
    fake_openai.poison = "arsenic"

    # When one text of two holds it
    answer = embed(fake_openai, "tea", "tea with arsenic")

    # Then both are refused, the way OpenAI says it, and the good one alone is not
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert embed(fake_openai, "tea").status_code == 200


def test_a_hanging_request_ends_when_the_client_loses_patience(fake_openai: FakeOpenAI) -> None:
    # Given a server that does not answer
    fake_openai.script(openai.hang())

    # When the client waits for a while, Then it gives up, and the next request is answered
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{fake_openai.base_url}/embeddings", json={"model": "m", "input": "a"}, timeout=0.3)
    assert embed(fake_openai, "a").status_code == 200
