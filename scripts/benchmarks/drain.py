"""The child of ``capture``: the daemon's own capture over one slot until so many rows are durable in the stream.

Reads what to do as JSON from standard input, writes seconds and CPU seconds as JSON to standard output.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

import orjson

from cdc_agent.capture import Capture
from cdc_agent.health import Health
from cdc_agent.lsn import Lsn
from cdc_agent.source.catalog import Catalog
from cdc_agent.source.pgoutput import PgOutputDecoder
from cdc_agent.source.relations import Relations
from cdc_agent.source.replication import ReplicationFeed
from cdc_agent.source.wal2json import Wal2JsonDecoder
from cdc_agent.stream.sqlite import SqliteStream

_POLL_S = 0.002


def main() -> int:
    wanted: dict[str, Any] = orjson.loads(sys.stdin.buffer.read())
    stream = SqliteStream(Path(wanted["stream"]))
    stream.append([], captured_lsn=Lsn.parse(wanted["start"]))
    catalog = Catalog(wanted["dsn"])
    catalog.watch([("public", "t")])
    stop = threading.Event()
    feed, capture = _capture(wanted, catalog, stream, stop)
    threads = [threading.Thread(target=body) for body in (capture.run_reader, capture.run_writer)]
    began, cpu_before = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    while stream.head_offset() < wanted["rows"] and all(thread.is_alive() for thread in threads):
        time.sleep(_POLL_S)
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_before
    complete = stream.head_offset() == wanted["rows"]
    stop.set()
    feed.alarm.ring()
    for thread in threads:
        thread.join()
    stream.close()
    catalog.close()
    print(orjson.dumps({"seconds": seconds, "cpu_s": cpu_s}).decode())
    return 0 if complete else 1


def _capture(
    wanted: dict[str, Any], catalog: Catalog, stream: SqliteStream, stop: threading.Event
) -> tuple[ReplicationFeed, Capture]:
    """As ``daemon.build`` wires it, without the check of identities."""
    relations = Relations(catalog)
    decoder: PgOutputDecoder | Wal2JsonDecoder
    decoder = (
        PgOutputDecoder(relations.describe) if wanted["plugin"] == "pgoutput" else Wal2JsonDecoder(relations.named)
    )
    feed = ReplicationFeed(wanted["dsn"], slot_name=wanted["slot_name"], decoder=decoder, options=wanted["options"])
    capture = Capture(
        feed=feed,
        in_transaction=lambda: decoder.in_transaction,
        stream=stream,
        verify=lambda _server: None,
        expand=lambda _tx: None,
        health=Health(),
        stop=stop,
    )
    return feed, capture


if __name__ == "__main__":
    raise SystemExit(main())
