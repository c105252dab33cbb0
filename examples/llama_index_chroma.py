"""Search a collection with LlamaIndex's ChromaVectorStore, unmodified.

python examples/llama_index_chroma.py "how do refunds work?" --lang en
"""

from __future__ import annotations

import argparse
import json

import chromadb
from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from llama_index.vector_stores.chroma import ChromaVectorStore
from pydantic import PrivateAttr
from sentence_transformers import SentenceTransformer


class MiniLM(BaseEmbedding):
    """The model that the daemon embeds with."""

    _model: SentenceTransformer = PrivateAttr()

    def __init__(self, model: str) -> None:
        super().__init__(model_name=model)
        self._model = SentenceTransformer(model)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._model.encode_document(text).tolist()

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._model.encode_query(query).tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


def retriever(
    *, host: str, port: int, collection: str, model: str, k: int = 5, lang: str | None = None
) -> BaseRetriever:
    client = chromadb.HttpClient(host=host, port=port)
    records = client.get_collection(collection, embedding_function=None)
    store = ChromaVectorStore(chroma_collection=records)
    index = VectorStoreIndex.from_vector_store(store, embed_model=MiniLM(model))
    filters = MetadataFilters(filters=[MetadataFilter(key="lang", value=lang)]) if lang else None
    return index.as_retriever(similarity_top_k=k, filters=filters)


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
    for found in retriever(**options).retrieve(query):
        node = found.node
        print(
            json.dumps(
                {"id": node.node_id, "score": found.score, "text": node.get_content(), "metadata": node.metadata}
            )
        )


if __name__ == "__main__":
    main()
