"""Which watched process is at the other end of a connection: the kernel part tells both ends' addresses.

A connection between two watched processes is two sockets. The one that accepted it has as its remote address
what the other one has as its local address, and the other way round; a Unix socket names its peer. Where two
sockets fit (addresses of two network namespaces may be equal), nothing is said.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from flexnpu.common.addresses import Address, ip_of
from flexnpu.common.processes import folder_of
from probes.requests.kernel import TOLD

AF_UNIX: Final = 1
AF_INET: Final = 2
_Ends: Any = TOLD.struct("mark_of_ends")
MARK_BYTES: Final = ctypes.sizeof(_Ends)


@dataclass(frozen=True, slots=True)
class Ends:
    """Where a socket is connected. `peer`: of a Unix socket, the kernel's number of the other one."""

    local: Address | None
    remote: Address | None
    peer: int = 0


def read_ends(address: int) -> Ends | None:
    """The ends in a record at `address`; None when it has none."""
    ends = _Ends.from_address(address).ends
    if ends.family == AF_UNIX:
        return Ends(None, None, ends.peer) if ends.peer else None
    if not ends.remote_port:
        return None
    length = 4 if ends.family == AF_INET else 16
    local, remote = (ip_of(bytes(part)[:length]) for part in (ends.local, ends.remote))
    return Ends((local, ends.local_port), (remote, ends.remote_port))


def _is_loopback(address: Address) -> bool:
    return address[0].startswith("127.") or address[0] == "::1"


class Sockets:
    """The sockets of watched processes that none of them accepted, by what the kernel part tells."""

    def __init__(self) -> None:
        self._owners: dict[int, tuple[int, Ends]] = {}
        self._by_ends: dict[tuple[Address, Address], set[int]] = {}
        self._namespaces: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def told(self, socket: int, pid: int, ends: Ends) -> None:
        """`pid` uses `socket`, the kernel's number."""
        self.gone(socket)
        self._owners[socket] = pid, ends
        if ends.local is not None and ends.remote is not None:
            self._by_ends.setdefault((ends.local, ends.remote), set()).add(socket)

    def gone(self, socket: int) -> None:
        """`socket` is closed: its number and addresses may be another's by now."""
        known = self._owners.pop(socket, None)
        if known is not None and known[1].local is not None and known[1].remote is not None:
            key = known[1].local, known[1].remote
            self._by_ends[key].discard(socket)
            if not self._by_ends[key]:
                del self._by_ends[key]

    def drop(self, pid: int) -> None:
        """Forget a process's sockets: it has ended, or is not watched any more."""
        self._namespaces.pop(pid, None)
        for socket in [socket for socket, (owner, _) in self._owners.items() if owner == pid]:
            self.gone(socket)

    def clear(self) -> None:
        """Forget everything: word of a socket's end may have been lost."""
        self._owners.clear()
        self._by_ends.clear()

    def caller(self, server: int, ends: Ends | None) -> int | None:
        """The process at the other end of a connection of `server`; None when none is known for certain."""
        if ends is None:
            return None
        if ends.peer:
            owner = self._owners.get(ends.peer)
            return None if owner is None else owner[0]
        if ends.local is None or ends.remote is None:
            return None
        found: Iterable[int] = self._by_ends.get((ends.remote, ends.local), ())
        owners = [self._owners[socket][0] for socket in found]
        if _is_loopback(ends.remote):
            # There is a loopback in each network namespace.
            owners = [pid for pid in owners if self._namespace(pid) == self._namespace(server) != 0]
        return owners[0] if len(owners) == 1 else None

    def _namespace(self, pid: int) -> int:
        if pid not in self._namespaces:
            try:
                self._namespaces[pid] = os.stat(f"{folder_of(pid)}/ns/net").st_ino
            except OSError:
                return 0
        return self._namespaces[pid]
