"""Tells a service manager how the daemon is, by systemd's protocol: a datagram to ``$NOTIFY_SOCKET``."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(**state: str) -> None:
    """Send e.g. ``READY="1"``. Does nothing when nobody asked to be told."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    message = "\n".join(f"{name}={value}" for name, value in state.items())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(1.0)
        with contextlib.suppress(OSError):  # the daemon runs on, told or not
            sender.sendto(message.encode(), address)
