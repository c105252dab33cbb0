"""What the bodies of each kind of sender become, and what none of them documents."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
from dataclasses import replace
from typing import Any

import orjson
import pytest

from cdc_agent.errors import ConfigError, WebhookMalformed, WebhookRefused
from cdc_agent.events import Event
from cdc_agent.webhooks.base import Delivery, Receiver
from cdc_agent.webhooks.debezium import DebeziumReceiver
from cdc_agent.webhooks.github import GithubReceiver
from cdc_agent.webhooks.notion import NotionReceiver
from cdc_agent.webhooks.standard import StandardReceiver
from cdc_agent.webhooks.stripe import StripeReceiver
from tests.support import senders

NOW = dt.datetime(2026, 11, 27, 12, 0, tzinfo=dt.UTC)
SECRET = "a secret"
STANDARD = senders.STANDARD_SECRET

PUSH = {"ref": "refs/heads/main", "after": "ab12", "repository": {"full_name": "octo/docs"}}
CHARGE = {
    "id": "evt_1",
    "object": "event",
    "type": "charge.refunded",
    "created": 1_795_000_000,
    "data": {"object": {"id": "ch_7", "amount": 5}},
}
PAGE = {
    "id": "1782edd6",
    "timestamp": "2026-11-27T11:59:58.123Z",
    "type": "page.content_updated",
    "entity": {"id": "153104cd", "type": "page"},
}
CHANGE = {
    "op": "u",
    "before": None,
    "after": {"id": 1},
    "source": {"db": "shop", "schema": "public", "table": "orders", "ts_ms": 1_795_331_378_209, "lsn": 5},
}


def delivered(signed: tuple[dict[str, str], bytes], source: str = "sender") -> Delivery:
    headers, body = signed
    low = {name.lower(): value for name, value in headers.items()}
    return Delivery(source=source, headers=low, body=body, received_at=NOW)


def one(receiver: Receiver, signed: tuple[dict[str, str], bytes], secret: str) -> Event:
    [event] = receiver.receive(delivered(signed), [secret])
    return event


# -- events ----------------------------------------------------------------------------------------------------------


def test_githubs_push_is_about_its_repository() -> None:
    event = one(GithubReceiver(), senders.github(PUSH, SECRET), SECRET)

    assert (event.source, event.type, event.key, event.time) == ("sender", "github.push", "octo/docs", NOW)
    assert event.data == PUSH


def test_githubs_action_is_part_of_the_type() -> None:
    event = one(GithubReceiver(), senders.github({"action": "opened"}, SECRET, event="issues"), SECRET)

    assert (event.type, event.key) == ("github.issues.opened", "")


@pytest.mark.fault("webhook-replayed")
def test_a_replay_from_github_is_the_same_event_whatever_its_unsigned_headers() -> None:
    # Given one body with three numbers and two names, none of which GitHub signs
    deliveries = [
        senders.github(PUSH, SECRET),
        senders.github(PUSH, SECRET, delivery="d-2"),
        senders.github(PUSH, SECRET, event="create", delivery="d-3"),
    ]

    assert len({one(GithubReceiver(), signed, SECRET).id for signed in deliveries}) == 1
    assert one(GithubReceiver(), senders.github({}, SECRET), SECRET).id not in {
        one(GithubReceiver(), deliveries[0], SECRET).id
    }


def test_stripes_event_keeps_its_id_and_time() -> None:
    event = one(StripeReceiver(), senders.stripe(CHARGE, SECRET, NOW.timestamp()), SECRET)

    assert (event.id, event.type, event.key) == ("evt_1", "stripe.charge.refunded", "ch_7")
    assert event.time == dt.datetime.fromtimestamp(1_795_000_000, dt.UTC)


def test_notions_event_is_about_its_page() -> None:
    event = one(NotionReceiver(), senders.notion(PAGE, SECRET), SECRET)

    assert (event.id, event.type, event.key) == ("1782edd6", "notion.page.content_updated", "153104cd")
    assert event.time.isoformat() == "2026-11-27T11:59:58.123000+00:00"


def test_a_standard_webhook_is_named_by_its_signed_id() -> None:
    body = {"type": "user.created", "timestamp": "2026-11-27T11:00:00+01:00", "data": {"id": 7}}
    event = one(StandardReceiver(), senders.standard(body, STANDARD, NOW.timestamp(), "msg_7"), STANDARD)

    assert (event.id, event.type, event.data) == ("msg_7", "user.created", {"id": 7})
    assert event.time.isoformat() == "2026-11-27T11:00:00+01:00"


def test_a_cloudevent_keeps_its_attributes_below_the_senders_name() -> None:
    body = {
        "specversion": "1.0",
        "id": "e-1",
        "source": "/shop/orders",
        "type": "payment.failed",
        "subject": "order-7",
        "time": "2026-11-27T11:00:00Z",
        "correlationid": "c",
        "causationid": "d",
        "hops": 2,
        "data": {"amount": 5},
    }
    event = one(StandardReceiver(), senders.standard(body, STANDARD, NOW.timestamp()), STANDARD)

    assert (event.id, event.source, event.key) == ("e-1", "sender/shop/orders", "order-7")
    assert (event.correlation_id, event.causation_id, event.hops) == ("c", "d", 2)


@pytest.mark.parametrize(
    "body",
    [
        CHANGE,
        {"schema": {"type": "struct"}, "payload": CHANGE},
        {"specversion": "1.0", "id": "x", "source": "y", "type": "z", "data": CHANGE},
        {"specversion": "1.0", "id": "x", "source": "y", "type": "z", "data": {"schema": None, "payload": CHANGE}},
    ],
    ids=["plain", "schema and payload", "CloudEvent", "CloudEvent with schema"],
)
def test_every_form_of_a_debezium_change_is_one_event(body: Any) -> None:
    event = one(DebeziumReceiver(), senders.standard(body, STANDARD, NOW.timestamp()), STANDARD)

    assert (event.id, event.type, event.key, event.data) == ("msg_1", "debezium.u", "shop.public.orders", CHANGE)
    assert event.time.isoformat() == "2026-11-22T07:09:38.209000+00:00"


@pytest.mark.parametrize("body", [None, {"schema": {}, "payload": None}], ids=["empty", "null payload"])
def test_a_tombstone_is_no_event(body: Any) -> None:
    signed = senders.standard(body, STANDARD, NOW.timestamp())

    assert DebeziumReceiver().receive(delivered(signed), [STANDARD]) == []


def test_a_batch_from_debezium_is_many_events_with_names_of_their_own() -> None:
    other = {**CHANGE, "op": "d"}
    signed = senders.standard([CHANGE, other], STANDARD, NOW.timestamp(), "msg_9")

    events = DebeziumReceiver().receive(delivered(signed), [STANDARD])

    assert [(e.id, e.type) for e in events] == [("msg_9/0", "debezium.u"), ("msg_9/1", "debezium.d")]


# -- what is signed and still wrong ------------------------------------------------------------------------------------

KINDS: dict[str, tuple[Receiver, Any, str, Any]] = {
    "github": (GithubReceiver(), lambda body: senders.github(body, SECRET), SECRET, PUSH),
    "stripe": (StripeReceiver(), lambda body: senders.stripe(body, SECRET, NOW.timestamp()), SECRET, CHARGE),
    "notion": (NotionReceiver(), lambda body: senders.notion(body, SECRET), SECRET, PAGE),
    "standard": (
        StandardReceiver(),
        lambda body: senders.standard(body, STANDARD, NOW.timestamp()),
        STANDARD,
        {"type": "t", "data": {}},
    ),
    "debezium": (DebeziumReceiver(), lambda body: senders.standard(body, STANDARD, NOW.timestamp()), STANDARD, CHANGE),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("body", [7, "text", True], ids=str)
def test_a_signed_body_that_is_no_object_is_malformed(kind: str, body: Any) -> None:
    receiver, sign, secret, _ = KINDS[kind]

    with pytest.raises(WebhookMalformed):
        receiver.receive(delivered(sign(body)), [secret])


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("stripe", {"id": None}),
        ("stripe", {"id": 7}),
        ("stripe", {"created": "now"}),
        ("stripe", {"created": 10**15}),
        ("stripe", {"type": ""}),
        ("notion", {"entity": "page"}),
        ("notion", {"timestamp": "yesterday"}),
        ("notion", {"timestamp": "2026-11-27T11:59:58"}),
        ("standard", {"type": None}),
        ("standard", {"timestamp": 5}),
        ("standard", {"specversion": "0.3"}),
        ("standard", {"specversion": "1.0", "id": "x", "source": "y", "time": "never"}),
        ("standard", {"specversion": "1.0", "id": "x", "source": "y", "hops": -1}),
        ("standard", {"specversion": "1.0", "id": "x", "source": "y", "data_base64": "!"}),
        ("debezium", {"op": "x"}),
        ("debezium", {"op": ["u"]}),
        ("debezium", {"source": None}),
    ],
)
def test_a_signed_body_that_its_sender_does_not_document_is_malformed(kind: str, change: dict[str, Any]) -> None:
    receiver, sign, secret, body = KINDS[kind]

    with pytest.raises(WebhookMalformed):
        receiver.receive(delivered(sign({**body, **change})), [secret])


@pytest.mark.parametrize("event", ["", "Push", "a.b", "../push", "p" * 65])
def test_an_event_of_github_has_a_name(event: str) -> None:
    with pytest.raises(WebhookMalformed, match="X-GitHub-Event"):
        one(GithubReceiver(), senders.github(PUSH, SECRET, event=event), SECRET)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a": NaN}'], ids=lambda raw: repr(raw[:4]))
def test_whatever_is_not_signed_is_refused_before_it_is_read(kind: str, raw: bytes) -> None:
    receiver, sign, secret, body = KINDS[kind]
    delivery = replace(delivered(sign(body)), body=raw)

    with pytest.raises(WebhookRefused):
        receiver.receive(delivery, [secret])


@pytest.mark.parametrize("raw", [b"{", b"\xff", b"[" * 100_000], ids=lambda raw: repr(raw[:4]))
def test_a_signed_body_that_is_no_json_is_malformed(raw: bytes) -> None:
    signature = hmac.new(SECRET.encode(), raw, hashlib.sha256).hexdigest()
    headers = {"x-github-event": "push", "x-hub-signature-256": f"sha256={signature}"}
    delivery = Delivery(source="sender", headers=headers, body=raw, received_at=NOW)

    with pytest.raises(WebhookMalformed, match="not JSON"):
        GithubReceiver().receive(delivery, [SECRET])


@pytest.mark.parametrize(
    ("receiver", "secret"),
    [(GithubReceiver(), ""), (NotionReceiver(), ""), (StripeReceiver(), "sk_live_1"), (StandardReceiver(), "secret")],
)
def test_a_secret_that_no_sender_could_have_is_a_config_error(receiver: Receiver, secret: str) -> None:
    with pytest.raises(ConfigError):
        receiver.check_secret(secret)


def test_bytes_in_a_cloudevent_stay_base64() -> None:
    encoded = base64.b64encode(b"\x00\xff").decode()
    body = {"specversion": "1.0", "id": "e", "source": "s", "type": "t", "data_base64": encoded}

    event = one(StandardReceiver(), senders.standard(body, STANDARD, NOW.timestamp()), STANDARD)

    assert event.data == {"base64": encoded}
    assert orjson.dumps(event.data)
