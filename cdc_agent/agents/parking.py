"""Dead letters: how a document that cannot be indexed is described. Carries its key, never its values."""

from __future__ import annotations

import time

from cdc_agent.agents.folding import Pending
from cdc_agent.agents.planning import Collection
from cdc_agent.errors import CdcAgentError
from cdc_agent.ledger.base import DeadLetter

__all__ = ["dead_letter"]


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
