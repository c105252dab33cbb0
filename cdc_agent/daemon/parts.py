"""What a running daemon consists of. ``build`` makes it, ``run`` starts and stops it, ``service`` answers from it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from cdc_agent.agents.recent import Recent
from cdc_agent.capture import Capture
from cdc_agent.config import Config
from cdc_agent.daemon.agency import Agency
from cdc_agent.daemon.consumers import Consumers
from cdc_agent.daemon.feeds import Feeds
from cdc_agent.daemon.first_copies import FirstCopies
from cdc_agent.daemon.generations import Embedders
from cdc_agent.daemon.mail import Mail
from cdc_agent.daemon.migrations import Migrations
from cdc_agent.daemon.mqtt import Listeners
from cdc_agent.daemon.readers import Readers
from cdc_agent.daemon.sagas import Sagas
from cdc_agent.daemon.slot_watch import SlotWatch
from cdc_agent.documents.collection import CollectionSpec
from cdc_agent.health import Health
from cdc_agent.identity import SourceGuard
from cdc_agent.ledger.base import Ledger
from cdc_agent.migrate.serving import LiveSearch
from cdc_agent.resync import ResyncRunner
from cdc_agent.source.catalog import Catalog
from cdc_agent.source.replication import ReplicationFeed
from cdc_agent.source.rows import SqlRowReader
from cdc_agent.storekeeper import Reach, StoreWatch
from cdc_agent.stream.base import Stream
from cdc_agent.tables import TableGuard
from cdc_agent.tracing import Traces
from cdc_agent.vectorstore.base import VectorStore
from cdc_agent.vectorstore.chroma_server import ChromaServer
from cdc_agent.verify.runner import VerifyRunner

__all__ = ["Daemon"]


@dataclass(slots=True, kw_only=True)
class Daemon:
    """Everything that runs, wired and not yet started."""

    config: Config
    stop: threading.Event
    health: Health
    catalog: Catalog
    feed: ReplicationFeed
    stream: Stream
    ledger: Ledger
    embedders: Embedders
    store: VectorStore
    chroma: ChromaServer | None
    capture: Capture
    guard: SourceGuard
    shapes: TableGuard
    slot_watch: SlotWatch
    store_watch: StoreWatch
    reach: Reach
    indexer: Consumers
    recent: Recent
    traces: Traces
    resync: ResyncRunner
    row_reader: Readers
    rereader: SqlRowReader
    #: The oid of each configured table, by its name.
    roots: Mapping[str, int]
    searcher: LiveSearch
    verify: VerifyRunner
    migrations: Migrations
    copies: FirstCopies
    mail: Mail | None
    agency: Agency | None
    feeds: Feeds
    listeners: Listeners
    sagas: Sagas | None

    @property
    def specs(self) -> list[CollectionSpec]:
        """What answers searches now, each under the name that ledger and store know it by."""
        return [s.collection.spec for s in self.indexer.served if s.generation.state == "live"]
