"""Serves control messages on a unix socket, in one thread without polling.

Only root, the user who started the daemon and members of one group, if it was given one, are served. A
connection costs at most one line of input and `MAX_OUTPUT_BYTES` of output; when there are too many, the one
silent for longest gives way. In a turn each connection gets one answer: who asks much waits for itself.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import time
from collections.abc import Callable
from pathlib import Path

from flexnpu.control.messages import (
    MAX_REQUEST_BYTES,
    ErrorReply,
    MessageError,
    Reply,
    Request,
    decode_request,
    encode,
)
from flexnpu.control.peers import Admission, peer_of
from flexnpu.daemon.gate_lease import Requester
from flexnpu.daemon.log import log

MAX_CONNECTIONS = 64
MAX_OUTPUT_BYTES = 1 << 23
_ACCEPT_PAUSE_S = 0.1
"""After a connection could not be accepted, for want of descriptors."""

Handler = Callable[[Request, Requester], Reply]


def _comm(pid: int) -> str:
    """Name of a process; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return ""


class _Connection:
    def __init__(self, sock: socket.socket, requester: Requester) -> None:
        self.sock = sock
        self.requester = requester
        self.input = bytearray()
        self.output = bytearray()
        self.closing = False  # once the output is gone
        self.last = time.monotonic()

    @property
    def asks(self) -> bool:
        """Whether a whole request is there."""
        return not self.closing and b"\n" in self.input


