"""Client of a daemon's control socket.

>>> ControlClient("/nonexistent/npu0.ctl").status()
Traceback (most recent call last):
    ...
flexnpu.control.client.NoDaemonError: no daemon at /nonexistent/npu0.ctl: start one with: flexnpud --device 0
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from flexnpu.control import paths, peers
from flexnpu.control.messages import (
    MAX_REPLY_BYTES,
    DaemonStatus,
    ErrorReply,
    GateStatus,
    KnownStatus,
    MessageError,
    Reply,
    Request,
    SetGate,
    StatusRequest,
    decode_reply,
    encode,
)


class ControlError(RuntimeError):
    """The daemon could not be asked, or its answer not read."""


class NoDaemonError(ControlError):
    """Nobody listens there."""


class NoAnswerError(ControlError):
    """Somebody listens there, and did not answer in time or to the end."""


class NotPermittedError(ControlError):
    """This user may not ask; the message says who may, and how to become one of them."""


class RefusedError(ControlError):
    """The daemon refused. `code` is that of `ErrorReply`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class OwnedError(RefusedError):
    """The gate is another controller's; the message names it."""


class BusyError(RefusedError):
    """The daemon answers, its data plane did not in time. `known` is what it knows all the same."""

    def __init__(self, code: str, message: str, known: KnownStatus | None) -> None:
        super().__init__(code, message)
        self.known = known


def _error_of(reply: ErrorReply) -> RefusedError:
    if reply.code == "busy":
        return BusyError(reply.code, reply.message, reply.known)
    return (OwnedError if reply.code == "owned" else RefusedError)(reply.code, reply.message)


def _owner(directory: Path) -> int | None:
    """Who alone can make files there; None when others can, too."""
    try:
        found = directory.stat()
    except OSError:
        return None
    return None if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else found.st_uid


class ControlClient:
    """Asks one daemon. Connects when first used, and again after the daemon was restarted. Not for several
    threads.

    `timeout_s` bounds each request, connecting included.
    """

    def __init__(self, path: str | os.PathLike[str], timeout_s: float = 2.0) -> None:
        self.path = Path(path)
        self.timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._buffer = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. The next question makes a new one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._buffer.clear()

    def connect(self) -> None:
        """Connect now. Raises `NoDaemonError`, or another `ControlError`."""
        self._connect(time.monotonic() + self.timeout_s)

    def status(self) -> DaemonStatus:
        """Sessions, lanes, gate and counters. Raises `BusyError` when there is only a part of it, else
        `ControlError`."""
        reply = self._ask(StatusRequest())
        if not isinstance(reply, DaemonStatus):
            raise ControlError(f"{self.path}: the daemon answered a status request with {reply.type}")
        return reply

    def set_gate(self, request: SetGate) -> GateStatus:
        """Set the gate for a lease. Raises `OwnedError` when it is another controller's, another
        `RefusedError` when the daemon will not, else `ControlError`."""
        reply = self._ask(request)
        if not isinstance(reply, GateStatus):
            raise ControlError(f"{self.path}: the daemon answered a gate setting with {reply.type}")
        return reply

    def _ask(self, request: Request) -> Reply:
        deadline = time.monotonic() + self.timeout_s
        reused = self._socket is not None
        try:
            reply = self._exchange(request, deadline)
        except (ConnectionError, EOFError) as error:
            self.close()
            if not reused:
                raise NoAnswerError(f"{self.path}: the daemon closed the connection: {error}") from None
            # The daemon may have been restarted since the last request.
            try:
                reply = self._exchange(request, deadline)
            except (ConnectionError, EOFError) as again:
                self.close()
                raise NoAnswerError(f"{self.path}: the daemon closed the connection: {again}") from None
        except BaseException:
            # A reply may still come: it must not be taken for the next request's.
            self.close()
            raise
        if isinstance(reply, ErrorReply):
            if reply.code == "not-permitted":
                self.close()
                raise NotPermittedError(f"{self.path}: {reply.message}")
            raise _error_of(reply)
        return reply

    def _exchange(self, request: Request, deadline: float) -> Reply:
        connection = self._connect(deadline)
        try:
            self._limit(connection, deadline)
            # A daemon that refuses its peer says why and closes, maybe before the request is written.
            with contextlib.suppress(BrokenPipeError):
                connection.sendall(encode(request))
            while (end := self._buffer.find(b"\n")) < 0:
                if len(self._buffer) > MAX_REPLY_BYTES:
                    raise ControlError(
                        f"{self.path}: the daemon's reply is longer than {MAX_REPLY_BYTES} bytes"
                    )
                self._limit(connection, deadline)
                data = connection.recv(1 << 16)
                if not data:
                    raise EOFError("end of stream")
                self._buffer += data
        except TimeoutError:
            raise NoAnswerError(
                f"{self.path}: no answer from the daemon within {self.timeout_s:g} s"
            ) from None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            return decode_reply(line)
        except MessageError as error:
            raise ControlError(f"{self.path}: the daemon's reply cannot be read: {error}") from None

    def _limit(self, connection: socket.socket, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)

    def _connect(self, deadline: float) -> socket.socket:
        if self._socket is not None:
            return self._socket
        device = re.fullmatch(r"npu(\d+)\.ctl", self.path.name)
        start = f"start one with: flexnpud --device {device[1] if device else 'N'}"
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            while True:
                self._limit(connection, deadline)
                try:
                    connection.connect(os.fspath(self.path))
                    break
                except BlockingIOError:  # as many as it lets wait are waiting
                    time.sleep(0.01)
            uid = peers.peer_of(connection).uid
        except TimeoutError:
            connection.close()
            raise NoAnswerError(
                f"{self.path}: no answer from the daemon within {self.timeout_s:g} s"
            ) from None
        except PermissionError:
            connection.close()
            raise NotPermittedError(
                f"{self.path}: permission denied: {peers.denied(self.path, 'control this daemon', '--group')}"
            ) from None
        except OSError as error:
            connection.close()
            if isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
                raise NoDaemonError(f"no daemon at {self.path}: {start}") from None
            raise ControlError(f"{self.path}: {error.strerror or error}") from None
        if uid not in (0, os.geteuid()) and uid != _owner(self.path.parent):
            connection.close()
            raise ControlError(
                f"{self.path}: whoever listens there is user {uid}, neither root nor you; not used"
            )
        self._socket = connection
        return connection


def closed_directories(directories: list[Path] | None = None) -> list[ControlError]:
    """An error for each of `directories` (default: `paths.search_dirs`) that this user may not look into."""
    found: list[ControlError] = []
    for directory in paths.search_dirs() if directories is None else directories:
        try:
            os.listdir(directory)
            os.stat(directory / ".")
        except PermissionError:
            why = peers.denied(directory / "npu0.ctl", "control daemons", "--group")
            found.append(NotPermittedError(f"{directory}: permission denied: {why}"))
        except OSError:
            continue  # there is none
    return found


def connect_all(
    directories: list[Path] | None = None, timeout_s: float = 2.0
) -> tuple[list[ControlClient], list[ControlError]]:
    """A connected client for every daemon in `directories` (default: `paths.search_dirs`), by device, and
    what is wrong with those that listen and cannot be asked.
    """
    clients: list[ControlClient] = []
    troubles = closed_directories(directories)
    for path in paths.control_sockets(directories):
        client = ControlClient(path, timeout_s)
        try:
            client.connect()
        except NoDaemonError:
            continue
        except ControlError as error:
            troubles.append(error)
            continue
        clients.append(client)
    return clients, troubles
