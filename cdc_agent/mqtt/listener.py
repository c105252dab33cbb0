"""Listens to one broker: each message is durable in the journal before the broker hears that we have it.

The session is persistent: what is published while we are away waits at the broker, and what it has not heard an
acknowledgement of is delivered again. So nothing is lost, and what comes again is told from what is new by its id, or
else, where it is marked as a redelivery, by its likeness to one of the newest events.
"""

from __future__ import annotations

import datetime as dt
import logging
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from cdc_agent import metrics
from cdc_agent.errors import JournalFull
from cdc_agent.events import Event
from cdc_agent.failpoints import hit
from cdc_agent.health import Health
from cdc_agent.journal.base import Journal, Query
from cdc_agent.mqtt.messages import Message, Rule, event_of, likeness, rule_of
from cdc_agent.retry import Backoff

__all__ = ["Broker", "Listener"]

log = logging.getLogger(__name__)

#: Seconds for a connection, and for one look at the network: so long does a stop wait.
_CONNECT_S = 10.0
_LOOK_S = 0.5
#: Messages that are recorded in one transaction. A broker has some twenty in flight.
_AT_ONCE = 100
#: The newest events that a redelivered message without an id is compared with. Brokers have some twenty in flight.
_COMPARED = 500
#: A connection that lived so long ends the growing of pauses.
_STEADY_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """Where and as whom. ``tls``: with ``ca_file`` (None: the system's) and our own certificate, if there is one."""

    host: str
    port: int
    client_id: str
    keepalive_s: int
    username: str | None = None
    password: Callable[[], str | None] = field(default=lambda: None)
    tls: bool = False
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None


