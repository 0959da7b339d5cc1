"""What is sought behind a hole: found in whatever pieces it comes, at a bounded cost."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from probes.requests import resync
from probes.requests.http1 import HttpStream
from probes.requests.resync import Piece, Seeker

HEAD = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


def calls_in(what: Callable[[], None]) -> int:
    """Calls of functions, Python's and C's, that `what` makes."""
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        what()
    finally:
        sys.setprofile(None)
    return calls


def seek(pieces: list[bytes], first: bool = True) -> Callable[[], None]:
    """A client's chunked request with a hole in it, and `pieces` behind the hole."""

    def run() -> None:
        stream = HttpStream(lambda exchange: None)
        stream.received(0, HEAD + b"5\r\nab", 20)
        for piece in pieces:
            stream.received(0, piece, first=first)

    return run


@pytest.mark.parametrize(
    "piece",
    [
        b"x",
        b"\r\nfffff\r\n" * 7,
        b"a;",
        b"1 ",
        b"1",
        b"POST x",
        b"\r\n1\r\nx",
        b"\r\n0\r\n\r\n.",
        b"\r\n7f\r\n",
    ],
)
@pytest.mark.parametrize("first", [True, False], ids=["calls", "parts"])
def test_the_cost_of_seeking_grows_with_what_came(piece: bytes, first: bool) -> None:
    few, many = (calls_in(seek([piece] * count, first)) for count in (100, 400))
    assert many < 5 * few


def test_places_that_lead_to_one_place_cost_once() -> None:
    """Each is the header of a frame that ends at the same header, which then comes byte by byte."""
    size, width = 20_000, 8
    data = bytearray()
    while len(data) < size:
        data += b"\r\n%06x\r\n" % (size - len(data) - 2 - width - 2)
    data = data[:size] + b"x" * max(0, size - len(data))
    data[-2:] = b"\r\n"
    header = b"1;" + b"x" * 180
    without, trickled = (
        calls_in(seek([bytes(data), *tail], False)) for tail in ([], [bytes([one]) for one in header])
    )
    assert trickled < without + 100 * len(header)


def test_seeking_is_given_up_and_counted() -> None:
    stream = HttpStream(lambda exchange: None)
    stream.received(0, HEAD + b"5\r\nab", 20)
    for _ in range(resync.MAX_SOUGHT):
        stream.received(0, b"x")
    assert stream.counts.get("desyncs", 0) == 0
    stream.received(0, b"x")
    assert stream.counts["desyncs"] == 1
    assert not stream.pending
    # The next request is read again.
    done: list[str] = []
    stream._on_exchange = lambda exchange: done.append(exchange.method)
    stream.received(0, b"GET / HTTP/1.1\r\n\r\n")
    stream.sent(0, b"HTTP/1.1 204 No Content\r\n\r\n")
    assert done == ["GET"]


def test_the_pieces_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resync, "MAX_PIECES", 8)
    seeker = Seeker()
    for _ in range(100):
        assert seeker.add(Piece(0, None, b"x", 0, True))
        assert len(seeker._pieces) <= 8
        assert seeker.found() is None


def cuts(data: bytes) -> Iterator[list[bytes]]:
    yield [data]
    yield [bytes([one]) for one in data]
    for at in range(1, len(data)):
        yield [data[:at], data[at:]]


@pytest.mark.parametrize(
    ("data", "at"),
    [
        (b"rest\r\n5\r\nhello\r\n3\r\nabc", 6),
        (b"rest\r\n5;name=value\r\nhello\r\n3 ;x\r\nabc", 6),
        (b"rest\r\n0\r\n\r\nHTTP/1.1 200 OK", 6),
        (b"\r\n2\r\nfalse\r\n6\r\nhello!\r\nA\r\n", 12),
    ],
)
def test_a_header_is_found_wherever_it_is_cut(data: bytes, at: int) -> None:
    for pieces in cuts(data):
        seeker = Seeker()
        rest = None
        got = b""
        for piece in pieces:
            seeker.add(Piece(0, None, piece, 0, False))
            got += piece
            rest = seeker.found()
            if rest is not None:
                break
        assert rest is not None
        assert b"".join(one.data for one in rest) == got[at:]


@pytest.mark.parametrize("data", [b"GET /path HTTP/1.1\r\n", b"DELETE / HTTP/1.0\r\nx: y\r\n"])
def test_a_start_line_is_found_wherever_it_is_cut(data: bytes) -> None:
    starts = HttpStream(lambda exchange: None)._requests.starts
    for pieces in cuts(data):
        seeker = Seeker()
        rest = None
        seeker.add(Piece(0, None, b"GET no request\r\n", 0, True))
        assert seeker.message(starts) is None
        for index, piece in enumerate(pieces):
            seeker.add(Piece(0, None, piece, 0, index == 0))
            rest = rest or seeker.message(starts)
        assert rest is not None
        assert rest[0].data == pieces[0]
