"""Tells systemd how we are (``Type=notify``, ``WatchdogSec``). Silent where there is no systemd."""

from __future__ import annotations

import os
import socket

__all__ = ["be_patient", "notify", "notify_ready", "watchdog_s"]

#: Loading a model and waiting for a slot may take this long.
_PATIENCE_US = 300_000_000
#: What the unit that we ship says.
_USUAL_US = 60_000_000


def notify(state: str) -> None:
    """Send one state line such as ``READY=1``; https://www.freedesktop.org/software/systemd/man/sd_notify.html"""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.sendto(state.encode(), address)


def watchdog_s() -> float:
    """How long the replication loop may stand still before nothing is fed to the watchdog any more."""
    return int(os.environ.get("WATCHDOG_USEC") or _USUAL_US) / 1_000_000


def be_patient() -> None:
    """A daemon is being built, maybe after it was ready once (a standby takes over): no sign of life for a while."""
    notify(f"WATCHDOG_USEC={_PATIENCE_US}")


def notify_ready() -> None:
    """It runs; from now on the watchdog is as strict as the unit says."""
    usual = os.environ.get("WATCHDOG_USEC")
    notify("READY=1\nSTATUS=" + (f"\nWATCHDOG_USEC={usual}" if usual else ""))
