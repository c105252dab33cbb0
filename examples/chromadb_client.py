"""Search a collection with Chroma's own client and the model that the daemon embeds with.

python examples/chromadb_client.py "how do refunds work?" --where '{"lang": "en"}'
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import chromadb
from sentence_transformers import SentenceTransformer


def open_collection(*, host: str, port: int, collection: str) -> chromadb.Collection:
    client = chromadb.HttpClient(host=host, port=port)
    return client.get_collection(collection, embedding_function=None)


def search(
    records: chromadb.Collection,
    model: SentenceTransformer,
    query: str,
    k: int = 5,
    where: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    vector = model.encode_query(query).tolist()
    found = records.query(query_embeddings=[vector], n_results=k, where=where)
    columns = zip(found["ids"][0], found["distances"][0], found["documents"][0], found["metadatas"][0], strict=True)
    return [dict(zip(("id", "distance", "text", "metadata"), row, strict=True)) for row in columns]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("query")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8900)
    parser.add_argument("--collection", default="articles")
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="name, or folder with the model")
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--where", type=json.loads, help="a condition on metadata, as JSON")
    options = parser.parse_args()
    records = open_collection(host=options.host, port=options.port, collection=options.collection)
    for hit in search(records, SentenceTransformer(options.model), options.query, options.k, options.where):
        print(json.dumps(hit))


if __name__ == "__main__":
    main()
