"""Wire latency: when streamed requests reach a server and when their tokens leave it, from its sockets.

`WireTracer` watches the HTTP/1.1 connections of running processes through syscall tracepoints, without a
proxy and without the program's help, and delivers one `events.RequestTiming` a request. What a request and
a content chunk are is said by `http1`.

Method. The kernel part (bpf/wire.c) copies a bounded part of what the process reads from and writes to
its HTTP connections. A read is dated by the arrival of its first byte at the socket, so that a server that is
slow to read does not look fast, and a write by when its last byte was sent. Mostly that is the start of the
call; but what the kernel keeps back, because Nagle's algorithm waits for an acknowledgement (a server without
TCP_NODELAY) or the client's window is full, leaves with the acknowledgement that lets it go. The kernel shows
both in the tracepoints of `SOCKET_TIME` (Linux 6.3) where it has BTF: `WireTracer.dating` is then
``socket``. Else it is ``call``: a read is dated by the call's return, a write by its start, and those two are
a request's `t_read_ns` and `t_write_ns` in any case. Data kept back by TCP_CORK and let go by the program are
dated by the write; Unix sockets are dated by the calls.

Which bytes. A connection is known by the kernel's socket, so duplicated descriptors (dup, dup2, fcntl) and
those of other watched processes (fork, SCM_RIGHTS, pidfd_getfd) are the same one; only a socket can be one.

    served      read, readv, preadv2, recv, recvfrom, recvmsg, recvmmsg; write, writev, pwritev2, send,
                sendto, sendmsg, sendmmsg, with any number of buffers; bytes that were looked at (MSG_PEEK)
                count once
    counted     sendfile, splice, and MSG_TRUNC (wire_kernel_bytes): the stream goes on behind them, what they
                moved was not read; io_uring (wire_io_uring_bytes); any other way, also of processes that are
                not watched (wire_unseen_bytes)

The last two need the tracepoints of `SOCKET_TIME`. Of one call 64 KiB are copied if it reads and 256 KiB
if it writes, and its last 4 KiB. A hole in a body costs that part of the body (`framing`).

Limits. TLS and HTTP/2 are out of scope: connections that do not begin with an HTTP/1 method are counted,
TLS and HTTP/2 by their names, and never guessed at. A server whose first read takes less than four bytes
is counted as unsupported. A server that reads through io_uring is not followed. A connection that was
open before the tracer is picked up at its next request; a read in which a thread already waited when the
tracer attached is not seen, so a thread-per-connection server may miss the first request of each such
connection. A process that is forked for one connection is seen from when it is watched. Where the kernel
has no BTF, a connection is known by its process and descriptor: what goes through a duplicate is not
seen, and whether a descriptor is a socket is looked up by the tracer. Where bcc loads the programs, 96
buffers of a call are copied. Without root, or with tracefs unmounted and unmountable, there is a
`WireError` that says what is missing.

Overhead. While attached, every traced syscall of every process on the machine runs a BPF program that looks
its process up in a hash; a traced process pays two to three look-ups a read or write, and on its HTTP
connections also the copy. User space pays for each copied record.

Losses, as delivered to `on_loss` and published as ``Losses(source="wire")``:

    wire_lost               records that found the ring full
    wire_calls_lost         calls not followed, too many threads at once
    wire_connections_lost   connections not followed, too many at once
    wire_unreadable_bytes   bytes that the kernel could not copy (paged out)
    wire_truncated_bytes    bytes beyond the copy limit of a call; a request's long prompt mostly
    wire_kernel_bytes       bytes that never were in the program's memory (sendfile, splice), or that it threw
                            away (MSG_TRUNC)
    wire_io_uring_bytes     bytes that a watched process moved through io_uring, by any socket
    wire_unseen_bytes       bytes of followed connections that moved in no followed way
    wire_tls                accepted connections that begin with a TLS handshake
    wire_http2              accepted connections that begin with HTTP/2's preface
    wire_unsupported        accepted connections that do not speak HTTP/1 otherwise
    wire_upgraded           connections that left HTTP/1 after an upgrade (WebSocket, HTTP/2)
    wire_desyncs            holes that hid the start of a message, or behind which no framing was found for
                            long; the connection's open requests are cut
    wire_malformed          connections given up because they did not follow HTTP
    wire_opaque_streams     event streams not read because they were compressed
    wire_events_unread      events not read, too long or not JSON
    wire_departures_unknown writes that the kernel kept back and whose sending was not seen; dated by the next
                            sign that they had been sent
    wire_cut_requests       requests whose end was not seen: closed early, lost, or still open at detach
"""

