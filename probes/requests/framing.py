"""HTTP/1.1 framing: cuts one direction of a connection into messages (RFC 9112).

`MessageReader` knows heads, lengths, chunks, trailers and holes. What a message means is said by its hooks.

A hole in a body costs that part of the body. Where it hid how a chunked body is framed, the framing is found
again (`resync`), or the next message is. Only a hole that may have hidden the start of a message costs more:
the messages that are open.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from probes.requests.resync import Piece, Seeker

MAX_HEAD: Final = 64 * 1024
"""Bytes of one message's start line and headers."""
MAX_LINE: Final = 1024
"""Bytes of a chunk-size line."""


class Framing(Enum):
    """Where a reader stands in a message (RFC 9112, sections 2 and 6 to 8)."""

    START = auto()
    HEAD = auto()
    LENGTH = auto()
    CHUNK_SIZE = auto()
    CHUNK = auto()
    CHUNK_END = auto()
    TRAILERS = auto()
    CLOSE = auto()
    SEEK = auto()
    """A hole hid how the chunked body is framed; it goes on where a chunk is found, or the next message."""
    LOST = auto()
    """A hole hid where the next message starts; the next start line at the start of a call ends this."""
    DEAD = auto()
    """Not HTTP/1 from here on (malformed, or upgraded to another protocol), until the connection closes."""


class Malformed(Exception):
    """The bytes are no HTTP/1 message."""


