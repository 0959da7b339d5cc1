"""On which TCP sockets processes listen, and who is connected to them, from /proc.

A connection that the process has not accepted is in the kernel's table without a file; one whose bytes it has
not read has a receive queue. So a server that hangs shows clients that wait, though it makes no call that
could be traced.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from flexnpu.common.processes import folder_of

_LISTEN: Final = "0A"
_CONNECTED: Final = ("01", "08")  # established; closed by the client, with bytes that may be unread


@dataclass(frozen=True, slots=True)
class Listening:
    """What one process listens on."""

    ports: tuple[int, ...] = ()
    sockets: int = 0
    connections: int = 0
    """Connections to its ports."""
    unread: int = 0
    """Of them: not accepted, or with bytes that were not read."""


class _Row(NamedTuple):
    port: int
    state: str
    unread: bool
    inode: str


def listening_of(pids: Iterable[int]) -> dict[int, Listening]:
    """What each of `pids` listens on; who is gone, or may not be read, is left out.

    A network namespace's table is read once, whatever the number of its processes.
    """
    tables: dict[int, _Table] = {}
    found = {}
    for pid in pids:
        try:
            folder = folder_of(pid)
            namespace = os.stat(f"{folder}/ns/net").st_ino
            own = _sockets(folder)
        except OSError:
            continue
        if namespace not in tables:
            tables[namespace] = _Table(_rows(folder))
        found[pid] = tables[namespace].of(own)
    return found


class _Table:
    def __init__(self, rows: Iterable[_Row]) -> None:
        self._listeners: dict[str, int] = {}
        self._connections: dict[int, int] = {}
        self._unread: dict[int, int] = {}
        for row in rows:
            if row.state == _LISTEN:
                self._listeners[row.inode] = row.port
            elif row.state in _CONNECTED:
                self._connections[row.port] = self._connections.get(row.port, 0) + 1
                self._unread[row.port] = self._unread.get(row.port, 0) + row.unread

    def of(self, inodes: set[str]) -> Listening:
        own = [self._listeners[inode] for inode in inodes if inode in self._listeners]
        ports = tuple(sorted(set(own)))
        return Listening(
            ports,
            len(own),
            sum(self._connections.get(port, 0) for port in ports),
            sum(self._unread.get(port, 0) for port in ports),
        )


def _sockets(folder: str) -> set[str]:
    """Inodes of the sockets that a process holds, by its folder in /proc. Raises OSError."""
    found = set()
    for fd in os.listdir(f"{folder}/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            target = os.readlink(f"{folder}/fd/{fd}")
            if target.startswith("socket:["):
                found.add(target[8:-1])
    return found


def _rows(folder: str) -> Iterator[_Row]:
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"{folder}/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            queued, inode = fields[4].partition(":")[2], fields[9]
            unread = int(queued, 16) > 0 or inode == "0"
            yield _Row(int(fields[1].rpartition(":")[2], 16), fields[3], unread, inode)
