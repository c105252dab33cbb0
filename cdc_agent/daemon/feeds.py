"""Wires the feeds: for each its mirror and its stream, who follows it, and who reads it again.

What is kept of a feed can all be asked for again. So nothing of it is ever a mismatch that a person has to look at: a
file that is damaged, lost or older than the index is begun anew, and the feed is read again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cdc_agent.config import CollectionConfig, Config, FeedConfig
from cdc_agent.daemon.state_files import FEED_CORRUPT
from cdc_agent.daemon.threads import Threads
from cdc_agent.errors import IdentityMismatch, StreamError
from cdc_agent.events import Column, Relation
from cdc_agent.feeds.api import Api
from cdc_agent.feeds.base import Examined, Feed
from cdc_agent.feeds.bell import Bell
from cdc_agent.feeds.columns import COLUMNS
from cdc_agent.feeds.follower import Follower
from cdc_agent.feeds.mirror import Mirror
from cdc_agent.feeds.reader import FeedReader
from cdc_agent.health import Health, Problem
from cdc_agent.journal.base import Journal
from cdc_agent.ledger.base import Ledger, Resync
from cdc_agent.lsn import Lsn
from cdc_agent.resync import PageBoard, ResyncRunner
from cdc_agent.retry import Backoff, Retrier
from cdc_agent.source.base import RowSet
from cdc_agent.sqlite_file import put_aside
from cdc_agent.stream.sqlite import SqliteStream
from cdc_agent.values import TEXT_OIDS

__all__ = ["ROOT_OID", "Feeding", "Feeds", "examined", "mirrored", "open_feeds", "read_again"]

log = logging.getLogger(__name__)

#: A feed has no oid. One that no table of a database can have stands for it; each feed has readers of its own.
ROOT_OID = 1
_TEXT_OID = min(TEXT_OIDS, key=lambda oid: oid != 25)
#: Seconds after which a look that a doorbell led to is repeated.
_AGAIN_S = 10.0
#: The longest pause between two attempts at a feed that does not say how long it wants.
_MOST_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Feeding:
    """One feed as it runs. ``table`` is the name that stands for one."""

    name: str
    table: str
    webhook: str
    mirror: Mirror
    stream: SqliteStream
    follower: Follower
    reader: FeedReader
    resync: ResyncRunner
    bell: Bell
    health: Health
    lost: str = ""

    def close(self) -> None:
        self.follower.feed.close()
        self.mirror.close()
        self.stream.close()


@dataclass(slots=True, kw_only=True)
class Feeds:
    feeds: Sequence[Feeding] = ()
    _by_table: dict[str, Feeding] = field(init=False)

    def __post_init__(self) -> None:
        self._by_table = {feeding.table: feeding for feeding in self.feeds}

    @property
    def streams(self) -> Mapping[str, SqliteStream]:
        return {feeding.table: feeding.stream for feeding in self.feeds}

    def of(self, table: str) -> Feeding | None:
        return self._by_table.get(table)

    def is_table(self, resync: Resync) -> bool:
        """Whether a resync reads a table of the database."""
        return resync.table not in self._by_table

    def start(self, threads: Threads) -> None:
        for feeding in self.feeds:
            threads.start(f"feed {feeding.name}", feeding.bell.run)
            threads.start(f"resync {feeding.name}", feeding.resync.run)

    def ring(self, webhook: str) -> None:
        """A delivery of this sender is in the journal."""
        for feeding in self.feeds:
            if feeding.webhook == webhook:
                feeding.bell.ring()

    def wake(self) -> None:
        """The process is to stop."""
        for feeding in self.feeds:
            feeding.bell.ring()
            feeding.resync.notify()
            feeding.stream.wake()

    def problems(self) -> list[Problem]:
        """One for each feed that has trouble. Searches go on, so none of them takes the daemon out of service."""
        found = []
        for feeding in self.feeds:
            if problems := feeding.health.problems():
                found.append(replace(problems[0], name=f"feed_{feeding.name}", serious=False))
        return found

    def close(self) -> None:
        for feeding in self.feeds:
            feeding.close()


def open_feeds(config: Config, ledger: Ledger, journal: Journal | None, stop: threading.Event) -> Feeds:
    """Raises ``CdcAgentError`` when a file can neither be opened nor begun anew."""
    return Feeds(feeds=[_open(config, c, ledger, journal, stop) for c in config.collections if c.feed is not None])


def read_again(feeds: Feeds, ledger: Ledger, kept: Mapping[str, Sequence[str]]) -> None:
    """Ask for what was lost; ``kept`` are the generations made of each feed, by the name that stands for its table."""
    for feeding in feeds.feeds:
        waiting = [r for r in ledger.resyncs(running_only=True) if r.table == feeding.table and r.snapshot is None]
        for name in kept.get(feeding.table, ()) if feeding.lost else ():
            if not any(name in resync.collections and not resync.keys for resync in waiting):
                wanted = Resync(table=feeding.table, collections=(name,), reason=feeding.lost)
                ledger.start_resync(replace(wanted, started_at=time.time()))


def examined(config: Config) -> list[tuple[str, Examined]]:
    """For ``cdc-agent check``: what each feed answers, by collection."""
    found = []
    for collection in config.collections:
        if collection.feed is not None:
            feed = _feed(collection.feed)
            try:
                found += [(collection.name, one) for one in feed.examine()]
            finally:
                feed.close()
    return found


def mirrored(config: Config, collection: CollectionConfig, limit: int) -> tuple[int, RowSet]:
    """How many documents of a feed were seen, and some of them."""
    mirror = Mirror(config.feed_path(collection.name) / "mirror.sqlite")
    try:
        rows = mirror.page(None, limit)
        return mirror.count(), RowSet(snapshot="1:1:", relations=[_relation(collection)] * len(rows), rows=rows)
    finally:
        mirror.close()


def _open(
    config: Config, collection: CollectionConfig, ledger: Ledger, journal: Journal | None, stop: threading.Event
) -> Feeding:
    assert collection.feed is not None
    folder = config.feed_path(collection.name)
    mirror, lost_mirror = _mirror(folder / "mirror.sqlite")
    stream, lost_stream = _stream(config, folder / "stream.sqlite", ledger, _agents(ledger, collection.name))
    health = Health()
    retrier = Retrier(stop, health, Backoff(initial_s=config.retry.initial_s, maximum_s=_MOST_S))
    board = PageBoard()
    follower = Follower(
        name=collection.name,
        feed=_feed(collection.feed),
        mirror=mirror,
        stream=stream,
        relation=_relation(collection),
        expand=board.expand,
        stop=stop,
    )
    reader = FeedReader(follower)
    table = ".".join(collection.table_name)
    return Feeding(
        name=collection.name,
        table=table,
        webhook=collection.feed.webhook or "",
        mirror=mirror,
        stream=stream,
        follower=follower,
        reader=reader,
        resync=ResyncRunner(
            ledger=ledger,
            reader=reader,
            board=board,
            estimated_rows=reader.estimated_rows,
            retrier=retrier,
            stop=stop,
            caught_up=lambda: _applied(ledger, collection.name, stream),
            own=lambda resync: resync.table == table,
        ),
        bell=Bell(
            follower=follower,
            mirror=mirror,
            journal=journal,
            webhook=collection.feed.webhook or "",
            every_s=collection.feed.list_every_s,
            again_s=_AGAIN_S,
            retrier=retrier,
            health=health,
            stop=stop,
        ),
        health=health,
        lost=lost_stream or lost_mirror,
    )


def _feed(config: FeedConfig) -> Feed:
    return _github(config) if config.kind == "github" else _notion(config)


def _notion(config: FeedConfig) -> Feed:
    from cdc_agent.feeds.notion import HEADERS, PER_S, NotionFeed

    url = config.api_url or "https://api.notion.com"
    return NotionFeed(
        Api(url, name="Notion", token_file=config.token_file, headers=HEADERS, per_s=PER_S),
        max_document_bytes=config.max_file_bytes,
        max_documents=config.max_documents,
    )


def _github(config: FeedConfig) -> Feed:
    from cdc_agent.feeds.github import HEADERS, GithubFeed, web_url_of

    url = config.api_url or "https://api.github.com"
    assert config.repository is not None
    return GithubFeed(
        Api(url, name="GitHub", token_file=config.token_file, headers=HEADERS),
        repository=config.repository,
        branch=config.branch,
        paths=config.paths,
        web_url=web_url_of(url),
        max_file_bytes=config.max_file_bytes,
        max_documents=config.max_documents,
    )


def _relation(collection: CollectionConfig) -> Relation:
    assert collection.feed is not None
    schema, name = collection.table_name
    names = COLUMNS[collection.feed.kind]
    columns = tuple(Column(name=column, type_oid=_TEXT_OID) for column in names)
    return Relation(oid=ROOT_OID, root_oid=ROOT_OID, schema=schema, name=name, columns=columns, key=names[:1])


def _agents(ledger: Ledger, collection: str) -> set[str]:
    return {g.agent for g in ledger.generations() if g.collection == collection and g.state != "dropped"}


def _applied(ledger: Ledger, collection: str, stream: SqliteStream) -> Callable[[], bool]:
    head = stream.head_offset()
    return lambda: all(ledger.checkpoint(agent).offset >= head for agent in _agents(ledger, collection))


def _mirror(path: Path) -> tuple[Mirror, str]:
    """The mirror, and what it had to be begun anew for. One that was never there tells nothing of what is gone."""
    begun = path.exists()
    try:
        return Mirror(path), "" if begun else "MIRROR_LOST"
    except StreamError as exc:
        log.warning("feed mirror begun anew why=%s aside=%s", exc.message, put_aside(path))
        return Mirror(path), "MIRROR_LOST"


def _stream(config: Config, path: Path, ledger: Ledger, agents: set[str]) -> tuple[SqliteStream, str]:
    """The stream of a feed: whole, ours, and not behind who reads it, or else begun anew where they are."""
    places = [ledger.checkpoint(agent) for agent in sorted(agents)]
    head = max((place.offset for place in places), default=0)
    try:
        stream = _opened(config, path)
        if _belongs(stream, ledger, [place.offset for place in places]):
            _settle(stream, ledger, agents)
            return stream, ""
        stream.close()
        why = "it is not the stream that the index was made from"
    except (IdentityMismatch, StreamError) as exc:
        why = exc.message
    log.warning("feed stream begun anew why=%s aside=%s", why, put_aside(path))
    stream = _opened(config, path)
    if head:
        stream.begin_at(head)
    stream.append([], captured_lsn=max((place.applied_lsn for place in places), default=Lsn(0)))
    _settle(stream, ledger, agents)
    return stream, "FEED_STREAM_LOST" if places else ""


def _opened(config: Config, path: Path) -> SqliteStream:
    return SqliteStream(
        path, max_bytes=config.stream.max_bytes, retention_s=config.stream.retention_h * 3600, corrupt=FEED_CORRUPT
    )


def _belongs(stream: SqliteStream, ledger: Ledger, offsets: Sequence[int]) -> bool:
    if not stream.ledger() and not stream.head_offset():
        # It was made just now: right for an index that never read one.
        return not any(offsets)
    if stream.ledger() != ledger.uuid or stream.head_offset() < max(offsets, default=0):
        return False
    stream.check(min(offsets, default=stream.head_offset()))
    return True


def _settle(stream: SqliteStream, ledger: Ledger, agents: set[str]) -> None:
    """It is this ledger's, and nobody waits for agents that the ledger does not know."""
    stream.tie(ledger.uuid)
    for agent in set(stream.consumers()) - agents:
        stream.forget(agent)
