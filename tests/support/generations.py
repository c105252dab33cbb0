"""Generations of a collection, and commits that make a stream grow."""

from __future__ import annotations

import hashlib

from cdc_agent.events import Change, Column, Relation, Transaction
from cdc_agent.ledger.base import Generation
from cdc_agent.lsn import Lsn
from cdc_agent.migrate.names import agent_of, physical_name

__all__ = ["generation", "transaction"]


def generation(number: int, state: str, collection: str = "docs") -> Generation:
    physical = physical_name(collection, number)
    return Generation(
        collection=collection,
        number=number,
        physical=physical,
        agent="indexer" if number == 1 else agent_of(physical),
        fingerprint=f"fingerprint-{number}",
        spec="{}",
        state=state,
        created_at=1.0,
    )


def transaction(number: int) -> Transaction:
    """A commit of about a kilobyte that does not compress."""
    body = b"".join(hashlib.sha256(b"%d %d" % (number, n)).digest() for n in range(32))
    columns = (Column(name="id", type_oid=25),)
    relation = Relation(oid=1, root_oid=1, schema="public", name="docs", columns=columns, key=("id",))
    return Transaction(
        xid=number,
        commit_lsn=Lsn(number * 10),
        commit_ts_us=0,
        changes=[Change("c", relation, 1, None, (body,))],
        end_lsn=Lsn(number * 10 + 8),
        size_bytes=len(body),
    )
