"""Requests that run, as they are told before they end."""

from __future__ import annotations

from streams import DONE, IN, LAST, OUT, ROLE, SSE, Recorder, chunk, event, request

from probes.feed.events import OpenRequests
from probes.requests.unanswered import MAX_LISTED, open_requests

STREAM = {"messages": [], "stream": True}


def told(r: Recorder) -> OpenRequests:
    return open_requests(99, 7, "python", [(5, exchange, False) for exchange in r.stream.pending])


def test_a_request_waits_until_its_first_content() -> None:
    r = Recorder()
    assert (told(r).in_flight, told(r).oldest_ns, told(r).waiting) == (0, None, [])
    r.put(IN, request(STREAM))
    assert (told(r).in_flight, told(r).oldest_ns, told(r).waiting) == (1, 0, [(5, 0)])
    r.put(OUT, SSE)
    r.put(OUT, chunk(ROLE))
    assert told(r).waiting == [(5, 0)]
    r.put(OUT, chunk(event({"content": "a"})))
    assert (told(r).in_flight, told(r).oldest_ns, told(r).waiting) == (1, 0, [])
    r.put(OUT, chunk(DONE) + LAST)
    assert told(r).in_flight == 0


def test_who_asked_for_no_stream_has_no_first_token_to_wait_for() -> None:
    for body, path in (
        ({"messages": []}, "/v1/chat/completions"),
        ({"stream": False}, "/api/chat"),
        (None, "/health"),
    ):
        r = Recorder()
        r.put(IN, request(body, path))
        assert (told(r).in_flight, told(r).waiting) == (1, [])


def test_an_answer_that_is_no_stream_is_none_to_wait_for() -> None:
    r = Recorder()
    r.put(IN, request(STREAM))
    r.put(OUT, b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{")
    assert (told(r).in_flight, told(r).waiting) == (1, [])


def test_a_stream_that_cannot_be_read_or_has_failed_is_not_said_to_wait() -> None:
    for head, part in (
        (SSE.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n"), chunk(b"\x1f\x8b")),
        (SSE, chunk(b'data: {"error": "died"}\n\n')),
        (SSE, chunk(b"data: no JSON\n\n")),
    ):
        r = Recorder()
        r.put(IN, request(STREAM))
        r.put(OUT, head)
        r.put(OUT, part)
        assert (told(r).in_flight, told(r).waiting) == (1, [])


def test_the_oldest_are_listed_and_the_rest_is_counted() -> None:
    r = Recorder()
    r.put(IN, request(STREAM))
    (exchange,) = r.stream.pending
    many = []
    for i in range(MAX_LISTED + 10):
        one = type(exchange)(t_arrival=10_000 - i, wants_stream=True)
        many.append((i, one, i % 2 == 0))
    seen = open_requests(99, 7, "python", many)
    assert (seen.in_flight, len(seen.waiting), seen.unlisted) == (MAX_LISTED + 10, MAX_LISTED, 10)
    assert seen.inner == list(range(1, MAX_LISTED, 2))
    assert seen.waiting[0] == (MAX_LISTED + 9, seen.oldest_ns)
