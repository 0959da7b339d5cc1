"""One HTTP connection: copied slices become the byte streams of an `HttpStream`, dated by their sending."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from probes.requests.http1 import HttpStream
from probes.requests.kernel import TOLD
from probes.requests.sockets import Ends

IN, OUT = map(TOLD.constant, ("IN", "OUT"))

MAX_HELD_BYTES: Final = 1 << 20
"""Copied bytes of one connection that wait for word of their sending."""
MAX_HELD_NS: Final = 10_000_000_000


@dataclass(slots=True)
class Slice:
    """A part of one call's bytes: `data`, then `span` - len(`data`) bytes that were not copied."""

    t: int
    called: int
    offset: int
    span: int
    data: bytes
    first: bool = True
    """It is the first of its call's."""
    waited: bool = False
    """It was seen waiting after its write: it left at `t`."""

    @property
    def end(self) -> int:
        """Offset behind its last byte, in the stream."""
        return self.offset + self.span


class Connection:
    """One connection: puts the records' slices into the byte streams of an `HttpStream`, each when it is
    known when it was sent."""

    def __init__(self, stream: HttpStream) -> None:
        self.stream = stream
        self.late = 0
        self._expected = [0, 0]
        self._last = [0, 0]
        self._held: deque[Slice] = deque()
        self._held_bytes = 0
        self._sign = (0, 0)

    def data(self, direction: int, part: Slice, sent: int, kept: int = 0) -> None:
        """A slice of a read, or of a write at whose end, at `kept`, the stream had been sent up to `sent`."""
        if direction == IN:
            self._feed(IN, part)
            return
        if not self._held and part.end <= sent:
            self._feed(OUT, part)
            return
        self._held.append(part)
        self._held_bytes += len(part.data) + 1
        self._release(sent, part.called)
        t, upto = self._sign
        if kept and t > kept:
            # Word of an acknowledgement has overtaken the record of the write that it let go.
            self.sent(t, upto)
        if self._held_bytes > MAX_HELD_BYTES:
            self._give_up(self._held[0])

    def sent(self, t: int, upto: int) -> None:
        """At `t` the stream had been sent up to `upto`; the rest leaves now or later."""
        self._sign = (t, upto)
        self._release(upto, t)
        for part in self._held:
            part.t, part.waited = max(part.t, t), True

    def expire(self, now: int) -> bool:
        """Give up waiting for what has waited too long. Returns whether something still waits."""
        while self._held and now - self._held[0].called > MAX_HELD_NS:
            self._give_up(self._held[0])
        return bool(self._held)

    def close(self, t: int | None) -> None:
        """The connection ended at `t`, ns; None: not known. What waits is given on."""
        self._release(1 << 64, 0)
        self.stream.close(t)

    def _give_up(self, part: Slice) -> None:
        self._release(part.end, 0)

    def _release(self, upto: int, t: int) -> None:
        """What ends at `upto` or before has been sent, as is known since `t`."""
        while self._held and self._held[0].end <= upto:
            part = self._held.popleft()
            self._held_bytes -= len(part.data) + 1
            if not part.waited:
                self.late += 1
                part.t = max(part.t, t)
            self._feed(OUT, part)

    def _feed(self, direction: int, part: Slice) -> None:
        feed = self.stream.received if direction == IN else self.stream.sent
        # A stream is sent in order; word of a sending may overtake the record of a write that began before.
        self._last[direction] = part.t = max(part.t, self._last[direction])
        missing = part.offset - self._expected[direction]
        if missing > 0:
            feed(part.t, b"", missing, part.called, False)
        self._expected[direction] = max(self._expected[direction], part.end)
        feed(part.t, part.data, part.span - len(part.data), part.called, part.first)


@dataclass(slots=True)
class Followed:
    """A connection, and the watched process and descriptor that used it last."""

    pid: int
    fd: int
    connection: Connection
    ends: Ends | None = None
    caller: int | None = None
    """The watched process at the other end."""
