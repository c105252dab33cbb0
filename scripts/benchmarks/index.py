"""Documents per second through the whole daemon, against the bare model encoding exactly the same chunk texts.

Ours runs from the commit of all rows until the index is complete up to it: decoding, the stream, planning, chunking,
tokenising, embedding, the ledger, Chroma's server and its index. The reference is ``SentenceTransformer.encode`` of
the list of finished chunks, with the best batch size of several, in a process of its own. It is measured right before
and right after ours and never at the same time; ours is compared with the mean of its two neighbours, so a machine
that slows down meets both. Every round has new documents: nothing comes from the cache of vectors.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import psycopg
from database import connect, create_database, server, wal_position
from figures import Figure, at_least
from machine import load_average, say
from raw_model import BATCH_SIZES, RawModel
from running_daemon import RunningDaemon, daemon
from sizes import Sizes
from texts import documents

__all__ = ["measure"]

_AIM = 0.9
#: The slower neighbour may take this many times as long as the faster one before a round is doubted.
_STEADY = 1.1
_COLLECTION = {"name": "documents", "table": "public.documents", "text": "{title}\n\n{body}"}
_INSERT = "insert into documents values (%s, %s, %s)"


def measure(sizes: Sizes) -> list[Figure]:
    with server() as (postgres, _installation):
        dsn = create_database(postgres, "index")
        with connect(dsn) as connection:
            connection.execute("create table documents (id int primary key, title text, body text)")
        with RawModel() as raw, daemon(dsn, _COLLECTION) as running:
            with psycopg.connect(dsn) as connection:
                _index(running, connection, 0, documents(16, seed=0))
                return [_rounds(sizes, raw, running, connection)]


def _rounds(sizes: Sizes, raw: RawModel, running: RunningDaemon, connection: psycopg.Connection) -> Figure:
    ours: list[float] = []
    reference: list[float] = []
    batch_size = 0
    for number in range(1, sizes.index_rounds + 1):
        texts = documents(sizes.index_documents, seed=number)
        chunks = raw.chunks([f"{title}\n\n{body}" for title, body in texts])
        batch_size = batch_size or _best_batch_size(raw, chunks)
        before = raw.encode_s(chunks, batch_size)
        embedding = -running.metric("cdc_agent_embed_batch_seconds_sum")
        seconds = _index(running, connection, number, texts)
        embedding += running.metric("cdc_agent_embed_batch_seconds_sum")
        after = raw.encode_s(chunks, batch_size)
        _check_chunks(running, chunks)
        reference.append(len(texts) / statistics.mean((before, after)))
        ours.append(len(texts) / seconds)
        say(
            f"  round {number}: {len(texts)} documents, {len(chunks)} chunks;"
            f" raw {before:.2f} s before, {after:.2f} s after,"
            f" ours {seconds:.2f} s, its model at work {embedding:.2f} s;"
            f" ratio {ours[-1] / reference[-1]:.2f}, load {load_average():.2f}"
        )
        if max(before, after) > _STEADY * min(before, after):
            say("  WARNING: the two neighbours disagree, so the machine changed its mood and this round means little")
    best = max(mine / theirs for mine, theirs in zip(ours, reference, strict=True))
    say(f"  best round's ratio {best:.2f}")
    # The round with the median ratio, so that both sides of the figure are from the same minutes.
    middle = sorted(zip(ours, reference, strict=True), key=lambda pair: pair[0] / pair[1])[(len(ours) - 1) // 2]
    return at_least("index", "documents/s", *middle, _AIM)


def _best_batch_size(raw: RawModel, chunks: Sequence[str]) -> int:
    """Decided on a part of the texts, best of two."""
    sample = chunks[: max(len(chunks) // 3, 64)]
    seconds = {size: min(raw.encode_s(sample, size) for _ in range(2)) for size in BATCH_SIZES}
    for size, took in seconds.items():
        say(f"  raw, batch size {size}: {len(sample) / took:.1f} chunks/s")
    return min(seconds, key=seconds.__getitem__)


def _index(
    running: RunningDaemon, connection: psycopg.Connection, number: int, texts: Sequence[tuple[str, str]]
) -> float:
    """Commit the documents together; returns the seconds until they are all in the index."""
    first = number * 1_000_000
    with connection.cursor() as cursor:
        cursor.executemany(_INSERT, [(first + i, title, body) for i, (title, body) in enumerate(texts)])
    began = time.perf_counter()
    connection.commit()
    running.wait_indexed(wal_position(connection), timeout_s=600)
    seconds = time.perf_counter() - began
    connection.rollback()
    return seconds


def _check_chunks(running: RunningDaemon, chunks: Sequence[str]) -> None:
    """Both sides embedded the same texts: what Chroma holds is what the reference encoded."""
    missing = set(chunks) - running.chunk_texts("documents")
    if missing:
        raise RuntimeError(
            f"{len(missing)} of {len(chunks)} chunks are not in Chroma: the comparison would not be fair"
        )
