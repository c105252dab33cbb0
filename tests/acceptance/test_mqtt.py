"""Messages of a real broker through the real daemon: each is on disk before the broker hears so, whatever is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import Authority
from tests.support.daemon import DaemonProcess
from tests.support.mosquitto import Mosquitto
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database
from tests.support.wait import until

NewDaemon = Callable[..., DaemonProcess]
NOTES = {"name": "notes", "table": "public.notes", "text": "{body}"}
NAMED = {"filter": "factory/+/disk", "type": "disk.usage", "key": "{topic[1]}", "id": "{payload.id}"}
UNNAMED = {"filter": "factory/+/door", "type": "door"}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path / "broker") as broker:
        yield broker


@pytest.fixture
def daemon(pg: Database, new_daemon: NewDaemon, broker: Mosquitto) -> DaemonProcess:
    pg.execute("create table notes (id int primary key, body text)")
    pg.execute("insert into notes values (1, 'one')")
    return new_daemon(pg, collections=[NOTES], mqtt={"factory": settings(broker)})


def settings(broker: Mosquitto, **more: Any) -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": broker.port, "topics": [NAMED, UNNAMED], **more}


def facts(daemon: DaemonProcess, *options: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "cdc_agent.cli", "facts", "-c", str(daemon.path), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ})
    return [json.loads(line) for line in done.stdout.splitlines()]


def accepted(daemon: DaemonProcess) -> float:
    return daemon.metric("cdc_agent_mqtt_messages_total", source="factory", outcome="accepted")


def connected(daemon: DaemonProcess) -> bool:
    return daemon.metric("cdc_agent_mqtt_connected", source="factory") == 1


def disk(number: int) -> tuple[str, bytes]:
    return "factory/7/disk", json.dumps({"id": f"m-{number}", "used": number}).encode()


def test_messages_become_events_and_what_is_no_json_does_too(
    pg: Database, daemon: DaemonProcess, broker: Mosquitto
) -> None:
    daemon.start()
    until(lambda: connected(daemon), 20, "the broker to be connected")

    # When a broker delivers a message twice, some that are no JSON, and one that nobody asked for
    broker.publish(
        [disk(1), disk(1), disk(2), ("factory/3/door", "open"), ("factory/3/door", b"\xff"), ("office/1", "x")]
    )
    broker.publish([("factory/3/door", "open")])
    until(lambda: accepted(daemon) == 5, 20, "the messages")

    # Then they are told, once each, in order
    told = [(fact["type"], fact.get("subject"), fact["data"]) for fact in facts(daemon, "--source", "factory")]
    assert told == [
        ("disk.usage", "7", {"topic": "factory/7/disk", "payload": {"id": "m-1", "used": 1}}),
        ("disk.usage", "7", {"topic": "factory/7/disk", "payload": {"id": "m-2", "used": 2}}),
        ("door", "factory/3/door", {"topic": "factory/3/door", "text": "open"}),
        ("door", "factory/3/door", {"topic": "factory/3/door", "base64": "/w=="}),
        ("door", "factory/3/door", {"topic": "factory/3/door", "text": "open"}),
    ]
    assert daemon.metric("cdc_agent_mqtt_messages_total", source="factory", outcome="duplicate") == 1
    assert daemon.metric("cdc_agent_mqtt_unreadable_total") == 3
    assert_index_equals_table(daemon, pg)


@pytest.mark.fault("mqtt-killed")
@pytest.mark.parametrize("place", ["before_append", "after_append"])
def test_a_daemon_that_is_killed_between_receiving_and_acknowledging_loses_and_doubles_nothing(
    daemon: DaemonProcess, broker: Mosquitto, place: str
) -> None:
    # Given a session at the broker, and a daemon that will die with messages in its hands
    daemon.start()
    until(lambda: connected(daemon), 20, "the broker to be connected")
    daemon.kill()
    # The first in its hands is one that nothing names.
    broker.publish([("factory/3/door", f"{n} open") for n in range(10)] + [disk(number) for number in range(10)])
    daemon.start(failpoint=f"{place}:kill@1", ready=False)
    assert daemon.wait_exit() == -9

    # When it is back
    daemon.start()
    broker.publish([disk(10)])

    # Then each is there once, also those that nothing names but the broker's word that they may come again
    until(lambda: len(facts(daemon, "--type", "disk.usage")) == 11, 30, "every message")
    doors = [fact["data"]["text"] for fact in facts(daemon, "--type", "door")]
    assert sorted(doors) == sorted(f"{n} open" for n in range(10))
    assert [fact["data"]["payload"]["used"] for fact in facts(daemon, "--type", "disk.usage")] == list(range(11))


@pytest.mark.fault("mqtt-away")
def test_a_broker_that_goes_away_is_named_and_stops_nothing(
    pg: Database, daemon: DaemonProcess, broker: Mosquitto
) -> None:
    daemon.start()
    until(lambda: connected(daemon), 20, "the broker to be connected")

    # When the broker is gone
    broker.stop()
    until(lambda: [p["name"] for p in daemon.problems() or []] == ["mqtt_factory"], 20, "it to be named")

    # Then the daemon is ready and indexes, and hears what is published when the broker is back
    assert daemon.get("/readyz").status_code == 200
    pg.execute("insert into notes values (2, 'two')")
    assert_index_equals_table(daemon, pg)
    broker.start()
    broker.publish([disk(5)])
    until(lambda: accepted(daemon) == 1, 30, "the message")
    until(lambda: daemon.problems() == [], 10, "the problem to be over")
    assert daemon.terminate() == 0


def test_what_is_published_while_nobody_listens_waits_and_what_is_retained_is_told_once(
    daemon: DaemonProcess, broker: Mosquitto
) -> None:
    broker.publish([("factory/1/door", "ajar")], retain=True)
    daemon.start()
    until(lambda: accepted(daemon) == 1, 20, "what was retained")
    assert daemon.terminate() == 0

    broker.publish([disk(number) for number in range(200)])
    daemon.start()

    until(lambda: accepted(daemon) == 200, 30, "what waited")
    assert [fact["data"]["payload"]["used"] for fact in facts(daemon, "--type", "disk.usage")] == list(range(200))
    assert len(facts(daemon, "--type", "door")) == 1


def test_a_password_is_needed_and_read_when_it_is_mended(pg: Database, new_daemon: NewDaemon, tmp_path: Path) -> None:
    pg.execute("create table notes (id int primary key, body text)")
    with Mosquitto(tmp_path / "locked", users={"cdc": "right"}) as broker:
        daemon = new_daemon(
            pg, collections=[NOTES], mqtt={"factory": settings(broker, username="cdc", password_file="./password")}
        )
        # Without the file, and with the wrong word in it, the trouble is named
        daemon.start(ready=False)
        until(lambda: "password" in str(daemon.problems()), 30, "the missing file to be named")
        (daemon.folder / "password").write_text("wrong\n")
        until(lambda: "refuses us" in str(daemon.problems()), 20, "the refusal to be named")
        (daemon.folder / "password").write_text("right\n")
        until(lambda: connected(daemon), 20, "the broker to be connected")

        broker.publish([disk(1)])
        until(lambda: accepted(daemon) == 1, 20, "the message")
        assert "right" not in daemon.log
        daemon.terminate()


@pytest.mark.fault("mqtt-false-broker")
def test_a_broker_that_cannot_prove_who_it_is_hears_nothing_of_us(
    pg: Database, new_daemon: NewDaemon, tmp_path: Path
) -> None:
    pg.execute("create table notes (id int primary key, body text)")
    theirs, other = Authority.create(tmp_path, "theirs"), Authority.create(tmp_path, "other")
    trusted = tmp_path / "trusted.crt"
    with Mosquitto(tmp_path / "closed", authority=theirs) as broker:
        own = {"cert_file": str(broker.cert_file), "key_file": str(broker.key_file)}
        tls = {"host": broker.host, "tls": True, "ca_file": str(trusted), **own}
        daemon = new_daemon(pg, collections=[NOTES], mqtt={"factory": settings(broker, **tls)})

        # Without the authority's file, with that of another one, and under a name that is not in the certificate,
        # the trouble is named
        daemon.start(ready=False)
        until(lambda: "trusted.crt" in str(daemon.problems()), 30, "the missing file to be named")
        trusted.write_bytes(other.certificate.read_bytes())
        until(lambda: "self-signed certificate in certificate chain" in trouble(daemon), 20, "the stranger to be named")
        trusted.write_bytes(theirs.certificate.read_bytes())
        until(lambda: connected(daemon), 20, "the broker to be connected")
        broker.publish([disk(1)])
        until(lambda: accepted(daemon) == 1, 20, "the message")
        assert daemon.terminate() == 0
        daemon.configure(mqtt={"factory": settings(broker, **tls) | {"host": "127.0.0.1"}})
        daemon.start(ready=False)
        until(lambda: "IP address mismatch" in trouble(daemon), 20, "the wrong name to be named")

        # And without a certificate of our own the broker refuses us, which is named, too
        daemon.terminate()
        plain = {name: value for name, value in tls.items() if name not in own}
        daemon.settings["mqtt"] = {"factory": settings(broker, **plain)}
        daemon.configure()
        daemon.start(ready=False)
        until(lambda: "it may want a certificate, see cert_file" in trouble(daemon), 20, "the refusal to be named")


def trouble(daemon: DaemonProcess) -> str:
    return " ".join(str(one) for one in daemon.problems() or [] if one["name"] == "mqtt_factory")
