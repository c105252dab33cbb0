"""Search a collection with Haystack's Chroma store, unmodified.

python examples/haystack_chroma.py "how do refunds work?" --lang en

The score of a document is a distance here: 0 is the same, smaller is nearer.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

# Before the import, which would make a user id for usage data.
os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")

from haystack_integrations.components.retrievers.chroma import ChromaQueryTextRetriever
from haystack_integrations.document_stores.chroma import ChromaDocumentStore


def retriever(
    *, host: str, port: int, collection: str, model: str, k: int = 5, lang: str | None = None
) -> ChromaQueryTextRetriever:
    store = ChromaDocumentStore(
        collection,
        embedding_function="SentenceTransformerEmbeddingFunction",
        model_name=model,
        host=host,
        port=port,
        distance_function="cosine",
    )
    filters: dict[str, Any] = {"field": "meta.lang", "operator": "==", "value": lang} if lang else {}
    return ChromaQueryTextRetriever(store, filters=filters, top_k=k)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("query")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8900)
    parser.add_argument("--collection", default="articles")
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="name, or folder with the model")
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--lang", help="only documents whose column `lang` is this")
    options = vars(parser.parse_args())
    query = options.pop("query")
    for document in retriever(**options).run(query)["documents"]:
        hit = {"id": document.id, "distance": document.score, "text": document.content, "metadata": document.meta}
        print(json.dumps(hit))


if __name__ == "__main__":
    main()
