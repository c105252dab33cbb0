"""Webhooks into the real daemon: what was answered with success is kept, once, whatever happens to the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.support import senders
from tests.support.daemon import DaemonProcess
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database

NewDaemon = Callable[..., DaemonProcess]
NOTES = {"name": "notes", "table": "public.notes", "text": "{body}"}
TOKEN = "secret_tMrlL1qK5vuQAh1b6cZGhFChZTSYJlce98V0pYn7yBl"
WEBHOOKS = {
    "github": {"kind": "github", "secret": "it is a secret"},
    "shop": {"kind": "standard", "secret": senders.STANDARD_SECRET},
    "payments": {"kind": "stripe", "secret": "whsec_stripe"},
    "pages": {"kind": "notion", "secret_file": "./notion-secret"},
    "mysql": {"kind": "debezium", "secret": senders.STANDARD_SECRET},
}


@pytest.fixture
def daemon(pg: Database, new_daemon: NewDaemon) -> DaemonProcess:
    pg.execute("create table notes (id int primary key, body text)")
    pg.execute("insert into notes values (1, 'one')")
    daemon = new_daemon(pg, collections=[NOTES], webhooks=WEBHOOKS)
    daemon.start()
    return daemon


def deliver(daemon: DaemonProcess, source: str, signed: tuple[dict[str, str], bytes]) -> httpx.Response:
    headers, body = signed
    # As through a proxy: by the name that the world knows us by.
    return httpx.post(f"{daemon.url}/webhooks/{source}", headers={**headers, "Host": "hooks.example"}, content=body)


def facts(daemon: DaemonProcess, *options: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "cdc_agent.cli", "facts", "-c", str(daemon.path), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ})
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_sender_is_heard_and_its_events_are_kept(pg: Database, daemon: DaemonProcess) -> None:
    now = time.time()
    page = {"id": "n-1", "type": "page.created", "timestamp": "2026-11-27T11:00:00Z", "entity": {"id": "p-1"}}
    change = {"op": "c", "after": {"id": 1}, "source": {"db": "shop", "table": "orders", "ts_ms": 5}}

    # When each delivers, Notion after its handshake
    answers = [
        deliver(daemon, "github", senders.github({"repository": {"full_name": "octo/docs"}}, "it is a secret")),
        deliver(daemon, "shop", senders.standard({"type": "order.paid", "data": {}}, senders.STANDARD_SECRET, now)),
        deliver(
            daemon,
            "payments",
            senders.stripe({"id": "evt_1", "type": "charge.failed", "created": 5}, "whsec_stripe", now),
        ),
        deliver(daemon, "pages", ({}, json.dumps({"verification_token": TOKEN}).encode())),
        deliver(daemon, "pages", senders.notion(page, TOKEN)),
        deliver(daemon, "mysql", senders.standard(change, senders.STANDARD_SECRET, now)),
    ]

    # Then all are taken and told, in order, and the daemon does its work beside them
    assert [answer.status_code for answer in answers] == [202] * 6
    told = [(fact["source"], fact["type"], fact.get("subject")) for fact in facts(daemon)]
    assert told == [
        ("github", "github.push", "octo/docs"),
        ("shop", "order.paid", None),
        ("payments", "stripe.charge.failed", None),
        ("pages", "notion.page.created", "p-1"),
        ("mysql", "debezium.c", "shop.orders"),
    ]
    assert [fact["id"] for fact in facts(daemon, "--type", "stripe.*", "--until", "2d")] == ["evt_1"]
    assert daemon.metric("cdc_agent_webhooks_total", outcome="accepted") == 6
    assert_index_equals_table(daemon, pg)
    # Neither a secret nor what was delivered is in the log.
    for secret in ("it is a secret", senders.STANDARD_SECRET, "whsec_stripe", TOKEN, "octo/docs"):
        assert secret not in daemon.log


@pytest.mark.fault("webhook-missed", "webhook-twice")
def test_what_was_answered_with_success_is_there_once_after_kill_9(pg: Database, daemon: DaemonProcess) -> None:
    # Given ten who deliver the same twenty things at once, and a daemon that is killed among them
    signed = [senders.github({"n": number}, "it is a secret") for number in range(20)]
    taken: set[int] = set()

    def deliver_all(who: int) -> None:
        for number, delivery in enumerate(signed):
            try:
                if deliver(daemon, "github", delivery).status_code == 202:
                    taken.add(number)
            except httpx.TransportError:
                return
            if who == 0 and number == 9:
                daemon.kill()

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(deliver_all, range(10)))
    assert 9 in taken

    # When it is back
    daemon.start()
    kept = [fact["data"]["n"] for fact in facts(daemon)]

    # Then nothing that it said it had is missing, and what is sent again changes nothing
    assert taken <= set(kept)
    answers = [deliver(daemon, "github", delivery).json() for delivery in signed]
    assert sum(answer["new"] for answer in answers) == 20 - len(kept)
    assert sorted(fact["data"]["n"] for fact in facts(daemon)) == list(range(20))


@pytest.mark.fault("webhook-forged")
def test_who_is_not_proven_is_refused(pg: Database, daemon: DaemonProcess) -> None:
    stale = senders.standard({"type": "t", "data": {}}, senders.STANDARD_SECRET, time.time() - 400)

    assert deliver(daemon, "github", senders.github({}, "a guess")).status_code == 401
    assert deliver(daemon, "github", ({}, b"{}")).status_code == 401
    assert deliver(daemon, "shop", stale).status_code == 401
    assert deliver(daemon, "github", senders.github([], "it is a secret")).status_code == 400
    assert deliver(daemon, "gitlab", senders.github({}, "it is a secret")).status_code == 404
    assert deliver(daemon, "github", ({}, b"x" * (2 << 20))).status_code == 413
    assert facts(daemon) == []


@pytest.mark.parametrize(
    ("webhook", "said"),
    [
        ({"kind": "github", "secret_file": "./missing"}, "holds no secret"),
        ({"kind": "standard", "secret": "short"}, "24 to 64 bytes"),
        ({"kind": "github"}, "needs secret or secret_file"),
    ],
)
def test_a_sender_that_could_not_be_believed_stops_the_start(
    pg: Database, new_daemon: NewDaemon, webhook: dict[str, str], said: str
) -> None:
    pg.execute("create table notes (id int primary key, body text)")
    daemon = new_daemon(pg, collections=[NOTES], webhooks={"them": webhook})

    daemon.start(ready=False)

    assert daemon.wait_exit() == 78
    assert said in daemon.log
    assert "hint: " in daemon.log
