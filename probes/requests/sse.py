"""Event streams: server-sent events and JSON lines, cut into events.

The bytes may be cut anywhere and may have holes. A hole costs the event that it fell into.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

MAX_EVENT: Final = 256 * 1024
"""Bytes of one SSE event or JSON line."""
ERROR: Final = b'{"error":true}'
"""Data of an event that is an error by its name, or by llama-server's field ``error:``; what it says is no
content and need not be JSON."""

_FIELDS: Final = (b"data:", b"event:", b"id:", b"retry:", b"error:", b":")


class _Lines:
    """Cuts a text stream into lines ended by LF, CRLF or CR, as SSE wants; a line is bounded by
    `MAX_EVENT`."""

    def __init__(self, on_line: Callable[[int, bytes], None], on_overflow: Callable[[], None]) -> None:
        self._on_line, self._on_overflow = on_line, on_overflow
        self._part = bytearray()
        self._after_cr = False
        self._skip = False

    def feed(self, t: int, data: bytes) -> None:
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
            self._after_cr = False
        if not data:
            return
        self._after_cr = data.endswith(b"\r")
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = data.split(b"\n")
        for line in lines:
            if len(self._part) + len(line) > MAX_EVENT:
                self._overflow()
            if self._skip:
                self._skip = False
            else:
                self._on_line(t, bytes(self._part) + line if self._part else line)
            self._part.clear()
        if len(self._part) + len(rest) > MAX_EVENT:
            self._overflow()
        if not self._skip:
            self._part += rest

    def _overflow(self) -> None:
        if not self._skip:
            self._on_overflow()
        self._skip = True
        self._part.clear()

    def hole(self) -> None:
        """Bytes are missing here: the line that they fell into is gone."""
        self._part.clear()
        self._skip = True
        self._after_cr = False

    def resume(self) -> None:
        """What comes next is the start of a line."""
        self._skip = False

    def end(self, t: int) -> None:
        if self._part and not self._skip:
            self._on_line(t, bytes(self._part))
        self._part.clear()


class EventStream:
    """An event stream, or JSON lines: calls `on_event` with each event's data."""

    def __init__(
        self, sse: bool, on_event: Callable[[int, bytes], None], on_overflow: Callable[[], None]
    ) -> None:
        self._sse, self._on_event, self._on_overflow = sse, on_event, on_overflow
        self._data: list[bytes] = []
        self._size = 0
        self._skip = False
        self._error = False
        self._lines = _Lines(self._line, self._lost)
        self.feed, self.hole = self._lines.feed, self._hole

    def _line(self, t: int, line: bytes) -> None:
        if not self._sse:
            if line:
                self._on_event(t, line)
        elif not line:
            data, skip, error = self._data, self._skip, self._error
            self._data, self._size, self._skip, self._error = [], 0, False, False
            if error:
                self._on_event(t, ERROR)
            elif data and not skip:
                self._on_event(t, b"\n".join(data))
        elif line.startswith(b"error:") or (line.startswith(b"event:") and line[6:].strip() == b"error"):
            self._error = True
        elif line.startswith(b"data:") and not self._skip:
            self._size += len(line)
            if self._size > MAX_EVENT:
                self._lost()
            else:
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])

    def _lost(self) -> None:
        if not self._skip:
            self._on_overflow()
        self._skip = self._sse
        self._data, self._size = [], 0

    def _hole(self) -> None:
        self._data, self._size = [], 0
        self._lines.hole()

    def resume(self, data: bytes) -> None:
        """Behind a hole, `data` is the start of a chunk. Servers mostly begin an event there: then the chunk
        is not part of the line that the hole fell into."""
        if data.startswith(_FIELDS if self._sse else b"{"):
            self._lines.resume()

    def end(self, t: int) -> None:
        """The stream is over at `t`, ns: a last line without its end is one, too."""
        self._lines.end(t)
