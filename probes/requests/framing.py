"""HTTP/1.1 framing: cuts one direction of a connection into messages (RFC 9112).

`MessageReader` knows heads, lengths, chunks, trailers and holes. What a message means is said by its hooks.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

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

    def end(self, t: int) -> None:
        """Hook: the message is over."""
        raise NotImplementedError

    def resumes(self, data: bytes) -> bool:
        """Whether these first bytes of a call start a message, after the stream was lost."""
        raise NotImplementedError

    def feed(self, t: int, data: bytes) -> None:
        """Raises `Malformed`; the caller kills the connection."""
        if self.state is Framing.LOST and self.resumes(data):
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
        """`size` bytes are missing here. False: they hid where the next message starts."""
        if self.state in (Framing.LENGTH, Framing.CHUNK) and size <= self._left:
            self.body_hole(size)
            self._take(t, size)
            return True
        if self.state is Framing.CLOSE:
            self.body_hole(size)
            return True
        return self.state is Framing.DEAD

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
