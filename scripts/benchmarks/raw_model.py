"""The model and the store without us, in a process of their own: what ``index`` and ``freshness`` compare with.

As a module, ``RawModel`` drives the child; run as a program, it is the child: one JSON request a line, one answer a
line. The child loads the same weights from the same folder and leaves torch's settings alone, as the daemon does.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

__all__ = ["RawModel"]

#: Batch sizes that the reference may choose from.
BATCH_SIZES = (8, 16, 32, 64)


class RawModel:
    """The child process, seen from the measurement. It does nothing between two questions."""

    def __init__(self) -> None:
        self._child = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait(30)

    def chunks(self, documents: Sequence[str]) -> list[str]:
        """What the daemon's chunker makes of these documents with the default settings."""
        return list(self._ask("chunks", documents))

    def encode_s(self, texts: Sequence[str], batch_size: int) -> float:
        """Seconds of ``SentenceTransformer.encode`` for all texts."""
        return float(self._ask("encode", texts, batch_size))

    def connect(self, chroma_port: int) -> None:
        """Open a collection of the reference's own in a Chroma server."""
        self._ask("connect", chroma_port)

    def encode_and_upsert_s(self, record_id: str, text: str) -> float:
        """Seconds to encode one text and upsert it as one record."""
        return float(self._ask("one", record_id, text))

    def _ask(self, what: str, *args: Any) -> Any:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(orjson.dumps([what, *args]) + b"\n")
        self._child.stdin.flush()
        answer = self._child.stdout.readline()
        if not answer:
            raise RuntimeError(f"the raw model ended with {self._child.wait()}")
        return orjson.loads(answer)


class _Child:
    """What the child can do, by the name of the request."""

    def __init__(self) -> None:
        from sentence_transformers import SentenceTransformer

        from cdc_agent.embedding.sentence_transformers import PACKAGED_MODELS

        spec = importlib.util.find_spec(PACKAGED_MODELS["all-MiniLM-L6-v2"])
        assert spec is not None
        assert spec.origin is not None
        self._model = SentenceTransformer(str(Path(spec.origin).parent / "model"), device="cpu", local_files_only=True)
        self._records: Any = None
        self._model.encode(["warm up"] * 8, show_progress_bar=False)

    def chunks(self, documents: list[str]) -> list[str]:
        from cdc_agent.config.tree import ChunkingConfig
        from cdc_agent.documents.chunking import Chunker
        from cdc_agent.embedding.sentence_transformers import SentenceTransformersEmbedder

        embedder = SentenceTransformersEmbedder()
        defaults = ChunkingConfig()
        chunker = Chunker(min(defaults.max_tokens, embedder.max_tokens), defaults.overlap_tokens, embedder.count_tokens)
        return [chunk for document in documents for chunk in chunker.chunk(document)]

    def encode(self, texts: list[str], batch_size: int) -> float:
        began = time.perf_counter()
        self._model.encode(texts, batch_size=batch_size, show_progress_bar=False)
        return time.perf_counter() - began

    def connect(self, port: int) -> None:
        import chromadb

        client = chromadb.HttpClient(host="127.0.0.1", port=port)
        self._records = client.create_collection("bench_raw", embedding_function=None)

    def one(self, record_id: str, text: str) -> float:
        began = time.perf_counter()
        vector = self._model.encode([text], show_progress_bar=False)[0]
        self._records.upsert(ids=[record_id], embeddings=[vector], documents=[text], metadatas=[{"cdc_doc": record_id}])
        return time.perf_counter() - began


def main() -> int:
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = os.environ["TQDM_DISABLE"] = "1"
    answers = sys.stdout.buffer
    sys.stdout = sys.stderr  # Nothing that a library prints is taken for an answer.
    child = _Child()
    for line in sys.stdin.buffer:
        what, *args = orjson.loads(line)
        method: Callable[..., Any] = getattr(child, what)
        answers.write(orjson.dumps(method(*args)) + b"\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
