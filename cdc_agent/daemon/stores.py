"""Opens the configured vector store, and puts its guard and its watch beside it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from cdc_agent import metrics
from cdc_agent.config import Config
from cdc_agent.daemon.consumers import Consumers, Served
from cdc_agent.daemon.state_files import StateFiles
from cdc_agent.errors import IdentityMismatch, SourceError, StoreUnavailable, VectorStoreError
from cdc_agent.health import Health
from cdc_agent.ledger.base import Resync
from cdc_agent.source import slot
from cdc_agent.sqlite_file import file_is_damaged, put_aside
from cdc_agent.storekeeper import Kept, StoreGuard, StoreWatch, store_damaged
from cdc_agent.vectorstore.base import VectorStore
from cdc_agent.vectorstore.chroma_server import ChromaServer

__all__ = ["build_store", "opened", "store_guard", "store_watch"]

log = logging.getLogger(__name__)


def build_store(config: Config) -> tuple[VectorStore, ChromaServer | None]:
    """The configured store; with mode managed its server is running when this returns."""
    settings = config.vectorstore
    if settings.backend == "memory":
        from cdc_agent.vectorstore.memory import MemoryStore

        return MemoryStore(), None
    from cdc_agent.vectorstore.chroma import ChromaStore

    mend = config.source.on_mismatch == "resync"
    if settings.mode == "embedded":
        if file_is_damaged(config.vectorstore_path / "chroma.sqlite3"):
            _put_store_aside(config.vectorstore_path, mend=mend)
        return ChromaStore.embedded(config.vectorstore_path), None
    if settings.mode == "server":
        store = ChromaStore.http(settings.host, settings.port, timeout_s=settings.timeout_s)
        store.ping()
        return store, None
    server = ChromaServer(config.vectorstore_path, host=settings.host, port=settings.port)
    try:
        server.start()
    except VectorStoreError:
        if not server.damaged():
            raise
        _put_store_aside(server.path, mend=mend)
        server.start()
    return ChromaStore.http(settings.host, server.port, timeout_s=settings.timeout_s, locks=server.locks), server


def _put_store_aside(folder: Path, *, mend: bool) -> None:
    damaged = store_damaged(folder)
    if not mend:
        metrics.MISMATCH.labels(state=damaged.state).set(1)
        raise damaged
    log.warning("mending state=%s why=%s", damaged.state, damaged.message)
    log.warning("store put aside folder=%s", put_aside(folder))


def store_guard(
    config: Config,
    store: VectorStore,
    chroma: ChromaServer | None,
    files: StateFiles,
    streaming: Callable[[], bool],
) -> StoreGuard:
    def begin_afresh() -> bool:
        if chroma is None or not chroma.damaged():
            return False
        chroma.renew()
        return True

    source = config.source
    # A slot that a new ledger finds is what is left of an older life.
    is_new = files.ledger.identity() is None
    left = is_new and slot.describe(source.dsn.get_secret_value(), source.slot_name) is not None

    def ensure_alone() -> None:
        try:
            found = slot.describe(source.dsn.get_secret_value(), source.slot_name)
        except SourceError as exc:
            raise StoreUnavailable(f"whose collection it is cannot be told: {exc.message}") from exc
        if found is not None and found.active_pid is not None and not streaming():
            raise StoreUnavailable(
                f"another daemon (server process {found.active_pid}) streams from slot {source.slot_name}",
                hint="its collections are not taken; this one goes on once it has ended",
            )

    return StoreGuard(
        store=store,
        ledger=files.ledger,
        mend=source.on_mismatch == "resync",
        new_life=files.new_life or left,
        predecessor=files.predecessor,
        begin_afresh=begin_afresh,
        ensure_alone=ensure_alone,
    )


def store_watch(
    config: Config,
    keeper: StoreGuard,
    indexer: Consumers,
    chroma: ChromaServer | None,
    files: StateFiles,
    health: Health,
    stop: threading.Event,
) -> StoreWatch:
    mend = config.source.on_mismatch == "resync"

    def damaged() -> IdentityMismatch | None:
        if chroma is not None and chroma.dies_young and chroma.damaged():
            if not mend:
                return store_damaged(chroma.path)
            chroma.renew()
        return files.damage

    return StoreWatch(
        guard=keeper,
        names=lambda: [one.physical for one in indexer.working],
        rebuild=indexer.rebuild,
        damaged=damaged,
        health=health,
        mend=mend,
        stop=stop,
    )


def opened(keeper: StoreGuard, served: Served) -> list[Resync]:
    """Open one generation in the store; returns its first copy if that is to be made now."""
    name, table = served.physical, served.collection.table
    is_new = keeper.open(
        Kept(
            name=name,
            table=table,
            fingerprint=served.generation.fingerprint,
            model=served.embedder.model,
            dimensions=served.embedder.dimensions,
        )
    )
    # What is built beside another one is copied later (see ``migrations``).
    live = served.generation.state == "live"
    return [Resync(table=table, collections=(name,), reason="first copy")] if is_new and live else []