from __future__ import annotations

import ctypes
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

from flexnpu.common.closeable import Closeable
from flexnpu.common.processes import comm_of
from probes.feed import events
from probes.placing import attach, loader, namespaces
from probes.placing.attach import AttachError, Probe, RawTracepoint, Tracepoint
from probes.placing.loader import Kind, Loaded
from probes.placing.maps import Map, Ring
from probes.requests.connection import IN, OUT, Connection, Followed, Slice
from probes.requests.exchange import Exchange
from probes.requests.hops import Hop
from probes.requests.http1 import HttpStream
from probes.requests.join import Other
from probes.requests.kernel import CALLS, SOCKET_TIME, TOLD, file_offsets, is_open, is_socket, socket_offsets
from probes.requests.sockets import MARK_BYTES, Ends, Sockets, read_ends
from probes.requests.timing import timing
from probes.requests.unanswered import open_requests

__all__ = ["WireError", "WireTracer", "timing"]

TRACEFS: Final = Path("/sys/kernel/tracing")
RING_PAGES: Final = 1024

SLICE: Final = TOLD.constant("SLICE")
_KERNEL_LOSSES: Final = tuple(name.lower() for name in TOLD.enumerators("wire_loss")[:-1])
_STREAM_LOSSES: Final = ("upgraded", "desyncs", "malformed", "opaque_streams", "events_unread")

_REPORT_S: Final = 1.0


_KINDS: Final = ("OPEN", "DATA", "CLOSE", "SENT", "CLOSED_RANGE", "SOCKET", "GONE")
_OPEN, _DATA, _CLOSE, _SENT, _CLOSED_RANGE, _SOCKET, _GONE = (
    TOLD.constant(f"KIND_{kind}") for kind in _KINDS
)
NO_FD: Final = 0xFFFFFFFF


class WireError(RuntimeError):
    """The wire tracer cannot run here. The message names what is missing and the remedy."""


# A record without its data.
_Record: Any = TOLD.struct("mark")


