"""What is fuzzed: everything that reads bytes which somebody else wrote.

A target takes any bytes. It passes when the code refuses them with the error that it promises, or accepts them and
what it made of them holds; anything else is a finding. Seeds are real messages, so the fuzzer begins where the
interesting code is.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import json
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from cdc_agent.cloudevents import from_cloudevent, to_cloudevent
from cdc_agent.config.loading import load
from cdc_agent.documents.predicate import Predicate
from cdc_agent.errors import (
    ConfigError,
    DecodeError,
    RenderError,
    StoreRejected,
    StreamError,
    WebhookMalformed,
    WebhookRefused,
)
from cdc_agent.events import UNCHANGED, Change, Column, Relation, Row, Transaction
from cdc_agent.lsn import Lsn
from cdc_agent.resync import MESSAGE_PREFIX, PageBoard
from cdc_agent.signals import SIGNAL_PREFIX, Signals
from cdc_agent.source.pgoutput import PgOutputDecoder, RelationMessage
from cdc_agent.source.wal2json import SentColumn, Wal2JsonDecoder
from cdc_agent.stream import codec
from cdc_agent.vectorstore.base import Record
from cdc_agent.vectorstore.memory import MemoryStore
from cdc_agent.web import requests
from cdc_agent.web.answers import ApiError
from cdc_agent.webhooks.base import Delivery, Receiver
from cdc_agent.webhooks.debezium import DebeziumReceiver
from cdc_agent.webhooks.github import GithubReceiver
from cdc_agent.webhooks.notion import NotionReceiver
from cdc_agent.webhooks.standard import StandardReceiver
from cdc_agent.webhooks.stripe import StripeReceiver
from tests.support import senders
from tests.support.wal import pgoutput_messages, wal2json_messages

__all__ = ["PLANTED", "TARGETS", "Target"]

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Target:
    """``run`` fails where something is found; ``seeds`` is where the fuzzer begins."""

    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]


# -- what seeds are made of -------------------------------------------------------------------------------------

COLUMNS = tuple(
    Column(name=name, type_oid=oid)
    for name, oid in (("id", 23), ("title", 25), ("score", 701), ("blob", 17), ("tags", 1009), ("at", 1184), ("ok", 16))
)
TABLE = Relation(oid=7, root_oid=7, schema="public", name="t", columns=COLUMNS, key=("id",))
FULL = Relation(oid=8, root_oid=8, schema="public", name="f", columns=COLUMNS, key=("id",), replica_identity="f")
ROW = (b"1", "tït".encode(), b"1.5", b"\\x00ff", b"{a,NULL}", b"2026-11-27 21:00:00+00", b"t")
KEY = (b"1", *[UNCHANGED] * 6)


def _transactions() -> list[Transaction]:
    changes = [
        Change("c", TABLE, 1, None, ROW),
        Change("u", TABLE, 2, KEY, (b"2", UNCHANGED, None, *ROW[3:])),
        Change("u", FULL, 3, ROW, ROW),
        Change("d", TABLE, 4, KEY, None),
        Change("t", FULL, 5, None, None),
        Change("m", None, 6, (b"cdc_agent.x", b'{"token": "t"}'), None),
    ]
    return [_transaction(100 * (i + 1), part) for i, part in enumerate([changes, changes[:1], changes[3:5], []])]


def _transaction(lsn: int, changes: Sequence[Change]) -> Transaction:
    numbered = [change._replace(ordinal=i) for i, change in enumerate(changes, start=1)]
    return Transaction(
        xid=lsn, commit_lsn=Lsn(lsn), commit_ts_us=1_700_000_000_000_000, changes=numbered, end_lsn=Lsn(lsn + 8)
    )


def _framed(messages: Iterable[bytes]) -> bytes:
    return b"".join(struct.pack("!H", len(message)) + message for message in messages)


def _frames(data: bytes) -> Iterator[bytes]:
    while len(data) >= 2:
        (length,) = struct.unpack_from("!H", data)
        yield data[2 : 2 + length]
        data = data[2 + length :]


# -- the log ----------------------------------------------------------------------------------------------------


def _pgoutput(data: bytes) -> None:
    decoder = PgOutputDecoder(_described)
    with contextlib.suppress(DecodeError):
        for message in _frames(data):
            _check_part(decoder.feed(message))


def _described(message: RelationMessage) -> Relation | None:
    """What the catalog makes of a description; names come twice only in broken ones."""
    if message.oid % 16 == 15:
        return None
    return Relation(
        oid=message.oid,
        root_oid=message.oid,
        schema=message.schema,
        name=message.name,
        columns=message.columns,
        key=message.key,
        replica_identity=message.replica_identity,
    )


def _wal2json(data: bytes) -> None:
    decoder = Wal2JsonDecoder(_named)
    with contextlib.suppress(DecodeError):
        for message in _frames(data):
            _check_part(decoder.feed(message))


def _named(schema: str, name: str, sent: Sequence[SentColumn], identity: Sequence[SentColumn]) -> Relation | None:
    columns = {column.name: Column(name=column.name, type_oid=column.typeoid) for column in (*sent, *identity)}
    known = tuple(columns.values())
    key = (known[0].name,) if known else ()
    return Relation(oid=7, root_oid=7, schema=schema, name=name, columns=known, key=key) if schema else None


def _check_part(part: Transaction | None) -> None:
    """What a decoder hands over can be kept in the stream, and every value of it looked at."""
    if part is None:
        return
    assert [change.ordinal for change in part.changes] == sorted({change.ordinal for change in part.changes})
    block = codec.decode(codec.encode([part]))
    for event in block.events(0, len(block), 1):
        for row in filter(None, (event.before, event.after)):
            with contextlib.suppress(UnicodeDecodeError):
                row.key()
                [row[name] for name in row]


def _codec(data: bytes) -> None:
    with contextlib.suppress(StreamError):
        block = codec.decode(data)
        list(block.events(0, len(block), 1))
        block.complete_lsn(len(block))


def _messages(data: bytes) -> None:
    """Anybody who may connect may write a logical message with our prefix."""
    tables = {"docs": "public.t", "more": "public.f"}
    asked: list[object] = []
    for prefix in (SIGNAL_PREFIX, MESSAGE_PREFIX):
        tx = _transaction(100, [Change("m", None, 1, (prefix.encode(), data), None)])
        Signals(tables=tables, request=asked.append).hear(tx)
        assert PageBoard().expand(tx) is None


SIGNALS = (
    {"type": "resync", "table": "public.t"},
    {"type": "resync", "collection": "docs", "keys": [["1"], ["a,b"]], "rewrite": True},
    {"type": "resync", "table": "public.f", "where": "score > 1.5 and title like 'a%'", "reason": "r"},
    {"token": "t"},
)


# -- what people write ------------------------------------------------------------------------------------------

_folder = Path(tempfile.mkdtemp(prefix="fuzz-config-"))


def _config(data: bytes) -> None:
    file = _folder / "cdc-agent.yaml"
    file.write_bytes(data)
    with contextlib.suppress(ConfigError):
        load(file)


def _config_seeds() -> Iterator[bytes]:
    yield from (path.read_bytes() for path in sorted((ROOT / "config").glob("*.yaml")))
    yield b"source: {dsn: x}\ncollections:\n  - {name: a, table: t, text: '{b}', where: 'ok and not (id > 1)'}\n"


def _predicate(data: bytes) -> None:
    try:
        predicate = Predicate(data.decode("utf-8", "replace"))
        for row in (ROW, (b"1", *[None] * 6)):
            assert predicate.matches(Row(TABLE, row)) in (True, False)
    except (ConfigError, RenderError, KeyError):
        return


CONDITIONS = (
    "ok and not (id > 1 or score <= 1.5)",
    "title like 'a%' and title not ilike '_B\\%'",
    "at >= '2026-01-01' and at between '2025-01-01' and now",
    "id in (1, 2, 3) or title is null",
    "coalesce(title, 'x') = 'x' and id = any(array[1, 2])",
    "title is not distinct from 'x' and (id::text) = '1'",
    "case when ok then id > 1 else false end",
)


def _where(data: bytes) -> None:
    try:
        where = orjson.loads(data)
    except orjson.JSONDecodeError:
        return
    if isinstance(where, dict) and where:
        with contextlib.suppress(StoreRejected):
            _store.query("docs", np.ones(2, dtype=np.float32), k=5, where=where)


def _small_store() -> MemoryStore:
    store = MemoryStore()
    store.open_collection("docs", dimensions=2, marker={})
    kinds: list[dict[str, Any]] = [{"lang": "en"}, {"lang": 1}, {"lang": 1.5}, {"lang": True}, {"other": "x"}]
    records = [
        Record(id=str(i), text="t", metadata=metadata, embedding=np.ones(2, dtype=np.float32))
        for i, metadata in enumerate(kinds)
    ]
    store.upsert("docs", records)
    return store


_store = _small_store()
FILTERS: tuple[dict[str, Any], ...] = (
    {"lang": "en"},
    {"lang": {"$ne": 1}},
    {"$and": [{"lang": {"$gte": 1.5}}, {"$or": [{"lang": {"$in": ["a", "b"]}}, {"lang": {"$nin": [True]}}]}]},
    {"lang": {"$not_contains": "x"}},
)

SHAPES = (
    requests.SearchRequest,
    requests.WaitRequest,
    requests.ResyncRequest,
    requests.VerifyRequest,
    requests.MigrationRequest,
)


def _request(data: bytes) -> None:
    """The first byte says which request the rest is."""
    if not data:
        return
    with contextlib.suppress(ApiError):
        request = requests.parse(SHAPES[data[0] % len(SHAPES)], data[1:])
        json.dumps(request.model_dump(mode="json"))


BODIES: tuple[dict[str, Any], ...] = (
    {"collection": "docs", "query": "q", "k": 3, "where": {"lang": "en"}, "min_lsn": "0/19DD120", "timeout_s": 1.5},
    {"lsn": "now", "timeout_s": 0},
    {"table": "public.t", "keys": [["1"]], "where": "id > 1", "rewrite": True, "reason": "r"},
    {"collection": "docs", "sample": 10, "repair": True},
    {"collection": "docs"},
)


def _text(*texts: str) -> Callable[[], Iterable[bytes]]:
    return lambda: [text.encode() for text in texts]


def _planted(data: bytes) -> None:
    """No reader of ours: whoever fuzzes must find this one."""
    if data[:1] == b"B" and data[1:2] == b"U" and data[2:3] == b"G":
        raise ZeroDivisionError


PLANTED = Target(_planted, lambda: [b"XXX"])


# -- webhooks ------------------------------------------------------------------------------------------------------

NOW = dt.datetime(2026, 11, 27, 12, 0, tzinfo=dt.UTC)
KEY_OF_STANDARD = senders.STANDARD_SECRET
SIGNERS: tuple[tuple[Receiver, str, Callable[[Any], tuple[dict[str, str], bytes]], Any], ...] = (
    (GithubReceiver(), "s", lambda body: senders.github(body, "s"), {"action": "a", "repository": {"full_name": "r"}}),
    (NotionReceiver(), "s", lambda body: senders.notion(body, "s"), {"id": "i", "type": "t", "entity": {"id": "e"}}),
    (
        StripeReceiver(),
        "s",
        lambda body: senders.stripe(body, "s", NOW.timestamp()),
        {"id": "evt", "type": "t", "created": 5, "data": {"object": {"id": "o"}}},
    ),
    (
        StandardReceiver(),
        KEY_OF_STANDARD,
        lambda body: senders.standard(body, KEY_OF_STANDARD, NOW.timestamp()),
        {"specversion": "1.0", "id": "e", "source": "s", "type": "t", "time": "2026-11-27T11:00:00Z", "data": 1},
    ),
    (
        DebeziumReceiver(),
        KEY_OF_STANDARD,
        lambda body: senders.standard(body, KEY_OF_STANDARD, NOW.timestamp()),
        [{"op": "u", "source": {"db": "d", "table": "t", "ts_ms": 5}}, {"payload": None}],
    ),
)


def _delivery(headers: dict[str, str], body: bytes) -> Delivery:
    return Delivery(source="them", headers={k.lower(): v for k, v in headers.items()}, body=body, received_at=NOW)


def _headers(data: bytes) -> None:
    """The first byte says who sends, the rest is what stands in the headers: nobody can sign by guessing."""
    if not data:
        return
    receiver, secret, sign, _ = SIGNERS[data[0] % len(SIGNERS)]
    headers, body = sign({"type": "never signed by anybody"})
    names = [name for name in headers if name != "X-GitHub-Event"]
    values = data[1:].decode("utf-8", "surrogateescape").split("\n")
    with contextlib.suppress(WebhookRefused):
        receiver.receive(_delivery(dict(zip(names, values, strict=False)), body), [secret])
        raise AssertionError("a delivery was believed")


def _header_seeds() -> Iterator[bytes]:
    for number, (_, _, sign, body) in enumerate(SIGNERS):
        headers, _ = sign(body)
        yield bytes([number]) + "\n".join(v for k, v in headers.items() if k != "X-GitHub-Event").encode()


def _webhook(data: bytes) -> None:
    """The first byte says who sends; whatever follows is signed, and is understood or malformed."""
    if not data:
        return
    receiver, secret, sign, _ = SIGNERS[data[0] % len(SIGNERS)]
    try:
        body = orjson.loads(data[1:])
    except orjson.JSONDecodeError:
        return
    with contextlib.suppress(WebhookMalformed):
        for event in receiver.receive(_delivery(*sign(body)), [secret]):
            assert from_cloudevent(orjson.loads(orjson.dumps(to_cloudevent(event)))).id == event.id


TARGETS = {
    "pgoutput": Target(
        _pgoutput, lambda: [_framed(itertools.chain.from_iterable(pgoutput_messages(tx) for tx in _transactions()))]
    ),
    "wal2json": Target(_wal2json, lambda: [_framed(wal2json_messages(tx)) for tx in _transactions()]),
    "codec": Target(_codec, lambda: [codec.encode(_transactions()[:3]), codec.encode([])]),
    "messages": Target(_messages, lambda: [orjson.dumps(signal) for signal in SIGNALS]),
    "config": Target(_config, _config_seeds),
    "predicate": Target(_predicate, _text(*CONDITIONS)),
    "where": Target(_where, lambda: map(orjson.dumps, FILTERS)),
    "request": Target(_request, lambda: [bytes([i]) + orjson.dumps(body) for i, body in enumerate(BODIES)]),
    "headers": Target(_headers, _header_seeds),
    "webhook": Target(_webhook, lambda: [bytes([i]) + orjson.dumps(body) for i, (_, _, _, body) in enumerate(SIGNERS)]),
}
