"""Where chunked framing goes on behind a hole that hid it.

A body may have any bytes, so one chunk header proves nothing. A place is believed to be one when frames that
fit together lead from it to another header, to the end of a call, or to the end of the body. Servers begin a
call with a frame and end it with one, so mostly the first call behind the hole is enough.

The bytes are a stranger's, and they may come one by one. So each is searched once, a place that was refused
is not judged again, and the number of pieces behind a hole has a bound.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MAX_KEPT: Final = 512 * 1024
"""Bytes behind a hole that are kept to look at; a longer chunk is not found again."""
MAX_START: Final = 8192
"""Bytes of a start line that are looked at."""
MAX_PIECES: Final = 4096
"""Pieces behind a hole that are kept to look at."""
MAX_SOUGHT: Final = 16_384
"""Pieces behind one hole in which something is sought, before that is given up."""
MAX_UNDECIDED: Final = 16
"""Places at the end of what is kept that are judged again when more comes."""
_LINE: Final = re.compile(rb"\r\n(?=[0-9a-fA-F])")
_HEADER: Final = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]{0,200}(?:;[^\r\n]{0,200})?\r\n")
_PART: Final = re.compile(rb"[0-9a-fA-F]{1,8}[ \t]{0,200}(?:;[^\r\n]{0,200})?\r?")
"""What may become a header."""
_LAST: Final = b"\r\nHTTP/1."
"""What follows on the header of the last chunk."""
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
        self._sought = 0
        self._begin()

    def _begin(self) -> None:
        self._data = bytearray()
        self._pieces: list[tuple[int, Piece]] = []
        self._searched = 0
        """Bytes that were searched for places."""
        self._starts: list[int] = []
        """Where calls begin: places that were not judged yet."""
        self._partial: list[int] = []
        """Places whose header is not whole."""
        self._ends: list[int] = []
        """A heap: where the frame of a place ends."""
        self._place: dict[int, int] = {}
        """By the end of a frame, the first place that leads there."""
        self._calls: list[int] = []
        """Where calls begin that may start a message."""

    def add(self, piece: Piece) -> bool:
        """What comes next. What was kept is dropped where it would be too much. False: nothing was found in
        `MAX_SOUGHT` pieces, and nothing will be."""
        self._sought += 1
        size = len(piece.data) + piece.hole
        if len(self._data) + size > MAX_KEPT or len(self._pieces) >= MAX_PIECES:
            self._begin()
        if size <= MAX_KEPT:
            offset = len(self._data)
            self._pieces.append((offset, piece))
            self._data += piece.data + _UNKNOWN * piece.hole
            if piece.first and not piece.hole:
                self._starts.append(offset)
                self._calls.append(offset)
        return self._sought <= MAX_SOUGHT

    def found(self) -> list[Piece] | None:
        """What follows from the first place that is believed to be a chunk header; None: none is yet."""
        believed = [place for place in self._places() if self._judged(place)]
        believed += self._followed()
        return self._rest(min(believed)) if believed else None

    def message(self, starts: Callable[[bytes], bool | None]) -> list[Piece] | None:
        """What follows from the first call that `starts` a message (None: more must be known of it); None:
        none does yet."""
        undecided = []
        for offset in self._calls:
            start = bytes(self._data[offset : offset + MAX_START])
            known = starts(start)
            if known:
                return self._rest(offset)
            if known is None and len(start) < MAX_START:
                undecided.append(offset)
        self._calls = undecided[-MAX_UNDECIDED:]
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

    def _places(self) -> list[int]:
        """Places that are new, and those of which too little was known."""
        # The search goes back by what may be the first part of a place.
        behind = {found.end() for found in _LINE.finditer(self._data, max(0, self._searched - 2))}
        places = sorted(behind.union(self._starts, self._partial))
        self._searched = len(self._data)
        self._starts, self._partial = [], []
        return places

    def _judged(self, place: int) -> bool:
        """Whether `place` is believed by its header. Where a frame must be whole first, its end is noted."""
        header = _HEADER.match(self._data, place)
        if header is None:
            if _PART.fullmatch(self._data, place):
                self._wait(place)
            return False
        length = int(header[1], 16)
        if length == 0:
            behind = bytes(self._data[header.end() : header.end() + len(_LAST)])
            if behind in (_LAST[:2], _LAST):
                return True
            if _LAST.startswith(behind):
                self._wait(place)
            return False
        end = header.end() + length + 2
        if end > MAX_KEPT:
            return False
        if end not in self._place:
            heapq.heappush(self._ends, end)
        self._place[end] = min(place, self._place.get(end, place))
        return False

    def _wait(self, place: int) -> None:
        self._partial = [*self._partial, place][-MAX_UNDECIDED:]

    def _followed(self) -> list[int]:
        """Places whose frame leads to another header, or to the end of a call."""
        believed, again, size = [], [], len(self._data)
        while self._ends and self._ends[0] <= size:
            end = heapq.heappop(self._ends)
            if self._data[end - 2 : end] != b"\r\n":
                del self._place[end]
            elif end == size or _HEADER.match(self._data, end):
                believed.append(self._place.pop(end))
            elif _PART.fullmatch(self._data, end):
                again.append(end)
            else:
                del self._place[end]
        for end in again:
            heapq.heappush(self._ends, end)
        return believed