def ensure_tracefs() -> Path:
    """Mount tracefs where it belongs if it is not mounted. Returns its folder; raises `WireError`."""
    if (TRACEFS / "events").is_dir():
        return TRACEFS
    done = subprocess.run(
        ["mount", "-t", "tracefs", "tracefs", str(TRACEFS)],
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    if not (TRACEFS / "events").is_dir():
        why = done.stderr.strip() or "no events folder in it"
        raise WireError(
            f"tracefs is not mounted and cannot be: {why}. Type: mount -t tracefs tracefs {TRACEFS}"
        )
    return TRACEFS


class WireTracer(Closeable):
    """Traces the streamed HTTP requests of processes.

    `pids`: processes to watch, in the tracer's own PID namespace; more with `add`. `on_request` gets every
    finished request; without it, iterate over the tracer. `on_loss` gets the counters listed in the
    module's docstring, once a second. `on_hop` gets of each what `hops` joins it by, before `on_request`. All
    are called from `poll`, which the owner calls a few
    times a second at least, in any one thread. The ring holds `ring_pages` (a power of two) of 4 KiB. A
    process that ends is dropped, and its open requests are delivered as incomplete.

        with WireTracer([pid], on_request=print) as tracer:
            while True:
                tracer.poll(200)

    Raises `WireError` when the machine cannot trace, `ProcessLookupError` for a pid that does not exist.
    """

    def __init__(
        self,
        pids: Iterable[int] = (),
        on_request: Callable[[events.RequestTiming], None] | None = None,
        on_loss: Callable[[dict[str, int]], None] | None = None,
        *,
        on_hop: Callable[[Hop], None] | None = None,
        ring_pages: int = RING_PAGES,
    ) -> None:
        self._on_request = on_request
        self._on_loss = on_loss
        self._on_hop = on_hop
        self._sockets = Sockets()
        self._servers: set[int] = set()
        """Watched processes that were asked something."""
        self._ring_losses = 0
        self._ready: list[events.RequestTiming] = []
        self._counts: dict[str, int] = dict.fromkeys(_STREAM_LOSSES, 0)
        self._cut = 0
        self._connections: dict[int, Followed] = {}
        self._watched: dict[int, tuple[int, str]] = {}
        self._exits = select.poll()
        self._failure: BaseException | None = None
        self._next_report = 0.0
        self._late = 0
        self._waiting: set[int] = set()
        self.dating: Literal["socket", "call"]
        self._probes: list[Probe] = []
        self._loaded: Loaded | None = self._load(ring_pages)
        number, call = ctypes.c_uint64, TOLD.struct("call")
        self._targets = Map(self._loaded.map("targets"), ctypes.c_uint32, ctypes.c_uint8)
        self._calls = Map(self._loaded.map("calls"), number, call)
        self._kernel_connections = Map(self._loaded.map("connections"), number, TOLD.struct("connection"))
        self._descriptors = Map(self._loaded.map("descriptors"), number, TOLD.struct("descriptor"))
        self._losses = Map(self._loaded.map("losses"), ctypes.c_uint32, number, per_cpu=True)
        self._ring = Ring(self._loaded.map("records"), self._record)
        try:
            for pid in pids:
                self.add(pid)
        except BaseException:
            self.close()
            raise

    def _load(self, ring_pages: int) -> Loaded:
        if os.geteuid() != 0:
            raise WireError("tracing sockets needs root. Type the same command behind sudo")
        folder = ensure_tracefs() / "events"
        calls = [call for call in CALLS if (folder / "syscalls" / f"sys_exit_{call[0]}").is_dir()]
        missing = {"read", "write", "recvfrom", "sendto"} - {call for call, _, _ in calls}
        if missing:
            raise WireError(
                f"this kernel has no syscall tracepoints for {', '.join(sorted(missing))}: "
                "it was built without CONFIG_FTRACE_SYSCALLS"
            )
        offsets = socket_offsets() if all((folder / name).is_dir() for name in SOCKET_TIME) else None
        self.dating = "call" if offsets is None else "socket"
        sockets = () if offsets is None else tuple(name.partition("/")[2] for name in SOCKET_TIME)
        programs = {name: Kind.SYSCALL for _, *names in calls for name in names if name}
        programs |= {f"on_{name}": Kind.RAW for name in sockets}
        options = {"ring_pages": ring_pages} | namespaces.options()
        files = file_offsets()
        macros = {} if offsets is None else {"SOCKET_TIME": 1} | offsets
        macros |= {} if files is None else {"FILES": 1} | files
        request = loader.Request(loader.WIRE, programs, options, ring="records", macros=macros)
        try:
            loaded = loader.load(request)
        except loader.LoadError as error:
            raise WireError(f"the wire probe cannot be loaded: {error}") from error
        try:
            for call, *functions in calls:
                for function, side in zip(functions, ("enter", "exit"), strict=True):
                    if function:
                        number = int((folder / "syscalls" / f"sys_{side}_{call}" / "id").read_text())
                        self._probes.append(Tracepoint(loaded.program(function), number))
            self._probes += [RawTracepoint(loaded.program(f"on_{name}"), name) for name in sockets]
        except AttachError as error:
            attach.remove(self._probes)
            loaded.close()
            raise WireError(str(error)) from None
        return loaded

    # Processes.

    @property
    def pids(self) -> list[int]:
        """The processes that are watched now."""
        return [pid for pid, _ in self._watched.values()]

    def add(self, pid: int) -> None:
        """Watch a process, by its thread group.

        Raises `ProcessLookupError` when there is none, `OSError` when there are too many.
        """
        if pid in self.pids:
            return
        fd = os.pidfd_open(pid)
        try:
            self._targets.set(pid, self._targets.value(1))
        except OSError:
            os.close(fd)
            raise
        self._watched[fd] = (pid, comm_of(pid))
        self._exits.register(fd, select.POLLIN)

    def remove(self, pid: int) -> None:
        """Stop watching a process. Its open requests are delivered as incomplete."""
        for fd, (watched, _) in list(self._watched.items()):
            if watched == pid:
                self._exits.unregister(fd)
                os.close(fd)
                self._targets.delete(pid)
                self._ring.drain()
                self._give_up(pid)
                self._sockets.drop(pid)
                self._servers.discard(pid)
                del self._watched[fd]

    def _give_up(self, pid: int) -> None:
        gone = {key for key, followed in self._connections.items() if followed.pid == pid}
        for key in gone:
            self._end(key, None)
        for key, value in self._kernel_connections.items():
            if value.id in gone or (value.tgid == pid and value.id not in self._connections):
                self._kernel_connections.delete(key)
        # A thread that was killed inside a call leaves the call behind as well.
        for table in (self._descriptors, self._calls):
            for key in table:
                if key.value >> 32 == pid:
                    table.delete(key)

    def _closed_range(self, pid: int, first: int, last: int, t: int) -> None:
        """A process closed its descriptors `first` to `last`, as far as they were open."""
        for key in self._descriptors:
            if key.value >> 32 == pid and first <= key.value & 0xFFFFFFFF <= last:
                self._descriptors.delete(key)
        for number, followed in list(self._connections.items()):
            if followed.pid == pid and first <= followed.fd <= last and not is_open(pid, followed.fd):
                self._end(number, t)

    def open_requests(self) -> list[Other]:
        """The requests that are running: arrived, and not yet answered in full."""
        return [
            Other(followed.pid, exchange.t_arrival, exchange.t_write)
            for followed in self._connections.values()
            for exchange in followed.connection.stream.pending
        ]

    def open_hops(self) -> Iterator[Hop]:
        """The same, as `hops` wants them."""
        for followed in self._connections.values():
            for exchange in followed.connection.stream.pending:
                yield Hop.of(followed.pid, followed.fd, self._caller(followed), exchange, ended=False)

    def strangers(self) -> list[tuple[int, Ends]]:
        """Connections of watched processes whose other end no watched process has: (process, its ends)."""
        return [
            (followed.pid, followed.ends)
            for followed in self._connections.values()
            if followed.ends is not None and followed.caller is None
        ]

    def _caller(self, followed: Followed) -> int | None:
        """The watched server, another process, that asks on a connection."""
        if followed.caller is None:
            followed.caller = self._sockets.caller(followed.pid, followed.ends)
        found = followed.caller
        return found if found in self._servers and found != followed.pid else None

    def unanswered(self, t_ns: int) -> Iterator[events.OpenRequests]:
        """What runs in each watched process, those without any request included. `t_ns`: a time before the
        last `poll`."""
        running: dict[int, list[tuple[int, Exchange, bool]]] = {pid: [] for pid in self.pids}
        for followed in self._connections.values():
            open_here, inner = running.setdefault(followed.pid, []), self._caller(followed) is not None
            open_here += [
                (followed.fd, one, inner) for one in followed.connection.stream.pending if one.method
            ]
        for pid, exchanges in running.items():
            yield open_requests(t_ns, pid, comm_of(pid), exchanges)

    # Records.

    def poll(self, timeout_ms: int = 100) -> int:
        """Take what the kernel has recorded, waiting up to `timeout_ms`; returns the requests finished.

        An error raised by a callback is raised here.
        """
        before = len(self._ready)
        self._ring.poll(max(0, timeout_ms))
        for fd, _ in self._exits.poll(0):
            self.remove(self._watched[fd][0])
        now = time.monotonic_ns()
        for key in list(self._waiting):
            if key not in self._connections or not self._connections[key].connection.expire(now):
                self._waiting.discard(key)
        self._raise()
        done = self._deliver(before)
        self._tell_losses()
        return done

    def _deliver(self, before: int) -> int:
        done = len(self._ready) - before
        if self._on_request is not None:
            ready, self._ready = self._ready, []
            for timing in ready:
                self._on_request(timing)
        return done

    def _raise(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _record(self, address: int, size: int) -> None:
        try:
            self._take(address, size)
        except BaseException as error:
            # An exception must not cross the C frames of the ring buffer's reader.
            self._failure = error

    def _take(self, address: int, size: int) -> None:
        record = _Record.from_address(address)
        number = record.connection
        if record.kind == _SOCKET:
            ends = read_ends(address)
            if ends is not None:
                self._sockets.told(number, record.tgid, ends)
            return
        if record.kind == _GONE:
            self._sockets.gone(number)
            return
        if record.kind == _CLOSED_RANGE:
            self._closed_range(record.tgid, record.offset, record.span, record.t)
            return
        known = self._connections.get(number)
        if record.kind == _SENT:
            if known is not None:
                known.connection.sent(record.t, record.sent)
            return
        if record.kind == _CLOSE:
            if known is not None:
                self._end(number, record.t)
            return
        if known is None:
            socket = record.kind != _OPEN or record.socket or is_socket(record.tgid, record.fd)
            known = self._connections[number] = self._follow(record.tgid, record.fd, bool(socket))
            if socket:
                self._servers.add(record.tgid)
        if record.kind == _OPEN and size >= MARK_BYTES:
            known.ends = read_ends(address)
        if record.kind == _DATA:
            if record.direction == IN and known.caller is None:
                # Now, for the other end may be closed when the request has ended.
                known.caller = self._sockets.caller(known.pid, known.ends)
            if record.fd != NO_FD:
                known.pid, known.fd = record.tgid, record.fd
            length = min(record.length, size - ctypes.sizeof(_Record))
            data = ctypes.string_at(address + ctypes.sizeof(_Record), length)
            part = Slice(record.t, record.called, record.offset, record.span, data, bool(record.first))
            known.connection.data(record.direction, part, record.sent, record.kept)
            if record.direction == OUT and record.sent < part.end:
                self._waiting.add(number)

    def _end(self, number: int, t: int | None) -> None:
        connection = self._connections.pop(number).connection
        connection.close(t)
        self._late += connection.late

    def _follow(self, pid: int, fd: int, socket: bool) -> Followed:
        def finished(exchange: Exchange) -> None:
            if socket:
                self._cut += exchange.t_end is None
                comm = next((comm for watched, comm in self._watched.values() if watched == followed.pid), "")
                caller = self._caller(followed)
                self._ready.append(timing(followed.pid, comm, followed.fd, exchange, caller))
                if self._on_hop is not None:
                    self._on_hop(Hop.of(followed.pid, followed.fd, caller, exchange, ended=True))

        followed = Followed(pid, fd, Connection(HttpStream(finished, self._counts if socket else {})))
        return followed

    # Losses.

    @property
    def losses(self) -> dict[str, int]:
        """The counters since the tracer started, by the names in the module's docstring."""
        counts = {
            name: sum(int(cpu.value) for cpu in self._losses.get(index) or ())
            for index, name in enumerate(_KERNEL_LOSSES)
        }
        counts |= {f"wire_{name}": self._counts[name] for name in _STREAM_LOSSES}
        late = self._late + sum(followed.connection.late for followed in self._connections.values())
        return counts | {"wire_departures_unknown": late, "wire_cut_requests": self._cut}

    def _tell_losses(self) -> None:
        now = time.monotonic()
        if now >= self._next_report:
            self._next_report = now + _REPORT_S
            losses = self.losses
            if losses["wire_lost"] != self._ring_losses:
                self._ring_losses = losses["wire_lost"]
                self._sockets.clear()
            if self._on_loss is not None:
                self._on_loss(losses)

    # Life.

    def __iter__(self) -> Iterator[events.RequestTiming]:
        """The requests as they end; ends when no watched process is left."""
        while True:
            self.poll(100)
            ready, self._ready = self._ready, []
            yield from ready
            if not self._watched and not self._ready:
                return

    def close(self) -> None:
        """Detach. Open requests are delivered as incomplete. May be called twice."""
        if self._loaded is None:
            return
        before = len(self._ready)
        for pid in list(self.pids):
            self.remove(pid)
        self._deliver(before)
        self._next_report = 0.0
        self._tell_losses()
        attach.remove(self._probes)
        self._ring.close()
        self._loaded.close()
        self._loaded = None
