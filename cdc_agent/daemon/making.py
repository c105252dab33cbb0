"""Makes what a generation runs on: its searcher, what an audit knows of it, and the indexer of its agent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

from cdc_agent.agents.indexer import Indexer
from cdc_agent.agents.recent import Recent
from cdc_agent.agents.vectors import Vectorizer
from cdc_agent.agents.writing import IndexWriter
from cdc_agent.config import Config
from cdc_agent.daemon.consumers import MakeIndexer, Served
from cdc_agent.daemon.feeds import ROOT_OID, Feeds
from cdc_agent.daemon.generations import Embedders, Planned
from cdc_agent.daemon.models import collection_of
from cdc_agent.health import Health
from cdc_agent.ledger.base import Ledger
from cdc_agent.marker import marker_of
from cdc_agent.migrate.serving import Target
from cdc_agent.retry import Backoff, Retrier
from cdc_agent.search import Searcher
from cdc_agent.source.rows import SqlRowReader
from cdc_agent.storekeeper import StoreGuard
from cdc_agent.stream.base import Stream
from cdc_agent.tracing import Traces
from cdc_agent.vectorstore.base import VectorStore
from cdc_agent.vectorstore.watched import WatchedStore
from cdc_agent.vectorstore.wear import Wear
from cdc_agent.verify.ends import Audited

__all__ = ["audited", "indexers", "retrier", "serving"]


def serving(store: VectorStore, ledger: Ledger, embedders: Embedders) -> Callable[[Planned], Served]:
    def serve(plan: Planned) -> Served:
        embedder = embedders.of(plan.embedding)
        name = plan.generation.physical
        searcher = Searcher(store, ledger, {name: embedder}, columns={name: plan.spec.metadata})
        return Served(
            generation=plan.generation,
            collection=collection_of(plan.spec, embedder),
            embedding=plan.embedding,
            embedder=embedder,
            target=Target(physical=name, searcher=searcher),
        )

    return serve


def audited(served: Served, ledger: Ledger) -> Audited:
    model, dimensions = served.embedder.model, served.embedder.dimensions
    fingerprint = served.generation.fingerprint
    return Audited(
        name=served.physical,
        configured=served.generation.collection,
        collection=served.collection,
        embedder=served.embedder,
        fingerprint=f"{model}/{dimensions}",
        marker=marker_of(ledger, model=model, dimensions=dimensions, fingerprint=fingerprint),
    )


def retrier(config: Config, stop: threading.Event, health: Health) -> Retrier:
    return Retrier(stop, health, Backoff(initial_s=config.retry.initial_s, maximum_s=config.retry.maximum_s))


def indexers(
    config: Config,
    stream: Stream,
    ledger: Ledger,
    store: VectorStore,
    feeds: Feeds,
    reader: SqlRowReader,
    roots: Mapping[str, int],
    keeper: StoreGuard,
    recent: Recent,
    traces: Traces,
    wear: Wear,
) -> MakeIndexer:
    def make(agent: str, served: Sequence[Served], stop: threading.Event, health: Health) -> Indexer:
        # All generations of one agent are of one model (see ``generations``).
        embedder = served[0].embedder
        fingerprint = f"{embedder.model}/{embedder.dimensions}"
        collections = {one.physical: one.collection for one in served}
        feeding = feeds.of(served[0].collection.table)
        planner_retrier = retrier(config, stop, health)
        return Indexer(
            stream=feeding.stream if feeding is not None else stream,
            ledger=ledger,
            writer=IndexWriter(
                agent=agent,
                ledger=ledger,
                store=WatchedStore(store, wear=wear),
                collections=collections,
                fingerprint=fingerprint,
            ),
            vectorizer=Vectorizer(
                agent=agent,
                embedder=embedder,
                ledger=ledger,
                store=store,
                fingerprint=fingerprint,
                retrier=planner_retrier,
                max_attempts=config.retry.max_attempts,
            ),
            row_reader=feeding.reader if feeding is not None else reader,
            collections=collections,
            root_oids={
                name: ROOT_OID if feeding is not None else roots[collection.table]
                for name, collection in collections.items()
            },
            planner_retrier=planner_retrier,
            writer_retrier=retrier(config, stop, health),
            stop=stop,
            mender=keeper,
            recent=recent,
            traces=traces,
            agent=agent,
        )

    return make
