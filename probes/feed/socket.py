"""The feed: a privileged tracer publishes events, programs without privilege read them.

`FeedServer` listens on a unix socket and sends each event to every subscriber as one line of JSON
(`events.Event.to_json`). It never blocks the tracer: a subscriber that is too slow loses lines, and is told
how many by ``Losses(source="feed", counts={"feed_dropped": ...})`` as soon as it reads again. A subscriber
sends nothing; one that does is cut off.

One server at a time serves a path: it holds a lock on ``PATH.lock``, which the kernel releases however it
ends. The socket of a server that was killed is replaced by the next one.

Who may subscribe: root, the user who runs the server, and whoever has the socket's group, first or
supplementary (`control.peers`), checked by the peer's credentials and not only by the socket's mode. Who may
not is told so, in a line of type ``refused``. Subscribers get what is published from then on, and before it
the last `ProcessState` of each process that has not ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import json
import os
import selectors
import socket
import stat
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flexnpu.common.closeable import Closeable
from flexnpu.console.text import json_text
from flexnpu.control import peers
from probes.feed.events import VERSION, Event, EventError, Losses, ProcessState, StepBegin, from_json

MAX_QUEUED_BYTES = 4 << 20
"""Waiting for one subscriber before lines are dropped: several seconds of ten thousand steps a second."""

MAX_LINE = 1 << 20
"""The longest line that a client accepts."""


OPTION = "--feed-group"
"""Of `flexnpu-probe attach`: names the group that may subscribe."""

_REFUSED = "refused"
_SERVED = "another tracer serves {path}; stop it, or read from it instead"


class FeedError(ConnectionError):
    """The feed cannot be served or read; the message says why and what to do."""


class FeedRefused(FeedError):
    """The feed is not for this user; the message says for whom it is, and how to become one of them."""


@dataclass
class _Subscriber:
    connection: socket.socket
    queue: deque[bytes] = field(default_factory=deque)
    queued: int = 0
    sent: int = 0
    """Bytes of the first queued line that are on their way."""
    dropped: int = 0
    reported: int = 0


def check_place(path: Path, group: str | None) -> None:
    """Raise `FeedError` when a feed cannot be served at `path`, as far as that can be told beforehand."""
    if group is not None:
        try:
            grp.getgrnam(group)
        except KeyError:
            raise FeedError(f"no group {group!r}; make it with: groupadd {group}") from None
    above = next((one for one in path.parents if one.exists()), path.parent)
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise FeedError(f"cannot serve a feed at {path}: {above} is no folder that you may write to")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return  # nobody; what else may be wrong there, the server will say
    raise FeedError(_SERVED.format(path=path))


class FeedServer(Closeable):
    """Serve a feed at `path`. `group`, a name, owns the socket and may subscribe.

    Raises `FeedError` when another server lives at `path`, or the folder cannot be written.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, group: str | None = None, max_queued: int = MAX_QUEUED_BYTES
    ) -> None:
        self.path = Path(path)
        self._max_queued = max_queued
        self._lock = threading.Lock()
        self._subscribers: dict[int, _Subscriber] = {}
        self._present: dict[int, bytes] = {}
        """The last `ProcessState` of each process."""
        self._refused = 0
        self._dropped = 0
        self._closed = False
        self._lock_path = self.path.with_name(self.path.name + ".lock")
        self._lock_fd = self._claim()
        try:
            self._listener = self._listen(group)
        except BaseException:
            self._release()
            raise
        found = os.stat(self.path)
        self._inode = found.st_ino
        self._admission = peers.Admission(frozenset({0, os.geteuid()}), found.st_gid, OPTION)
        self._selector = selectors.DefaultSelector()
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_out.setblocking(False)
        self._wake_in.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_out, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="feed", daemon=True)
        self._thread.start()

    def _claim(self) -> int:
        """Lock the path, so that of two servers that start at once only one takes a dead one's place."""
        try:
            self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            while True:
                fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    with contextlib.suppress(FileNotFoundError):
                        if os.stat(self._lock_path).st_ino == os.fstat(fd).st_ino:
                            return fd
                except BaseException:
                    os.close(fd)
                    raise
                os.close(fd)  # its owner removed it just now
        except BlockingIOError:
            raise FeedError(_SERVED.format(path=self.path)) from None
        except OSError as error:
            raise FeedError(f"cannot serve a feed at {self.path}: {error.strerror}") from None

    def _release(self) -> None:
        with contextlib.suppress(OSError):
            self._lock_path.unlink()  # while it is locked: who opened it meanwhile looks again
        os.close(self._lock_fd)

    def _listen(self, group: str | None) -> socket.socket:
        try:
            self._remove_dead()
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        except FeedError:
            raise
        except OSError as error:
            raise FeedError(f"cannot serve a feed at {self.path}: {error.strerror}") from None
        try:
            before = os.umask(0o117)
            try:
                listener.bind(str(self.path))
            finally:
                os.umask(before)
            if group is not None:
                os.chown(self.path, -1, grp.getgrnam(group).gr_gid)
            listener.listen(16)
            listener.setblocking(False)
        except KeyError:
            listener.close()
            self.path.unlink(missing_ok=True)
            raise FeedError(f"no group {group!r}; make it with: groupadd {group}") from None
        except OSError as error:
            listener.close()
            raise FeedError(f"cannot serve a feed at {self.path}: {error.strerror or error}") from None
        return listener

    def _remove_dead(self) -> None:
        """Remove the socket of a server that died; refuse to replace a living one or another file."""
        try:
            mode = os.lstat(self.path).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise FeedError(f"{self.path} exists and is no socket; remove it or serve elsewhere")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(self.path))
            except (ConnectionRefusedError, FileNotFoundError):
                self.path.unlink(missing_ok=True)
                return
            except OSError:
                pass  # it does not answer, yet it listens
        raise FeedError(_SERVED.format(path=self.path))

    # -- the tracer's side ----------------------------------------------------------------------------------

    def publish(self, event: Event) -> None:
        """Queue `event` for every subscriber; returns at once. Safe to call from any thread."""
        with self._lock:
            if not self._subscribers and not isinstance(event, ProcessState):
                return
            line = event.to_json().encode() + b"\n"
            if isinstance(event, ProcessState):
                self._present.pop(event.pid, None)
                if not event.ended:
                    self._present[event.pid] = line
            for subscriber in self._subscribers.values():
                self._queue(subscriber, line)
        self._wake()

    def _queue(self, subscriber: _Subscriber, line: bytes) -> None:
        if subscriber.queued + len(line) > self._max_queued:
            subscriber.dropped += 1
            self._dropped += 1
            return
        if subscriber.dropped != subscriber.reported:
            note = _dropped_line(subscriber.dropped)
            subscriber.reported = subscriber.dropped
            subscriber.queue.append(note)
            subscriber.queued += len(note)
        subscriber.queue.append(line)
        subscriber.queued += len(line)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            self._wake_in.send(b"x")

    @property
    def counts(self) -> dict[str, int]:
        """Subscribers now, connections refused, and lines dropped over all subscribers, since the start."""
        with self._lock:
            return {
                "feed_subscribers": len(self._subscribers),
                "feed_refused": self._refused,
                "feed_dropped": self._dropped,
            }

    # -- the subscribers' side, in a thread of its own ------------------------------------------------------

    def _serve(self) -> None:
        while True:
            for key, mask in self._selector.select():
                if key.fileobj is self._wake_out:
                    with contextlib.suppress(BlockingIOError):
                        while self._wake_out.recv(4096):
                            pass
                elif key.fileobj is self._listener:
                    self._accept()
                elif mask & selectors.EVENT_READ and isinstance(key.fileobj, socket.socket):
                    self._drop(key.fileobj)  # it closed, or it talks: neither wants to be served
            if self._closed:
                return
            with self._lock:
                subscribers = list(self._subscribers.values())
            for subscriber in subscribers:
                self._send(subscriber)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        try:
            peer = peers.peer_of(connection)
            admitted = self._admission.admits(peer)
            if not admitted:
                connection.send(_refusal_line(self._admission.refusal(peer, "read this feed")))
        except OSError:  # it has gone, or does not read
            admitted = False
        if not admitted:
            with self._lock:
                self._refused += 1
            connection.close()
            return
        with self._lock:
            subscriber = self._subscribers[connection.fileno()] = _Subscriber(connection)
            for line in self._present.values():
                self._queue(subscriber, line)
        self._selector.register(connection, selectors.EVENT_READ)

    def _drop(self, connection: socket.socket) -> None:
        with self._lock:
            self._subscribers.pop(connection.fileno(), None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connection)
        connection.close()

    def _send(self, subscriber: _Subscriber) -> None:
        try:
            while True:
                with self._lock:
                    if not subscriber.queue:
                        break
                    line = subscriber.queue[0]
                sent = subscriber.connection.send(line[subscriber.sent :])
                with self._lock:
                    subscriber.sent += sent
                    if subscriber.sent == len(line):
                        subscriber.queue.popleft()
                        subscriber.queued -= len(line)
                        subscriber.sent = 0
            wanted = selectors.EVENT_READ
        except BlockingIOError:
            wanted = selectors.EVENT_READ | selectors.EVENT_WRITE
        except OSError:
            self._drop(subscriber.connection)
            return
        with contextlib.suppress(KeyError, ValueError):
            self._selector.modify(subscriber.connection, wanted)

    def close(self, *, linger_s: float = 1.0) -> None:
        """Give subscribers up to `linger_s` to take what is queued, then close and remove the socket."""
        if self._closed:
            return
        deadline = time.monotonic() + linger_s
        while time.monotonic() < deadline:
            with self._lock:
                if not any(subscriber.queue for subscriber in self._subscribers.values()):
                    break
            self._wake()
            time.sleep(0.01)
        self._closed = True
        self._wake()
        self._thread.join(5)
        for subscriber in list(self._subscribers.values()):
            subscriber.connection.close()
        self._subscribers.clear()
        self._selector.close()
        for end in (self._listener, self._wake_in, self._wake_out):
            end.close()
        with contextlib.suppress(OSError):
            if os.lstat(self.path).st_ino == self._inode:  # not one that a later server put there
                self.path.unlink()
        self._release()


