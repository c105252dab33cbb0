"""Dead letters: how a document that cannot be indexed is described. Carries its key, never its values."""

from __future__ import annotations

import time
from dataclasses import replace

from cdc_agent.agents.folding import Pending
from cdc_agent.agents.planning import Collection
from cdc_agent.errors import CdcAgentError
from cdc_agent.ledger.base import DeadLetter, Manifest
from cdc_agent.lsn import Version

__all__ = ["dead_letter", "still_indexed"]


def dead_letter(
    agent: str, collection: Collection, pending: Pending, reason: str, error: CdcAgentError, attempts: int
) -> DeadLetter:
    """Describe why ``pending`` is parked. Errors of ours name columns and sizes, not contents."""
    return DeadLetter(
        agent=agent,
        collection=collection.name,
        document_id=pending.document_id,
        table=collection.table,
        key=pending.key,
        version=pending.version,
        reason=reason,
        error=str(error),
        attempts=attempts,
        parked_at=time.time(),
    )


def still_indexed(collection: Collection, pending: Pending) -> Manifest:
    """What the ledger keeps of a document whose newest version is parked: the version that is in the index, if any.

    It forgets which column values that one was made of: what the log leaves out as unchanged is unchanged against
    the parked version, so the next change must read the row again. It remembers the parked transaction, so that a row
    that was read before it does not pass for newer. A resync has met the document, and its row exists.
    """
    base = pending.base or Manifest(
        collection=collection.name,
        document_id=pending.document_id,
        version=Version(pending.version.commit_lsn, pending.version.ordinal - 1),
        xid=pending.xid,
        relation_oid=pending.relation_oid,
        deleted=True,
    )
    return replace(base, column_hashes=b"", epoch=pending.epoch, xid=pending.xid, snapshot=pending.snapshot)
