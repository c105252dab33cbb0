"""Makes the stream that the configuration names, and gives up one that is no good any more."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cdc_agent.config import Config
from cdc_agent.errors import ConfigError
from cdc_agent.sqlite_file import put_aside
from cdc_agent.stream.base import Stream
from cdc_agent.stream.sqlite import SqliteStream

if TYPE_CHECKING:
    from cdc_agent.stream.nats_link import NatsPlace
    from cdc_agent.stream.nats_server import SyncFacts

__all__ = ["NatsFacts", "examined", "open_stream", "put_stream_aside"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsFacts:
    """``known``: somebody said how long what NATS took is held back."""

    version: str
    hold_s: float
    known: bool


def examined(config: Config) -> NatsFacts:
    """What NATS is like; changes nothing. Raises what ``open_stream`` would for a server that cannot be used."""
    _require_extra()
    from cdc_agent.stream.nats_link import NatsLink

    link = NatsLink(_place(config))
    try:
        link.check_jetstream()
        facts = _sync(config)
        return NatsFacts(version=link.version, hold_s=facts.hold_s, known=facts.known)
    finally:
        link.close()


def open_stream(config: Config) -> Stream:
    """Raises ``StreamUnavailable`` when its server does not answer, ``IdentityMismatch`` for what is damaged."""
    if config.stream.backend == "jetstream":
        return _jetstream(config)
    return SqliteStream(
        config.stream_path, max_bytes=config.stream.max_bytes, retention_s=config.stream.retention_h * 3600
    )


def put_stream_aside(config: Config) -> None:
    """The next ``open_stream`` begins one anew. A file is renamed; a stream on a server cannot be, and is removed."""
    if config.stream.backend == "jetstream":
        from cdc_agent.stream.jetstream import remove

        remove(_place(config), config.stream.name)
        log.warning("removed stream=%s", config.stream.name)
        return
    log.warning("put aside file=%s", put_aside(config.stream_path))


def _require_extra() -> None:
    if importlib.util.find_spec("nats") is None:
        raise ConfigError(
            "stream.backend jetstream needs the package nats-py", hint="pip install 'cdc-agent[jetstream]'"
        )


def _jetstream(config: Config) -> Stream:
    _require_extra()
    from cdc_agent.stream.jetstream import JetStream

    stream = config.stream
    return JetStream(
        _place(config),
        stream.name,
        replicas=stream.replicas,
        hold_s=_hold_s(config),
        max_bytes=stream.max_bytes,
        retention_s=stream.retention_h * 3600,
    )


def _place(config: Config) -> NatsPlace:
    from cdc_agent.stream.nats_link import NatsPlace

    stream = config.stream
    return NatsPlace(
        urls=stream.urls,
        timeout_s=stream.timeout_s,
        ca_file=stream.ca_file,
        user=stream.user,
        password=stream.password.get_secret_value() if stream.password else None,
        token=stream.token.get_secret_value() if stream.token else None,
        credentials_file=stream.credentials_file,
    )


def _sync(config: Config) -> SyncFacts:
    from cdc_agent.stream.nats_server import SyncFacts, sync_facts

    told = config.stream.hold_back_s
    return sync_facts(config.stream.monitor_url) if told is None else SyncFacts(hold_s=told, known=True)


def _hold_s(config: Config) -> float:
    facts = _sync(config)
    if not facts.known:
        log.warning(
            "NATS does not say when it writes to its disk, Postgres keeps WAL hold_back_s=%.0f (stream.monitor_url)",
            facts.hold_s,
        )
    return facts.hold_s
