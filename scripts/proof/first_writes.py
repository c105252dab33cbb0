"""How often a read with vectors that meets the first writes of a Chroma collection is answered with an error, and
whether one stays: ``python scripts/proof/first_writes.py 45`` (seconds)."""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import chromadb
from chromadb.errors import InternalError

from cdc_agent.vectorstore.chroma_server import ChromaServer


def write(collection: chromadb.Collection) -> None:
    for i in range(4):
        vectors = [[1.0, float(j), float(i)] for j in range(3)]
        collection.upsert(ids=[f"{i}-{j}" for j in range(3)], embeddings=vectors, documents=["x"] * 3)
    collection.delete(ids=["0-0"])


def main(seconds: float) -> None:
    seen: Counter[str] = Counter()
    made = stayed = 0
    with tempfile.TemporaryDirectory() as folder:
        server = ChromaServer(Path(folder) / "chroma")
        server.start()
        try:
            writer, reader = (chromadb.HttpClient(host="127.0.0.1", port=server.port) for _ in range(2))
            ends = time.monotonic() + seconds
            while time.monotonic() < ends:
                made += 1
                written = writer.create_collection(f"collection{made}", embedding_function=None)
                read = reader.get_collection(f"collection{made}", embedding_function=None)
                thread = threading.Thread(target=write, args=(written,))
                thread.start()
                while thread.is_alive():
                    try:
                        read.get(include=["documents", "metadatas", "embeddings"])
                    except InternalError as exc:
                        seen[str(exc)[-40:]] += 1
                try:
                    read.get(include=["embeddings"])
                except InternalError:
                    stayed += 1
        finally:
            server.stop()
    print(f"{made} collections, {dict(seen)}, {stayed} stayed")


if __name__ == "__main__":
    main(float(sys.argv[1]))
