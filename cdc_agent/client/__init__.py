"""Reading the index from another program: ``Index`` and ``AsyncIndex``. Light: httpx, no model, no store.

from cdc_agent.client import Index

index = Index("http://127.0.0.1:8765", "articles")
connection.commit()
for hit in index.search("how do I reset it?", k=5, fresh_as_of=connection):
    print(hit.score, hit.text, hit.source.key, hit.source.age_s)
"""

from cdc_agent.client.answers import (
    Answer,
    Document,
    DocumentChunk,
    Explanation,
    Freshness,
    Hit,
    SearchableCollection,
    SourceRow,
)
from cdc_agent.client.asynchronous import AsyncIndex
from cdc_agent.client.freshness import NOW, FreshAsOf
from cdc_agent.client.index import Index
from cdc_agent.client.protocol import ClientError, IndexUnavailable, NotFreshYet, RequestRefused

__all__ = [
    "NOW",
    "Answer",
    "AsyncIndex",
    "ClientError",
    "Document",
    "DocumentChunk",
    "Explanation",
    "FreshAsOf",
    "Freshness",
    "Hit",
    "Index",
    "IndexUnavailable",
    "NotFreshYet",
    "RequestRefused",
    "SearchableCollection",
    "SourceRow",
]
