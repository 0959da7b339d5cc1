"""Where chunked framing goes on behind a hole that hid it.

A body may have any bytes, so one chunk header proves nothing. A place is believed to be one when frames that
fit together lead from it to another header, to the end of a call, or to the end of the body. Servers begin a
call with a frame and end it with one, so mostly the first call behind the hole is enough.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

MAX_KEPT: Final = 512 * 1024
"""Bytes behind a hole that are kept to look at; a longer chunk is not found again."""
MAX_START: Final = 8192
"""Bytes of a start line that are looked at."""
_HEADER: Final = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]{0,200})?\r\n")
_UNKNOWN: Final = b"\xff"


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of one call, or a hole of `hole` bytes."""

    t: int
    called: int | None
    data: bytes
    hole: int
    first: bool


class Seeker:
    """Keeps what came behind a hole until a chunk header is found in it."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._pieces: list[tuple[int, Piece]] = []

    def add(self, piece: Piece) -> None:
        """What comes next. What was kept is dropped where it would be too much."""
        size = len(piece.data) + piece.hole
        if len(self._data) + size > MAX_KEPT:
            self._data.clear()
            self._pieces.clear()
        if size <= MAX_KEPT:
            self._pieces.append((len(self._data), piece))
            self._data += piece.data + _UNKNOWN * piece.hole

    def found(self) -> list[Piece] | None:
        """What follows from the first place that is believed to be a chunk header; None: none is yet."""
        at = next(filter(self._believed, self._places()), None)
        return None if at is None else self._rest(at)

    def message(self, starts: Callable[[bytes], bool]) -> list[Piece] | None:
        """What follows from the first call that `starts` a message; None: none does yet."""
        for offset, piece in self._pieces:
            if piece.first and not piece.hole and starts(bytes(self._data[offset : offset + MAX_START])):
                return self._rest(offset)
        return None

    def _rest(self, at: int) -> list[Piece]:
        rest = []
        for offset, piece in self._pieces:
            size = len(piece.data) + piece.hole
            if offset + size <= at:
                continue
            passed = max(0, at - offset)
            if piece.hole:  # a header is no hole
                rest.append(piece)
            else:
                rest.append(Piece(piece.t, piece.called, piece.data[passed:], 0, piece.first and passed == 0))
        return rest

    def _places(self) -> Iterator[int]:
        starts = {offset for offset, piece in self._pieces if piece.first and not piece.hole}
        behind = {found.end() for found in re.finditer(rb"\r\n(?=[0-9a-fA-F])", self._data)}
        return iter(sorted(starts | behind))

    def _believed(self, at: int) -> bool:
        frames, size = 0, len(self._data)
        while at < size:
            header = _HEADER.match(self._data, at)
            if header is None:
                return False
            if frames:
                return True
            length = int(header[1], 16)
            if length == 0:
                end = header.end() + 2
                last = self._data[header.end() : end] == b"\r\n"
                return last and (end == size or self._data.startswith(b"HTTP/1.", end))
            at = header.end() + length + 2
            if at > size or self._data[at - 2 : at] != b"\r\n":
                return False
            frames += 1
        return frames > 0