class Listener:
    """``run`` is the body of one thread. Troubles are told to ``health`` under ``mqtt`` and stop nobody else."""

    def __init__(
        self,
        *,
        name: str,
        broker: Broker,
        rules: Sequence[Rule],
        max_payload_bytes: int,
        journal: Journal,
        health: Health,
        backoff: Backoff,
        stop: threading.Event,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._broker = broker
        self._rules = rules
        self._max_payload_bytes = max_payload_bytes
        self._journal = journal
        self._health = health
        self._backoff = backoff
        self._stop = stop
        self._now = now
        self._clock = clock
        self._arrived: list[paho.MQTTMessage] = []
        self._refused = ""
        self._answered = False
        self._subscribed = False

    def run(self) -> None:
        """Connect, listen, and connect again with growing pauses; until stopped. Raises ``JournalError``."""
        attempt = 0
        while not self._stop.is_set():
            began = self._clock()
            trouble = self._listen()
            metrics.MQTT_CONNECTED.labels(source=self._name).set(0)
            if self._stop.is_set():
                return
            attempt = 1 if self._clock() - began > _STEADY_S else attempt + 1
            self._health.report("mqtt", trouble, f"see mqtt.{self._name}; it is tried again")
            log.warning("mqtt away name=%s attempt=%d why=%s", self._name, attempt, trouble)
            self._stop.wait(self._backoff.delay_s(attempt))

    # -- one connection ---------------------------------------------------------------------------------------

    def _listen(self) -> str:
        """Live through one connection; returns why it ended."""
        self._arrived, self._refused, self._answered = [], "", False
        try:
            client = self._client()
            client.connect(self._broker.host, self._broker.port, keepalive=self._broker.keepalive_s)
            while not self._stop.is_set():
                code = self._look(client)
                self._take(client)
                if self._refused or code != paho.MQTT_ERR_SUCCESS:
                    return self._refused or self._lost(code)
            client.disconnect()
        except JournalFull as exc:
            # Not acknowledged: the broker keeps it, and delivers it again.
            return exc.message
        except (OSError, ValueError) as exc:
            return f"the broker cannot be reached: {exc}"
        return ""

    def _lost(self, code: MQTTErrorCode) -> str:
        if self._answered:
            return f"the connection to the broker is lost: {paho.error_string(code)}"
        # All that a client hears of a refusal in TLS 1.3 is that the connection ends.
        wanting = self._broker.tls and self._broker.cert_file is None
        return "the broker hung up without a word" + (": it may want a certificate, see cert_file" if wanting else "")

    def _look(self, client: paho.Client) -> MQTTErrorCode:
        """Wait for something, then take in all that is there by now: one look of paho's is one packet."""
        code = client.loop(_LOOK_S)
        while code == paho.MQTT_ERR_SUCCESS and 0 < (before := len(self._arrived)) < _AT_ONCE:
            code = client.loop(0.0)
            if len(self._arrived) == before:
                break
        return code

    def _client(self) -> paho.Client:
        broker = self._broker
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=broker.client_id,
            clean_session=False,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        client.connect_timeout = _CONNECT_S
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = lambda _client, _data, message: self._arrived.append(message)
        if broker.username is not None:
            client.username_pw_set(broker.username, broker.password())
        if broker.tls:
            client.tls_set_context(_tls(broker))
        return client

    def _on_connect(self, client: paho.Client, _data: Any, flags: paho.ConnectFlags, code: Any, _more: Any) -> None:
        self._answered = True
        if code.is_failure:
            self._refused = f"the broker refuses us: {code}"
            return
        # Subscribing anew has every retained message told again, so a session that is there is left as it is.
        if not (flags.session_present and self._subscribed):
            client.subscribe([(rule.filter, 1) for rule in self._rules])
        self._connected()

    def _on_subscribe(self, _client: paho.Client, _data: Any, _mid: int, codes: Any, _more: Any) -> None:
        refused = [rule.filter for rule, code in zip(self._rules, codes, strict=False) if code.is_failure]
        self._subscribed = not refused
        if refused:
            self._refused = f"the broker refuses the subscription to {', '.join(refused)}"

    def _connected(self) -> None:
        metrics.MQTT_CONNECTED.labels(source=self._name).set(1)
        self._health.clear("mqtt")
        log.info("mqtt connected name=%s host=%s port=%d", self._name, self._broker.host, self._broker.port)

    # -- messages ---------------------------------------------------------------------------------------------

    def _take(self, client: paho.Client) -> None:
        """Record what has arrived, all in one transaction, and only then acknowledge it."""
        arrived, self._arrived = self._arrived, []
        if not arrived:
            return
        messages = [_message(one) for one in arrived]
        known = self._recorded() if any(m.again for m in messages) else frozenset()
        events = [e for m in messages if (e := self._event(m, known)) is not None]
        hit("before_append")
        new = self._journal.append(events) if events else 0
        hit("after_append")
        metrics.MQTT_MESSAGES.labels(source=self._name, outcome="accepted").inc(new)
        metrics.MQTT_MESSAGES.labels(source=self._name, outcome="duplicate").inc(len(events) - new)
        for one in arrived:
            client.ack(one.mid, one.qos)

    def _event(self, message: Message, known: frozenset[str]) -> Event | None:
        """None for what no rule wants, and for a redelivery of what is recorded where nothing but that says so."""
        rule = rule_of(message, self._rules)
        if rule is None:
            metrics.MQTT_MESSAGES.labels(source=self._name, outcome="unwanted").inc()
            return None
        event, readable = event_of(message, rule, source=self._name, now=self._now(), max_bytes=self._max_payload_bytes)
        if message.again and event.id.startswith(f"{likeness(message)}-") and likeness(message) in known:
            metrics.MQTT_MESSAGES.labels(source=self._name, outcome="duplicate").inc()
            return None
        if not readable:
            metrics.MQTT_UNREADABLE.labels(source=self._name).inc()
        return event

    def _recorded(self) -> frozenset[str]:
        """The likenesses of the newest events of this broker."""
        after = max(0, self._journal.head() - _COMPARED)
        entries = self._journal.find(Query(source=self._name, after=after, limit=_COMPARED))
        return frozenset(entry.event.id.partition("-")[0] for entry in entries)


def _tls(broker: Broker) -> ssl.SSLContext:
    """Raises ``OSError`` that names the file, which Python's own does not."""
    try:
        context = ssl.create_default_context(cafile=str(broker.ca_file) if broker.ca_file else None)
    except OSError as exc:
        raise OSError(f"ca_file {broker.ca_file} cannot be used: {exc}") from exc
    if broker.cert_file is not None:
        try:
            context.load_cert_chain(broker.cert_file, broker.key_file)
        except OSError as exc:
            raise OSError(f"cert_file {broker.cert_file} and its key cannot be used: {exc}") from exc
    return context


def _message(one: paho.MQTTMessage) -> Message:
    try:
        topic = one.topic
    except UnicodeDecodeError:
        # No broker may pass such a name on; if one does, its message is kept all the same.
        topic = ""
    return Message(
        topic=topic,
        payload=bytes(one.payload),
        number=one.mid if one.qos else 0,
        again=bool(one.dup),
        retained=bool(one.retain),
    )
