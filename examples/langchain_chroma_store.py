"""Search a collection with langchain-chroma, unmodified.

Not called langchain_chroma.py: Python would take that for the library.

python examples/langchain_chroma_store.py "how do refunds work?" --where '{"lang": "en"}'
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from langchain_chroma import Chroma
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from sentence_transformers import SentenceTransformer


class MiniLM(Embeddings):
    """The model that the daemon embeds with."""

    def __init__(self, model: str) -> None:
        self._model = SentenceTransformer(model)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self._model.encode_document(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        return self._model.encode_query(text).tolist()


def retriever(
    *, host: str, port: int, collection: str, model: str, k: int = 5, where: dict[str, Any] | None = None
) -> BaseRetriever:
    store = Chroma(
        collection_name=collection,
        embedding_function=MiniLM(model),
        host=host,
        port=port,
        create_collection_if_not_exists=False,  # it is the daemon's to create
    )
    return store.as_retriever(search_kwargs={"k": k, "filter": where})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("query")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8900)
    parser.add_argument("--collection", default="articles")
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="name, or folder with the model")
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--where", type=json.loads, help="a condition on metadata, as JSON")
    options = vars(parser.parse_args())
    query = options.pop("query")
    for document in retriever(**options).invoke(query):
        print(json.dumps({"id": document.id, "text": document.page_content, "metadata": document.metadata}))


if __name__ == "__main__":
    main()
