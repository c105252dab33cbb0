"""Embedding by an OpenAI-compatible endpoint: OpenAI, vLLM, Ollama, LiteLLM, text-embeddings-inference.

Owns one request and what its answer means: try again, one text is to blame, or the configuration is wrong. Waiting
and trying again belong to the caller. Neither the key nor a text ever stands in an error.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from math import ceil
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from cdc_agent.embedding.base import Vectors
from cdc_agent.embedding.checks import as_vectors, bad_rows, unit_length
from cdc_agent.embedding.endpoint import TRY_AGAIN, error_code, retry_after_seconds, whole
from cdc_agent.errors import EmbedderUnavailable, EmbeddingError, PoisonText

__all__ = ["OpenAIEmbedder", "estimate_tokens"]

#: Statuses that blame what was sent; one text, or all of them together.
REFUSED = frozenset({400, 413, 422})
#: A text that every embedding model takes: tells a text that is to blame from a configuration that is.
PROBE = "hello"
#: Largest answer that is read, in bytes.
LARGEST_ANSWER = 256 * 1024 * 1024

_RUNS = re.compile(r"[A-Za-z0-9]+|[ \t\r\n]+")


class OpenAIEmbedder:
    """A model behind ``POST {url}/embeddings``. Every request ends within about ``timeout_s``.

    ``dimensions`` is sent along and checked when given; without it, the first answer tells.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: Callable[[], str | None] = lambda: None,
        dimensions: int | None = None,
        batch_texts: int = 64,
        timeout_s: float = 30.0,
        max_tokens: int = 8191,
    ) -> None:
        self._url = url.rstrip("/").removesuffix("/embeddings") + "/embeddings"
        self._model = model
        self._api_key = api_key
        self._asked_dimensions = dimensions
        self._dimensions = dimensions
        self._probing = threading.Lock()
        self._batch_texts = batch_texts
        self._timeout_s = timeout_s
        self._max_tokens = max_tokens
        self._client = httpx.Client(timeout=timeout_s)

    @property
    def model(self) -> str:
        return self._model

    @property
    def dimensions(self) -> int:
        """Asks the endpoint once if it is not configured; raises like ``embed``."""
        with self._probing:
            if self._dimensions is None:
                self._dimensions = len(self._probe())
            return self._dimensions

    @property
    def max_tokens(self) -> int:
        return self._max_tokens

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """An over-estimate, see ``estimate_tokens``: the tokenizer is behind the endpoint."""
        return [estimate_tokens(text) for text in texts]

    def embed(self, texts: Sequence[str]) -> Vectors:
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        for start in range(0, len(texts), self._batch_texts):
            batch = list(texts[start : start + self._batch_texts])
            vectors[start : start + len(batch)] = self._embed_or_halve(batch, start)
        self._mend(vectors, texts)
        return unit_length(vectors)

    def embed_query(self, text: str) -> npt.NDArray[np.float32]:
        vector: npt.NDArray[np.float32] = self.embed([text])[0]
        return vector

    def close(self) -> None:
        self._client.close()

    def _embed_or_halve(self, texts: list[str], start: int) -> Vectors:
        """Vectors of texts; a refused batch is cut in two until the text to blame stands alone."""
        try:
            return as_vectors(self._request(texts), dimensions=self.dimensions)
        except _RefusedError as refused:
            if len(texts) == 1:
                raise self._blame(refused, start) from refused
        middle = len(texts) // 2
        first = self._embed_or_halve(texts[:middle], start)
        return np.concatenate([first, self._embed_or_halve(texts[middle:], start + middle)])

    def _blame(self, refused: _RefusedError, index: int) -> EmbeddingError:
        """The text, if the endpoint takes another one; otherwise the configuration."""
        self._probe()
        return PoisonText(f"the endpoint refuses text {index}: {refused}", index=index)

    def _probe(self) -> Sequence[float]:
        try:
            return self._request([PROBE])[0]
        except _RefusedError as refused:
            raise EmbeddingError(
                f"the embedding endpoint refuses every text: {refused}",
                hint="check `embedding.model`, and leave `embedding.dimensions` out if the model cannot be shortened",
            ) from refused

    def _mend(self, vectors: Vectors, texts: Sequence[str]) -> None:
        """Ask again, alone, for what came back broken: NaN for one text of a batch is a known fault of servers."""
        for index in bad_rows(vectors):
            vectors[index] = self._embed_or_halve([texts[index]], index)[0]
            if bad_rows(vectors[index : index + 1]):
                raise PoisonText(f"the endpoint returns no usable vector for text {index}", index=index)

    def _request(self, texts: list[str]) -> list[list[float]]:
        status, headers, content = self._post(self._body(texts))
        if status != httpx.codes.OK:
            raise _failure(status, headers, content)
        return _vectors_in_order(content, len(texts))

    def _body(self, texts: list[str]) -> bytes:
        body: dict[str, Any] = {"model": self._model, "input": texts}
        if self._asked_dimensions is not None:
            body["dimensions"] = self._asked_dimensions
        # ASCII escapes carry even a lone surrogate as far as the endpoint, which then refuses that text alone.
        return json.dumps(body).encode("ascii")

    def _post(self, body: bytes) -> tuple[int, httpx.Headers, bytes]:
        deadline = time.monotonic() + self._timeout_s
        try:
            with self._client.stream("POST", self._url, content=body, headers=self._headers()) as response:
                return response.status_code, response.headers, whole(response.iter_bytes(), deadline, LARGEST_ANSWER)
        except httpx.TimeoutException as exc:
            raise EmbedderUnavailable(
                f"the embedding endpoint did not answer in {self._timeout_s:g} s",
                hint="it may be overloaded; `embedding.timeout_s` says how long we wait",
            ) from exc
        except (httpx.TransportError, httpx.DecodingError) as exc:
            raise EmbedderUnavailable(
                f"the embedding endpoint cannot be reached: {type(exc).__name__}: {exc}",
                hint="is it running? `embedding.url` says where",
            ) from exc
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as exc:
            raise _wrong_url() from exc

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := self._api_key():
            headers["Authorization"] = f"Bearer {key}"
        return headers