class ControlServer:
    """`open` it, call `run` (it returns after `stop`), `close` it. `handle` answers a request."""

    def __init__(
        self, path: Path, handle: Handler, allow_uids: frozenset[int] = frozenset(), gid: int | None = None
    ) -> None:
        self.path = path
        self.handle = handle
        self.admission = Admission(allow_uids | {0, os.geteuid()}, gid, "--group")
        self.counters = {"control_requests": 0, "control_refused": 0, "control_not_permitted": 0}
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self._connections: dict[socket.socket, _Connection] = {}
        # One byte in makes run() look around: written by stop(), and by the interpreter when a signal comes.
        self.wake_reader, self.wake_writer = socket.socketpair()
        self.wake_reader.setblocking(False)
        self.wake_writer.setblocking(False)
        self._stopping = False
        self._accept_again_s: float | None = None
        """When to look at the listener again, time.monotonic(); None: it is looked at."""

    def open(self) -> None:
        """Bind and listen. Raises OSError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            # Made closed, then opened: there is no moment at which a user who may not connect can.
            mask = os.umask(0o177)
            try:
                listener.bind(os.fspath(self.path))
            finally:
                os.umask(mask)
            if self.admission.gid is not None:
                os.chown(self.path, -1, self.admission.gid)
                os.chmod(self.path, 0o660)
            listener.listen(128)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self.wake_reader, selectors.EVENT_READ)

    def close(self) -> None:
        """Close all connections and the listener. After `run` has returned."""
        for connection in list(self._connections.values()):
            self._drop(connection)
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self._selector.close()
        self.wake_reader.close()
        self.wake_writer.close()

    def stop(self) -> None:
        """Make `run` return. From any thread or signal handler."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self.wake_writer.send(b"\0")

    def run(self, tick: Callable[[], float | None]) -> None:
        """Serve until `stop`. `tick` runs between events and says within how many seconds to run again."""
        while not self._stopping:
            for key, events in self._selector.select(self._timeout(tick())):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self.wake_reader:
                    with contextlib.suppress(BlockingIOError):
                        self.wake_reader.recv(4096)
                elif isinstance(key.fileobj, socket.socket):
                    # It may have been dropped by an event before it in the same round.
                    connection = self._connections.get(key.fileobj)
                    if connection is not None:
                        self._serve(connection, events)
            for connection in [one for one in self._connections.values() if one.asks]:
                self._answer(connection)

    def _timeout(self, tick_s: float | None) -> float | None:
        """How long to wait for events, s; None: for as long as it takes."""
        if any(connection.asks for connection in self._connections.values()):
            return 0
        if self._accept_again_s is None:
            return tick_s
        left_s = self._accept_again_s - time.monotonic()
        if left_s <= 0 and self._listener is not None:
            self._accept_again_s = None
            self._selector.register(self._listener, selectors.EVENT_READ)
            return 0
        return left_s if tick_s is None else min(left_s, tick_s)

    def _accept(self) -> None:
        if self._listener is None:
            return
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            # Out of descriptors: the queue stays full, so leave it alone for a moment instead of spinning.
            if not isinstance(error, BlockingIOError | ConnectionAbortedError):
                log("control-accept-failed", error=str(error))
                self._selector.unregister(self._listener)
                self._accept_again_s = time.monotonic() + _ACCEPT_PAUSE_S
            return
        sock.setblocking(False)
        peer = peer_of(sock)
        if not self.admission.admits(peer):
            self.counters["control_not_permitted"] += 1
            log("control-not-permitted", pid=peer.pid, uid=peer.uid)
            text = self.admission.refusal(peer, "control this daemon")
            with contextlib.suppress(OSError):
                sock.send(encode(ErrorReply(code="not-permitted", message=text)))
            sock.close()
            return
        if len(self._connections) >= MAX_CONNECTIONS:
            self._drop(min(self._connections.values(), key=lambda c: c.last))
        self._connections[sock] = _Connection(sock, Requester(peer.pid, peer.uid, _comm(peer.pid)))
        self._selector.register(sock, selectors.EVENT_READ)

    def _drop(self, connection: _Connection) -> None:
        del self._connections[connection.sock]
        self._selector.unregister(connection.sock)
        connection.sock.close()

    def _serve(self, connection: _Connection, events: int) -> None:
        try:
            # What is there is answered first: the rest waits in the socket.
            if events & selectors.EVENT_READ and not connection.closing and not connection.asks:
                data = connection.sock.recv(MAX_REQUEST_BYTES)
                if not data:
                    self._drop(connection)
                    return
                connection.last = time.monotonic()
                connection.input += data
                self._bound_input(connection)
            self._flush(connection)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(connection)

    def _bound_input(self, connection: _Connection) -> None:
        if len(connection.input) > MAX_REQUEST_BYTES and not connection.asks:
            self.counters["control_refused"] += 1
            text = f"no end of line within {MAX_REQUEST_BYTES} bytes"
            connection.output += encode(ErrorReply(code="too-long", message=text))
            connection.input.clear()
            connection.closing = True  # where the next message begins is anyone's guess

    def _answer(self, connection: _Connection) -> None:
        end = connection.input.find(b"\n")
        line = bytes(connection.input[:end])
        del connection.input[: end + 1]
        connection.output += encode(self._reply(line, connection.requester))
        if len(connection.output) > MAX_OUTPUT_BYTES:
            connection.output.clear()  # it asks and does not read
            connection.closing = True
        self._bound_input(connection)
        try:
            self._flush(connection)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(connection)

    def _reply(self, line: bytes, requester: Requester) -> Reply:
        self.counters["control_requests"] += 1
        try:
            return self.handle(decode_request(line), requester)
        except MessageError as error:
            self.counters["control_refused"] += 1
            return ErrorReply(code=error.code, message=str(error))
        except Exception as error:  # one bad request must not end the daemon
            self.counters["control_refused"] += 1
            log("control-request-failed", error=repr(error))
            return ErrorReply(code="failed", message=f"the daemon failed at this request: {error!r}")

    def _flush(self, connection: _Connection) -> None:
        if connection.output:
            sent = connection.sock.send(connection.output)
            del connection.output[:sent]
        if connection.closing and not connection.output:
            self._drop(connection)
            return
        wanted = selectors.EVENT_WRITE if connection.closing else selectors.EVENT_READ
        if connection.output:
            wanted |= selectors.EVENT_WRITE
        self._selector.modify(connection.sock, wanted)
