"""Ports that nobody listens on, for servers that want to keep theirs over a restart."""

from __future__ import annotations

import random
import socket

from cdc_agent.errors import CdcAgentError

__all__ = ["free_port"]

#: Below the range that outgoing connections draw from: a client that retries a dead port there may connect to itself.
_PORTS = range(15_000, 32_000)


def free_port() -> int:
    for port in random.sample(_PORTS, 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise CdcAgentError(f"no free port between {_PORTS.start} and {_PORTS.stop}", hint="name a port")