def estimate_tokens(text: str) -> int:
    """More tokens than the usual tokenizers make of a text, without having one.

    Three Latin letters or spaces are counted as a token (English has about 4.5), every digit and mark as one, and so
    every letter of a word with digits; other scripts by their UTF-8 bytes less one a character: 1 for Cyrillic, 2 for
    Chinese, 3 for emoji.
    Not a proof, a byte-level tokenizer can in theory make one token of every byte; a text that is too long all the
    same is refused by the endpoint and becomes a dead letter, it is not cut off.

    >>> estimate_tokens("the index is true"), estimate_tokens("2026-11"), estimate_tokens("你好")
    (6, 7, 4)
    """
    ascii_count = len(text.encode("ascii", "ignore"))
    plain = sum(len(run) for run in _RUNS.findall(text) if run.isalpha() or run.isspace())
    beyond_ascii = len(text.encode("utf-8", "surrogatepass")) - len(text)
    return ceil(plain / 3) + (ascii_count - plain) + beyond_ascii


class _RefusedError(Exception):
    """The endpoint refuses what was sent; somebody must find out which text it is."""


def _vectors_in_order(content: bytes, count: int) -> list[list[float]]:
    try:
        entries = json.loads(content)["data"]
        by_place = {entry.get("index", place): entry["embedding"] for place, entry in enumerate(entries)}
        rows = [[float("nan") if number is None else float(number) for number in by_place[n]] for n in range(count)]
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise EmbedderUnavailable(
            f"the embedding endpoint answered with something that is not {count} embeddings",
            hint="check that `embedding.url` is an OpenAI-compatible API, usually ending in /v1",
        ) from exc
    if len(entries) != count:
        raise EmbedderUnavailable(
            f"the embedding endpoint returned {len(entries)} vectors for {count} texts",
            hint="it is asked again; if it goes on so, something between us and the model changes answers",
        )
    return rows


def _failure(status: int, headers: httpx.Headers, content: bytes) -> Exception:
    said = f"HTTP {status}{error_code(content)}"
    if status in REFUSED:
        return _RefusedError(said)
    if status in (401, 403):
        return EmbedderUnavailable(
            f"the embedding endpoint does not accept our key: {said}",
            hint="check `embedding.api_key` or `embedding.api_key_file`, and that the key may use this model",
        )
    if status >= 500 or status in TRY_AGAIN:
        wait = retry_after_seconds(headers.get("Retry-After"), datetime.now(UTC))
        return EmbedderUnavailable(
            f"the embedding endpoint is not available: {said}",
            hint="it is asked again until it answers, nothing is lost meanwhile; its own log says what ails it",
            retry_after_s=wait,
        )
    return _wrong_url(said)


def _wrong_url(said: str = "not a web address") -> EmbeddingError:
    return EmbeddingError(
        f"the embedding endpoint is not where `embedding.url` says, or does not have the model: {said}",
        hint="check `embedding.url` (usually ending in /v1) and `embedding.model`",
    )