class MessageReader:
    """One direction: cuts the bytes into messages. What the messages mean is said by the four hooks."""

    def __init__(self) -> None:
        self.state = Framing.START
        self._head = bytearray()
        self._left = 0
        self._trailer = 0
        self._seeker = Seeker()
        self._broken = False
        self.holed = False
        """There was a hole, and no head since."""
        self.called: int | None = None
        """When the call began whose bytes are read now; of a read, when it was through."""

    # Hooks. `head` returns (framing state, length).
    def start(self, t: int) -> None:
        """Hook: a message's first byte has come. `t` of all hooks is CLOCK_MONOTONIC, ns."""
        raise NotImplementedError

    def head(self, t: int, lines: list[bytes]) -> tuple[Framing, int]:
        """Hook: start line and headers are whole. How the body is framed, and its bytes (0: not told)."""
        raise NotImplementedError

    def body(self, t: int, data: bytes) -> None:
        """Hook: a part of the body, without its framing."""
        raise NotImplementedError

    def body_hole(self, size: int) -> None:
        """Hook: `size` bytes of the body were not copied."""
        raise NotImplementedError

    def body_resumes(self) -> None:
        """What comes next of the body is the start of a chunk, the first since a hole."""
        raise NotImplementedError

    def end(self, t: int) -> None:
        """Hook: the message is over."""
        raise NotImplementedError

    def abandon(self) -> None:
        """The message ended somewhere in a hole."""
        raise NotImplementedError

    def hides_message(self, size: int) -> bool:
        """Whether `size` missing bytes from a body on may have the start of another message in them."""
        raise NotImplementedError

    def goes_on(self) -> bool:
        """Whether the body that has a hole may still go on."""
        raise NotImplementedError

    def starts(self, data: bytes) -> bool | None:
        """Whether these bytes from the start of a call start a message, the body before having ended in a
        hole. None: they may, when more of them are there."""
        raise NotImplementedError

    def resumes(self, data: bytes) -> bool:
        """Whether these first bytes of a call start a message, after the stream was lost."""
        raise NotImplementedError

    def feed(self, t: int, data: bytes, called: int | None = None, first: bool = True) -> None:
        """`first`: these are the first bytes of their call. Raises `Malformed`; the caller kills the
        connection."""
        self.called = called
        if self.state is Framing.SEEK:
            self._seek(Piece(t, called, data, 0, first))
            return
        if self.state is Framing.LOST and first and self.resumes(data):
            self.state = Framing.START
        at, size = 0, len(data)
        while at < size:
            state = self.state
            if state is Framing.START:
                # A server ignores empty lines before a request (RFC 9112, 2.2).
                while at < size and data[at] in b"\r\n":
                    at += 1
                if at < size:
                    self.start(t)
                    self._head.clear()
                    self.state = Framing.HEAD
            elif state is Framing.HEAD:
                at = self._feed_head(t, data, at)
            elif state in (Framing.LENGTH, Framing.CHUNK):
                n = min(self._left, size - at)
                self.body(t, data[at : at + n])
                at += n
                self._take(t, n)
            elif state is Framing.CLOSE:
                self.body(t, data[at:])
                at = size
            elif state in (Framing.CHUNK_SIZE, Framing.CHUNK_END, Framing.TRAILERS):
                at = self._feed_line(t, data, at)
            else:
                at = size

    def _seek(self, piece: Piece) -> None:
        """Look for the body's framing, or the next message. Raises `Malformed` when neither was found for
        long."""
        if not self._seeker.add(piece):
            raise Malformed
        if piece.hole:
            return
        rest = self._seeker.message(self.starts)
        if rest is not None:
            self.abandon()
            self.state = Framing.START
        elif self.goes_on() and (rest := self._seeker.found()) is not None:
            self.state = Framing.CHUNK_SIZE
        else:
            return
        self._seeker = Seeker()
        self._head.clear()
        for one in rest:
            if one.hole:
                self.hole(one.t, one.hole)
            else:
                self.feed(one.t, one.data, one.called, one.first)

    def _take(self, t: int, n: int) -> None:
        self._left -= n
        if self._left == 0:
            if self.state is Framing.LENGTH:
                self._end(t)
            else:
                self.state = Framing.CHUNK_END

    def _end(self, t: int) -> None:
        if self.state is not Framing.DEAD:
            self.state = Framing.START
        self.end(t)

    def _feed_head(self, t: int, data: bytes, at: int) -> int:
        # The end is an empty line: LF LF or LF CR LF. Look again at what may be its first part.
        old = len(self._head)
        room = MAX_HEAD + 4 - old
        self._head += data[at : at + room]
        end = -1
        for mark in (b"\n\r\n", b"\n\n"):
            found = self._head.find(mark, max(0, old - 3))
            if found >= 0 and (end < 0 or found + len(mark) < end):
                end = found + len(mark)
        if end < 0 or end > MAX_HEAD:
            if len(self._head) > MAX_HEAD:
                raise Malformed
            return at + len(self._head) - old
        lines = [line.rstrip(b"\r") for line in bytes(self._head[:end]).split(b"\n")][:-2]
        self._head.clear()
        framing, length = self.head(t, lines)
        self.holed = self._broken = False
        if self.state is Framing.DEAD:
            return len(data)
        self.state, self._left = framing, length
        if framing is Framing.LENGTH and length == 0:
            self._end(t)
        return at + end - old

    def _feed_line(self, t: int, data: bytes, at: int) -> int:
        found = data.find(b"\n", at)
        stop = len(data) if found < 0 else found + 1
        if len(self._head) + stop - at > MAX_LINE:
            raise Malformed
        self._head += data[at:stop]
        if found >= 0:
            line = bytes(self._head).rstrip(b"\r\n")
            self._head.clear()
            self._line(t, line)
        return stop

    def _line(self, t: int, line: bytes) -> None:
        if self.state is Framing.CHUNK_SIZE:
            digits = line.split(b";", 1)[0].strip(b" \t")
            if not 1 <= len(digits) <= 15 or digits.strip(b"0123456789abcdefABCDEF"):
                raise Malformed
            self._left = int(digits, 16)
            self._trailer = 0
            self.state = Framing.CHUNK if self._left else Framing.TRAILERS
            if self._left and self._broken:
                self._broken = False
                self.body_resumes()
        elif self.state is Framing.CHUNK_END:
            if line:
                raise Malformed
            self.state = Framing.CHUNK_SIZE
        elif line:
            self._trailer += len(line) + 1
            if self._trailer > MAX_HEAD:
                raise Malformed
        else:
            self._end(t)

    def hole(self, t: int, size: int) -> bool:
        """`size` bytes are missing here. False: they may have hidden where another message starts."""
        self.holed = self._broken = True
        if self.state in (Framing.LENGTH, Framing.CHUNK) and size <= self._left:
            self.body_hole(size)
            self._take(t, size)
            return True
        if self.state is Framing.CLOSE:
            self.body_hole(size)
            return True
        if self.state in (Framing.CHUNK, Framing.CHUNK_END, Framing.CHUNK_SIZE, Framing.TRAILERS):
            beyond = size - self._left if self.state is Framing.CHUNK else size
        elif self.state is Framing.SEEK:
            beyond = size
        else:
            return self.state is Framing.DEAD
        if self.hides_message(beyond):
            return False
        self.body_hole(size)
        if self.state is Framing.SEEK:
            self._seek(Piece(t, self.called, b"", size, False))
        self.state = Framing.SEEK
        return True

    def closed(self, t: int) -> None:
        """The connection has ended: so has a message that lasts until then."""
        if self.state is Framing.CLOSE:
            self._end(t)

    @property
    def at_start(self) -> bool:
        """Whether the next byte begins a message."""
        return self.state is Framing.START


def header_fields(lines: list[bytes]) -> dict[bytes, bytes]:
    """Header fields, names in lower case; of a repeated field the values are joined by a comma."""
    fields: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon:
            raise Malformed
        name, value = name.strip().lower(), value.strip()
        fields[name] = fields[name] + b"," + value if name in fields else value
    return fields


def content_length(value: bytes) -> int:
    """A Content-Length. Repeats of the same number are one (RFC 9112, 6.3)."""
    numbers = {part.strip() for part in value.split(b",")}
    if len(numbers) != 1:
        raise Malformed
    number = numbers.pop()
    if not number.isdigit() or len(number) > 18:
        raise Malformed
    return int(number)
