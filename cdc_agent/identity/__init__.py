"""Identity: server, slot, publication, stream and ledger must belong together, or nothing streams.

START_REPLICATION silently skips or forwards when positions do not fit, so it is only issued after this. ``checks``
names what does not fit, ``guard`` asks on every connection and mends what may be mended. What happens to tables and the
publication while we stream is noticed by ``tables``.
"""

from cdc_agent.identity.checks import STATES
from cdc_agent.identity.guard import Place, SourceGuard, StartOver

__all__ = ["STATES", "Place", "SourceGuard", "StartOver"]
