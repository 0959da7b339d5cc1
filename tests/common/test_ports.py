"""A free port is free."""

from __future__ import annotations

import socket

from flexnpu.common.ports import free_port


def test_free_ports_are_free() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", free_port()))
