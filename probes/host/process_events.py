"""When processes begin, become another program, and end: the kernel's process connector.

    with ProcessEvents() as events:
        for event in events.read():
            ...

The socket is pyroute2's `ProcEventSocket`, imported when it is needed and without the rest of pyroute2
(`probes.host.netlink`). A filter in the kernel lets through what concerns processes and drops what concerns
threads, so a server that starts threads all the time costs nothing here; what remains is decoded by `decode`,
since pyroute2's general decoder takes 0.1 to 0.3 ms a message.

Where it works: in the machine's first network namespace (the kernel listens nowhere else) and its first
process namespace (the ids in the messages are that one's). A kernel older than 6.6 asks for CAP_NET_ADMIN
too. Elsewhere the constructor raises `EventsUnavailable`, which says why, and `finder` looks at /proc
every second instead.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any, Literal

from flexnpu.common.closeable import Closeable
from probes.host import netlink
from probes.placing import namespaces

# linux/cn_proc.h, as in pyroute2's module of that name.
PROC_EVENT_NONE, PROC_EVENT_FORK, PROC_EVENT_EXEC, PROC_EVENT_EXIT = 0, 1, 2, 0x80000000

_ANSWER_S = 1.0
_BUFFER = 1 << 20
_SO_ATTACH_FILTER = 26
_SO_RCVBUFFORCE = 33

# A datagram: struct nlmsghdr (16 bytes), struct cn_msg (20), struct proc_event.
_WHAT = 36
_DATA = 52
_HEAD = struct.Struct("=IIQ")
_PAIR = struct.Struct("=II")

# Classic BPF, as in socket(7): load a word, compare, return.
_LD, _TAX, _JEQ, _JEQ_X, _RET = 0x20, 0x07, 0x15, 0x1D, 0x06


class EventsUnavailable(RuntimeError):
    """The kernel tells this process nothing about processes; the message says why."""


@dataclass(frozen=True, slots=True)
class ProcessEvent:
    """What happened to process `pid`, at `t_ns` of CLOCK_MONOTONIC. `parent` is that of a fork, else 0."""

    kind: Literal["fork", "exec", "exit"]
    pid: int
    t_ns: int
    parent: int = 0


def decode(data: bytes) -> ProcessEvent | None:
    """One datagram of the process connector; None for what is no event of a process."""
    if len(data) < _DATA + _PAIR.size:
        return None
    what, _cpu, t_ns = _HEAD.unpack_from(data, _WHAT)
    pid, tgid = _PAIR.unpack_from(data, _DATA)
    if what == PROC_EVENT_EXEC:
        return ProcessEvent("exec", tgid, t_ns)
    if what == PROC_EVENT_EXIT and pid == tgid:
        return ProcessEvent("exit", tgid, t_ns)
    if what == PROC_EVENT_FORK and len(data) >= _DATA + 2 * _PAIR.size:
        child, child_tgid = _PAIR.unpack_from(data, _DATA + _PAIR.size)
        if child == child_tgid:
            return ProcessEvent("fork", child, t_ns, parent=tgid)
    return None


def _filter() -> bytes:
    """Keeps exec, and fork and exit of processes; drops those of threads, and all else."""

    def what(kind: int) -> int:
        return socket.htonl(kind)  # a load brings a word into the network's order of bytes

    drop, accept, ended = 13, 14, 9
    program = [
        (_LD, 0, 0, _WHAT),
        (_JEQ, accept - 2, 0, what(PROC_EVENT_NONE)),
        (_JEQ, accept - 3, 0, what(PROC_EVENT_EXEC)),
        (_JEQ, ended - 4, 0, what(PROC_EVENT_EXIT)),
        (_JEQ, 0, drop - 5, what(PROC_EVENT_FORK)),
        (_LD, 0, 0, _DATA + 8),  # the child's thread id
        (_TAX, 0, 0, 0),
        (_LD, 0, 0, _DATA + 12),  # the child's process id
        (_JEQ_X, accept - 9, drop - 9, 0),
        (_LD, 0, 0, _DATA),  # of what ended: the thread id
        (_TAX, 0, 0, 0),
        (_LD, 0, 0, _DATA + 4),  # the process id
        (_JEQ_X, accept - 13, drop - 13, 0),
        (_RET, 0, 0, 0),
        (_RET, 0, 0, 0xFFFFFFFF),
    ]
    return b"".join(struct.pack("=HBBI", *one) for one in program)


class ProcessEvents(Closeable):
    """Events of all processes of the machine, from the construction on.

    Raises `EventsUnavailable`. `lost` counts how often the kernel had to drop events because nobody read
    them; what is known about processes is then to be looked up anew.
    """

    def __init__(self) -> None:
        self.lost = 0
        try:
            if not namespaces.in_first():
                raise EventsUnavailable("the kernel names processes by ids of another process namespace")
        except OSError as error:
            raise EventsUnavailable(f"/proc is not readable: {error}") from None
        netlink.prepare()
        from pyroute2.netlink.connector.cn_proc import ProcEventSocket

        self._library: Any = None
        self._socket: socket.socket | None = None
        try:
            new: Any = ProcEventSocket
            self._library = new()
            self._library.bind()
            # Its own descriptor of the same socket, for reading without the library's event loop.
            self._socket = socket.socket(fileno=os.dup(self._library.fileno()))
            self._socket.setblocking(False)
            self._prepare(self._socket)
            self._listen(self._socket)
        except OSError as error:
            self.close()
            reasons = {
                errno.ECONNREFUSED: "the process connector does not reach this network namespace",
                errno.EPERM: "it needs CAP_NET_ADMIN on kernels before 6.6",
                errno.EPROTONOSUPPORT: "the kernel has no process connector (CONFIG_PROC_EVENTS)",
            }
            raise EventsUnavailable(reasons.get(error.errno or 0, str(error))) from None
        except EventsUnavailable:
            self.close()
            raise

    @staticmethod
    def _prepare(connection: socket.socket) -> None:
        program = ctypes.create_string_buffer(_filter())
        count = len(_filter()) // 8
        # struct sock_fprog; the kernel copies the program.
        packed = struct.pack("@HP", count, ctypes.addressof(program))
        connection.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, packed)
        try:
            connection.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        except OSError:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)

    @staticmethod
    def _listen(connection: socket.socket) -> None:
        """Ask for events and wait for the answer: a kernel that will send none does not say so."""
        from pyroute2.netlink import NLMSG_DONE
        from pyroute2.netlink.connector.cn_proc import (
            CN_IDX_PROC,
            CN_VAL_PROC,
            PROC_CN_MCAST_LISTEN,
            proc_event_control,
        )

        new: Any = proc_event_control
        message = new()
        message["action"] = PROC_CN_MCAST_LISTEN
        message["idx"] = CN_IDX_PROC
        message["val"] = CN_VAL_PROC
        message["len"] = 4
        message["header"]["type"] = NLMSG_DONE
        message.encode()
        # Not by the library's `control`: it waits for the answer for ever.
        connection.send(message.data)
        deadline = time.monotonic() + _ANSWER_S
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([connection], [], [], left)[0]:
                raise EventsUnavailable("the kernel's process connector does not answer")
            data = connection.recv(4096)
            if len(data) >= _DATA and _HEAD.unpack_from(data, _WHAT)[0] == PROC_EVENT_NONE:
                # The kernel's errno stands where an event's data would.
                failed = _PAIR.unpack_from(data, _DATA)[0] if len(data) >= _DATA + _PAIR.size else 0
                if failed:
                    raise OSError(failed, os.strerror(failed))
                return

    def fileno(self) -> int:
        """For select and the like."""
        assert self._socket is not None
        return self._socket.fileno()

    def read(self) -> list[ProcessEvent]:
        """What has happened since the last call; does not wait."""
        assert self._socket is not None
        found: list[ProcessEvent] = []
        while True:
            try:
                data = self._socket.recv(4096)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost += 1
                continue
            event = decode(data)
            if event is not None:
                found.append(event)

    def close(self) -> None:
        """Stop listening. May be called again."""
        if self._socket is not None:
            self._socket.close()
        if self._library is not None:
            self._library.close()
        self._socket = self._library = None
