"""Tells systemd how we are (``Type=notify``, ``WatchdogSec``). Silent where there is no systemd."""

from __future__ import annotations

import os
import socket

__all__ = ["notify"]


def notify(state: str) -> None:
    """Send one state line such as ``READY=1``; https://www.freedesktop.org/software/systemd/man/sd_notify.html"""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.sendto(state.encode(), address)
