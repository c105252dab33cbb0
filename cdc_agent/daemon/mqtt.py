"""Wires what comes in by MQTT: a listener for each broker, each with a thread and troubles of its own."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cdc_agent.config import Config, MqttConfig
from cdc_agent.daemon.threads import Threads
from cdc_agent.errors import ConfigError
from cdc_agent.health import Health, Problem
from cdc_agent.journal.base import Journal
from cdc_agent.mqtt.messages import Rule, Template, check_filter
from cdc_agent.retry import Backoff

if TYPE_CHECKING:
    from cdc_agent.mqtt.listener import Broker, Listener

__all__ = ["Listeners", "open_listeners"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listeners:
    """By name, with what each of them tells of its troubles."""

    listeners: Sequence[tuple[str, Listener, Health]] = ()

    def start(self, threads: Threads) -> None:
        for name, listener, _ in self.listeners:
            threads.start(f"mqtt {name}", listener.run)

    def problems(self) -> list[Problem]:
        """A broker that is away stops nothing else."""
        return [
            replace(problem, name=f"mqtt_{name}", serious=False)
            for name, _, health in self.listeners
            for problem in health.problems()
        ]


def open_listeners(config: Config, journal: Journal | None, stop: threading.Event) -> Listeners:
    """Raises ``ConfigError`` when the extra is not installed, or a filter or template cannot be understood."""
    if not config.mqtt:
        return Listeners()
    assert journal is not None
    if importlib.util.find_spec("paho") is None:
        raise ConfigError("mqtt needs the package paho-mqtt", hint="pip install 'cdc-agent[mqtt]'")
    return Listeners(listeners=[_opened(config, name, one, journal, stop) for name, one in config.mqtt.items()])


def _opened(
    config: Config, name: str, mqtt: MqttConfig, journal: Journal, stop: threading.Event
) -> tuple[str, Listener, Health]:
    # A second of loading that nobody else needs.
    from cdc_agent.mqtt.listener import Listener

    health = Health()
    listener = Listener(
        name=name,
        broker=_broker(name, mqtt),
        rules=rules_of(name, mqtt),
        max_payload_bytes=mqtt.max_payload_bytes,
        journal=journal,
        health=health,
        backoff=Backoff(initial_s=config.retry.initial_s, maximum_s=config.retry.maximum_s),
        stop=stop,
    )
    return name, listener, health


def rules_of(name: str, mqtt: MqttConfig) -> list[Rule]:
    rules = []
    for place, topic in enumerate(mqtt.topics):
        try:
            check_filter(topic.filter)
            rule = Rule(
                filter=topic.filter,
                type=topic.type,
                key=Template(topic.key),
                id=Template(topic.id) if topic.id else None,
            )
        except ConfigError as exc:
            raise ConfigError(f"mqtt.{name}.topics[{place}]: {exc.message}", hint=exc.hint) from exc
        rules.append(rule)
    return rules


def _broker(name: str, mqtt: MqttConfig) -> Broker:
    from cdc_agent.mqtt.listener import Broker

    return Broker(
        host=mqtt.host,
        port=mqtt.port,
        client_id=mqtt.client_id or f"cdc-agent-{name}",
        keepalive_s=mqtt.keepalive_s,
        username=mqtt.username,
        password=lambda: _password(mqtt),
        tls=mqtt.tls,
        ca_file=mqtt.ca_file,
        cert_file=mqtt.cert_file,
        key_file=mqtt.key_file,
    )


def _password(mqtt: MqttConfig) -> str | None:
    """Read at each connection, so that it may change."""
    return _secret_in(mqtt.password_file) if mqtt.password_file is not None else None


def _secret_in(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip()
