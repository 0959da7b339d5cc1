"""Finds the servers that ask watched ones: proxies, which use no NPU and need be no relatives.

A connection of a watched server names the other end's address. Who has a socket with these two addresses the
other way round is the caller. It is a server if it listens itself; other clients are left alone.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

from flexnpu.common.addresses import Address, ip_of
from flexnpu.common.processes import folder_of, start_time_of
from probes.host.listening import listening_of

_ORDER: Final = -1 if sys.byteorder == "little" else 1
MAX_CLIENTS: Final = 4096
"""Processes that are known to be no servers; beyond that all are looked at again."""


class Ends(Protocol):
    """Where a socket is connected."""

    @property
    def local(self) -> Address | None:
        """This end."""

    @property
    def remote(self) -> Address | None:
        """The other one."""


class Callers:
    """Remembers which connections and which processes it has looked at."""

    def __init__(self) -> None:
        self._seen: set[tuple[Address, Address]] = set()
        self._clients: dict[int, int | None] = {}
        """Processes that do not listen, with their start times."""

    def find(self, connections: Iterable[tuple[int, Ends]]) -> list[int]:
        """The servers at the other ends of `connections`, each with the watched process that has it. A
        connection is looked at once."""
        wanted = {(ends.remote, ends.local) for _, ends in connections if ends.remote and ends.local}
        new = wanted - self._seen
        self._seen &= wanted
        if not new:
            return []
        self._seen |= new
        if len(self._clients) > MAX_CLIENTS:
            self._clients.clear()
        return [pid for pid in _owners(new) if pid != os.getpid() and self._listens(pid)]

    def _listens(self, pid: int) -> bool:
        started = start_time_of(pid)
        if started is None or (pid in self._clients and self._clients[pid] == started):
            return False
        found = listening_of([pid]).get(pid)
        if found is not None and found.sockets:
            return True
        self._clients[pid] = started
        return False


def _owners(pairs: set[tuple[Address, Address]]) -> list[int]:
    """The processes that have a TCP socket with one of these (local, remote) addresses."""
    tables: dict[int, set[str]] = {}
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            folder = folder_of(int(name))
            namespace = os.stat(f"{folder}/ns/net").st_ino
            if namespace not in tables:
                tables[namespace] = set(_inodes(folder, pairs))
            if tables[namespace] and _holds(folder, tables[namespace]):
                found.append(int(name))
        except OSError:
            continue
    return found


def _holds(folder: str, inodes: set[str]) -> bool:
    for fd in os.listdir(f"{folder}/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            target = os.readlink(f"{folder}/fd/{fd}")
            if target.startswith("socket:[") and target[8:-1] in inodes:
                return True
    return False


def _inodes(folder: str, pairs: set[tuple[Address, Address]]) -> Iterable[str]:
    """Inodes of the namespace's sockets with one of these (local, remote) addresses."""
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"{folder}/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if (_address(fields[1]), _address(fields[2])) in pairs:
                yield fields[9]


def _address(text: str) -> Address:
    """An address as the kernel's tables have it: words of four bytes in the machine's order, and a port."""
    digits, _, port = text.partition(":")
    words = (bytes.fromhex(digits[i : i + 8])[::_ORDER] for i in range(0, len(digits), 8))
    return ip_of(b"".join(words)), int(port, 16)