def _dropped_line(dropped: int) -> bytes:
    losses = Losses(t_ns=time.monotonic_ns(), source="feed", counts={"feed_dropped": dropped})
    return losses.to_json().encode() + b"\n"


def _refusal_line(message: str) -> bytes:
    line = json_text({"v": VERSION, "type": _REFUSED, "message": message}, compact=True)
    return line.encode() + b"\n"


def _refusal(line: bytes) -> str | None:
    """What the server says to a reader that it does not serve; None for any other line."""
    if _REFUSED.encode() not in line:
        return None
    with contextlib.suppress(ValueError, RecursionError):
        raw = json.loads(line)
        if isinstance(raw, dict) and raw.get("type") == _REFUSED:
            return str(raw.get("message"))
    return None


class FeedClient(Closeable):
    """Read a feed.

        with FeedClient("/run/flexnpu/probe.sock") as feed:
            for event in feed:
                ...

    Iteration ends when the server does. `begins` lets `StepBegin` events through. Raises `FeedError` when
    nobody serves `path`, when the server is neither root's nor one's own, or when it sends something that is
    no event; `FeedRefused` when it does not serve this user.
    """

    def __init__(self, path: str | os.PathLike[str], *, begins: bool = False, timeout_s: float = 5.0) -> None:
        self.path = Path(path)
        self._begins = begins
        self._pending = bytearray()
        self._ended = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(timeout_s)
            self._socket.connect(str(self.path))
            uid = peers.peer_of(self._socket).uid
        except (FileNotFoundError, ConnectionRefusedError) as error:
            self._socket.close()
            killed = " (the last one was killed)" if isinstance(error, ConnectionRefusedError) else ""
            raise FeedError(
                f"no tracer serves {self.path}{killed}; start one with: "
                "sudo flexnpu-probe attach --all --feed"
            ) from None
        except PermissionError:
            self._socket.close()
            denied = peers.denied(self.path, "read this feed", OPTION)
            raise FeedRefused(f"{self.path}: permission denied: {denied}") from None
        except OSError as error:
            self._socket.close()
            raise FeedError(f"cannot read {self.path}: {error.strerror or error}") from None
        if uid not in (0, os.geteuid()):
            self._socket.close()
            raise FeedError(f"{self.path} is served by user {uid}, who is neither root nor you")

    def fileno(self) -> int:
        """For select and the like; read with `read(0)` until it gives None."""
        return self._socket.fileno()

    @property
    def ended(self) -> bool:
        """The server has gone and everything it sent was read."""
        return self._ended

    def read(self, timeout_s: float | None = None) -> Event | None:
        """The next event, or None after `timeout_s` without one, or when the feed has ended (see `ended`)."""
        if (event := self._take()) is not None:
            return event
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._ended:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self._receive(left):
                return None
            if (event := self._take()) is not None:
                return event
        return None

    def _take(self) -> Event | None:
        while True:
            end = self._pending.find(b"\n")
            if end < 0:
                if len(self._pending) > MAX_LINE:
                    raise FeedError(f"{self.path} sent a line of more than {MAX_LINE} bytes")
                return None
            line = bytes(self._pending[:end])
            del self._pending[: end + 1]
            try:
                event = from_json(line)
            except EventError as error:
                refusal = _refusal(line)
                if refusal is not None:
                    raise FeedRefused(f"{self.path}: {refusal}") from None
                raise FeedError(f"{self.path} sent a line that is no event: {error}") from None
            if self._begins or not isinstance(event, StepBegin):
                return event

    def _receive(self, timeout_s: float | None) -> bool:
        """Read once; False when nothing came in time. The end of the feed counts as something."""
        try:
            self._socket.settimeout(None if timeout_s is None else max(timeout_s, 1e-6))
            data = self._socket.recv(1 << 16)
        except (TimeoutError, BlockingIOError):
            return False
        except ConnectionError:
            data = b""
        if not data:
            self._ended = True
        self._pending += data
        return True

    def __iter__(self) -> Iterator[Event]:
        while True:
            event = self.read()
            if event is None:
                return
            yield event

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()
