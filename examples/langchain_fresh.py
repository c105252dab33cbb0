"""Search a collection from LangChain and get an answer that holds your own commit.

python examples/langchain_fresh.py "how do refunds work?" --dsn postgresql://localhost/app

With --dsn the answer holds everything that was committed there before, without it what was when the daemon was asked. A
bearer token is read from CDC_AGENT_TOKEN.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

import psycopg
from langchain_core.documents import Document

from cdc_agent.client import NOW
from cdc_agent.integrations.langchain import FreshRetriever


def retriever(
    *, url: str, collection: str, k: int = 5, where: dict[str, Any] | None = None, timeout_s: float = 10.0
) -> FreshRetriever:
    return FreshRetriever(
        url=url,
        collection=collection,
        token=os.environ.get("CDC_AGENT_TOKEN"),
        k=k,
        where=where,
        timeout_s=timeout_s,
        fresh_as_of=NOW,
    )


def search_after_commit(fresh: FreshRetriever, query: str, dsn: str) -> list[Document]:
    with psycopg.connect(dsn) as connection:
        # … write, and then:
        connection.commit()
        return fresh.invoke(query, fresh_as_of=connection)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("query")
    parser.add_argument("--url", default="http://127.0.0.1:8765")
    parser.add_argument("--collection", default="articles")
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--where", type=json.loads, help="a condition on metadata, as JSON")
    parser.add_argument("--timeout-s", type=float, default=10.0)
    parser.add_argument("--dsn", help="the database that is followed")
    options = vars(parser.parse_args())
    query, dsn = options.pop("query"), options.pop("dsn")
    fresh = retriever(**options)
    documents = search_after_commit(fresh, query, dsn) if dsn else fresh.invoke(query)
    for document in documents:
        print(json.dumps({"id": document.id, "text": document.page_content, "metadata": document.metadata}))
    fresh.close()


if __name__ == "__main__":
    main()
