"""Named places where a test can kill, break or stop the daemon: ``CDC_FAILPOINT=name:kill|raise|hang@n``.

``n`` counts passages (default 1: the first). Costs one comparison where nothing is armed.
"""

from __future__ import annotations

import os
import signal
import threading

from cdc_agent.errors import ConfigError

__all__ = ["NAMES", "arm", "hit"]

#: Every place, in the order in which a change meets them.
NAMES = (
    "after_recv",
    "before_append",
    "after_append",
    "mid_tx",
    "idle_advance",
    "before_ack",
    "after_ack",
    "mending_begun",
    "mending_after_drop",
    "resync_after_slot",
    "mending_after_ledger",
    "mending_before_ready",
    "resync_before_mark",
    "resync_after_mark",
    "resync_after_append",
    "resync_done",
    "after_read",
    "after_reread",
    "after_plan",
    "mid_embed",
    "after_embed",
    "before_intent",
    "after_intent",
    "mid_upsert",
    "after_upsert",
    "after_metadata",
    "before_flip",
    "after_flip",
    "before_gc",
    "mid_gc",
    "after_gc",
    "dead_letter",
    "sweep",
    "hup_swap",
    "drain",
    "migrate_after_begin",
    "migrate_before_copy",
    "migrate_after_flip",
    "migrate_before_rename",
    "migrate_after_rename",
    "migrate_after_dropping",
    "migrate_after_store_drop",
    "agents_read",
    "agents_routed",
    "agents_handled",
    "agents_settled",
    "saga_before_take",
    "saga_after_take",
    "saga_before_call",
    "saga_before_save",
    "saga_after_save",
)
_ACTIONS = ("kill", "raise", "hang")

_armed: tuple[str, str] | None = None
_left = 0
_lock = threading.Lock()


class FailpointError(RuntimeError):
    """Raised on purpose by an armed failpoint."""


def arm(spec: str | None) -> None:
    """Arm one failpoint, or disarm with None. Raises ``ConfigError`` for a name or action that does not exist."""
    global _armed, _left  # noqa: PLW0603 (a process-wide switch is the point of it)
    if not spec:
        _armed = None
        return
    name, _, rest = spec.partition(":")
    action, _, count = rest.partition("@")
    if name not in NAMES or action not in _ACTIONS or (count and not count.isdigit()):
        raise ConfigError(f"CDC_FAILPOINT={spec!r} is not name:kill|raise|hang@n", hint="names: " + " ".join(NAMES))
    _left = int(count or 1)
    _armed = (name, action)


def hit(name: str) -> None:
    """Pass a failpoint."""
    if _armed is None or _armed[0] != name:
        return
    if _count_down() == 0:
        _act(_armed[1])


def _count_down() -> int:
    global _left  # noqa: PLW0603 (see ``arm``)
    with _lock:
        _left -= 1
        return _left


def _act(action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "raise":
        raise FailpointError("armed failpoint")
    threading.Event().wait()
