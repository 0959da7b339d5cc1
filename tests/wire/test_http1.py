"""The HTTP reader: what it understands, and that no bytes, however cut, upset it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import (
    DONE,
    IN,
    LAST,
    OUT,
    PROMPT,
    ROLE,
    SSE,
    Recorder,
    Traffic,
    chunk,
    event,
    request,
    run_stream,
    stream_of,
)

from probes.requests import exchange, framing, http1, sse
from probes.requests.exchange import Exchange
from probes.requests.http1 import HttpStream


def test_first_content_is_not_the_role_chunk() -> None:
    r = Recorder()
    r.put(IN, request({"messages": [{"role": "user", "content": "héllo"}], "stream": True}))
    for part in (
        SSE,
        chunk(ROLE),
        chunk(event({"content": "a"})),
        chunk(event({"content": ""})),
        chunk(event({"content": "b"})),
        chunk(event(None, usage={"total_tokens": 3})),
        chunk(DONE),
        LAST,
    ):
        assert r.done == []
        r.put(OUT, part)
    (x,) = r.done
    assert (x.t_arrival, x.t_first, x.t_end, x.chunks) == (0, 3, 8, [3, 5])
    assert (x.method, x.path, x.status, x.prompt_chars, x.complete) == (
        "POST",
        "/v1/chat/completions",
        200,
        5,
        True,
    )


def test_an_event_counts_when_its_end_is_written() -> None:
    r = Recorder()
    r.put(IN, request({}))
    whole = chunk(event({"content": "abc"}))
    r.put(OUT, SSE + whole[:20])
    r.put(OUT, whole[20:])
    r.put(OUT, LAST)
    assert r.done[0].chunks == [2]


def test_several_events_in_one_write() -> None:
    r = Recorder()
    r.put(IN, request({}))
    r.put(OUT, SSE + chunk(ROLE + event({"content": "a"}) + event({"content": "b"})))
    r.put(OUT, chunk(DONE) + LAST)
    assert r.done[0].chunks == [1, 1]


def test_keep_alive_and_pipelining_keep_order() -> None:
    r = Recorder()
    r.put(IN, request({"prompt": "a"}, "/1?x=y") + request(method="GET", path="/2"))
    r.put(IN, request({"prompt": "abc"}, "/3"))
    r.put(OUT, stream_of("x"))
    r.put(OUT, b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno" + stream_of("y", "z"))
    assert [(x.path, x.status, x.t_arrival, x.t_end, len(x.chunks)) for x in r.done] == [
        ("/1", 200, 0, 2, 1),
        ("/2", 404, 0, 3, 0),
        ("/3", 200, 1, 3, 2),
    ]
    assert [x.prompt_chars for x in r.done] == [1, None, 3]


def test_interim_head_and_empty_responses() -> None:
    r = Recorder()
    r.put(
        IN,
        request({"a": 1}, "/1", more="Expect: 100-continue\r\n")
        + request(method="HEAD", path="/2")
        + request(method="DELETE", path="/3"),
    )
    r.put(OUT, b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    r.put(OUT, b"HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")
    assert [(x.path, x.status, x.complete) for x in r.done] == [
        ("/1", 200, True),
        ("/2", 200, True),
        ("/3", 204, True),
    ]


def test_body_that_ends_with_the_connection() -> None:
    r = Recorder()
    r.put(IN, request({}))
    r.put(OUT, b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + event({"content": "a"}))
    r.stream.close(9)
    assert (r.done[0].t_first, r.done[0].t_end, r.done[0].complete) == (1, 9, True)


def test_cut_off_response() -> None:
    r = Recorder()
    r.put(IN, request({}))
    r.put(OUT, SSE + chunk(event({"content": "a"})))
    r.stream.close(9)
    assert (r.done[0].t_first, r.done[0].t_end, r.done[0].complete) == (1, None, False)


def test_chunked_request_and_trailers() -> None:
    r = Recorder()
    body = json.dumps({"prompt": ["ab", "cd"]}).encode()
    r.put(
        IN,
        b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunk(body[:5])
        + chunk(body[5:])
        + b"0\r\nX: y\r\n\r\n",
    )
    r.put(OUT, stream_of("q"))
    assert (r.done[0].prompt_chars, r.done[0].complete) == (4, True)


def test_upgrade_ends_the_reading() -> None:
    r = Recorder()
    r.put(IN, request(method="GET", path="/ws"))
    r.put(OUT, b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x05hello")
    r.put(IN, b"\x81\x85....")
    assert [(x.status, x.complete) for x in r.done] == [(101, False)]
    assert r.stream.counts == {"upgraded": 1}


def test_compressed_stream_is_not_measured_but_counted() -> None:
    r = Recorder()
    r.put(IN, request({}))
    r.put(
        OUT,
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\n"
        b"Content-Length: 3\r\n\r\nabc",
    )
    assert (r.done[0].t_first, r.done[0].complete) == (None, False)
    assert r.stream.counts == {"opaque_streams": 1}


# Echo.


def test_hole_in_a_request_body_costs_only_the_prompt() -> None:
    r = Recorder()
    raw = request({"prompt": "x" * 1000})
    r.put(IN, raw[:300], len(raw) - 300)
    r.put(OUT, stream_of("a", "b"))
    assert (r.done[0].prompt_chars, r.done[0].complete, len(r.done[0].chunks)) == (None, True, 2)


def test_hole_in_a_chunk_costs_its_events() -> None:
    r = Recorder()
    r.put(IN, request({}))
    first, second = event({"content": "a"}), event({"content": "b"})
    r.put(OUT, SSE + b"%x\r\n" % len(first + second) + first[:-10], 10 + len(second))
    r.put(OUT, b"\r\n" + chunk(b"\n" + event({"content": "c"})) + LAST)
    assert (r.done[0].chunks, r.done[0].complete) == ([2], False)
    assert r.stream.counts == {}


def test_hole_over_a_boundary_costs_that_part_of_the_body() -> None:
    r = Recorder()
    r.put(IN, request({}, "/1"))
    r.put(OUT, SSE + chunk(event({"content": "a"})))
    r.put(OUT, b"", 100)
    r.put(OUT, chunk(event({"content": "b"})) + LAST)
    assert [(x.path, x.chunks, x.t_end, x.complete) for x in r.done] == [("/1", [1, 3], 3, False)]
    r.put(IN, request({}, "/2"))
    r.put(OUT, stream_of("b"))
    assert [(x.path, x.chunks, x.complete) for x in r.done[1:]] == [("/2", [5], True)]
    assert r.stream.counts == {}


# Limits.


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /x HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /x HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /x HTTP/1.1\r\nContent-Length: 1" + b"0" * 40 + b"\r\n\r\n",
        b"POST /x HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 2000,
        b"GET /" + b"x" * (framing.MAX_HEAD + 10),
        b"GET / HTTP/1.1\r\n\r\n" * (exchange.MAX_PENDING + 1),
    ],
)
def test_malformed_ends_the_reading(raw: bytes) -> None:
    r = Recorder()
    r.put(IN, raw + b"\r\n\r\n")
    assert r.stream.counts == {"malformed": 1}
    assert not any(x.complete for x in r.done)
    r.put(IN, request({}))
    r.put(OUT, stream_of("a"))
    assert not any(x.chunks for x in r.done)


@pytest.mark.parametrize("data", [b"{", b"[" * 100_000, b"1" * 5000, b"\xff\xfe", b"x" * (sse.MAX_EVENT + 1)])
def test_unreadable_events_are_counted(data: bytes) -> None:
    r = Recorder()
    r.put(IN, request({}))
    r.put(OUT, SSE + chunk(b"data: " + data + b"\n\n") + chunk(event({"content": "a"})) + LAST)
    assert r.stream.counts == {"events_unread": 1}
    assert (r.done[0].chunks, r.done[0].complete) == ([1], False)


def test_a_long_stream_keeps_a_bounded_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "MAX_CHUNKS", 10)
    assert len(run_stream({}, *["a"] * 30).chunks) == 10


KEYS = (
    *("choices", "delta", "content", "text", "token", "special", "message", "meta_info", "usage", "details"),
    *(
        "response",
        "tool_calls",
        "function",
        "function_call",
        "arguments",
        "prompt_tokens",
        "completion_tokens",
    ),
    *("messages", "role", "prompt", "inputs", "echo", "type", "thinking", "eval_count"),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(body=JSON, events=st.lists(JSON, max_size=4))
@settings(max_examples=300, deadline=None)
def test_any_json_is_read_without_complaint(body: object, events: list[object]) -> None:
    r = Recorder()
    raw = json.dumps(body).encode()
    r.put(IN, b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw)
    r.put(OUT, SSE + b"".join(chunk(b"data: " + json.dumps(one).encode() + b"\n\n") for one in events) + LAST)
    (x,) = r.done
    assert len(x.chunks) <= len(events)
    assert x.completion_tokens is None or 0 <= x.completion_tokens < 2**31


# Fuzz.


def outcome(traffic: Traffic) -> tuple[list[Exchange], dict[str, int]]:
    """The exchanges, all at time 0, of traffic put in as it is cut."""
    done: list[Exchange] = []
    stream = HttpStream(done.append)
    for direction, data in traffic:
        (stream.received if direction == IN else stream.sent)(0, data)
        assert bounded(stream)
    stream.close(0)
    return done, stream.counts


def bounded(stream: HttpStream) -> bool:
    held = len(stream.pending) * 1000
    for half in (stream._requests, stream._responses):
        held += len(half._head)
    return held <= 2 * framing.MAX_HEAD + exchange.MAX_PENDING * 1000 + 8


def cut(traffic: Traffic, draw: Callable[[st.SearchStrategy[int]], int]) -> Traffic:
    pieces: Traffic = []
    for direction, data in traffic:
        at = 0
        while at < len(data):
            n = draw(st.integers(1, max(1, min(len(data) - at, 40))))
            pieces.append((direction, data[at : at + n]))
            at += n
    return pieces


FRAGMENTS = [
    request({"messages": [{"content": PROMPT}]}),
    request({"prompt": "x", "echo": True}),
    request(method="GET"),
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
    SSE,
    ROLE,
    DONE,
    LAST,
    b"\r\n",
    b"\n",
    b"\r",
    b"data: ",
    b"0\r\n",
    b"5\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 101 X\r\n\r\n",
    b"HTTP/1.1 204 No\r\n\r\n",
    b"Content-Length: 5\r\n",
    event({"content": "tok"}),
    chunk(event({"content": "a"})),
    chunk(event({"content": "b"}).replace(b"\n", b"\r\n")),
    stream_of("a", "b"),
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nContent-Length: 40\r\n\r\n",
    b'{"message":{"content":"a"}}\n',
    chunk(b'data: {"text":"a","meta_info":{"prompt_tokens":1,"completion_tokens":2}}\n\n'),
    chunk(
        b'data: {"usage":{"prompt_tokens":[],"completion_tokens":1e99},'
        b'"choices":[{"delta":{"tool_calls":[[]]}}]}\n\n'
    ),
]
PIECES = st.lists(
    st.tuples(st.sampled_from([IN, OUT]), st.sampled_from(FRAGMENTS) | st.binary(max_size=30)), max_size=12
)


@given(traffic=PIECES, data=st.data())
@settings(max_examples=400, deadline=None)
def test_any_bytes_in_any_fragmentation_give_the_same(traffic: Traffic, data: st.DataObject) -> None:
    assert outcome(cut(traffic, data.draw)) == outcome(traffic)


@given(texts=st.lists(st.lists(st.text(max_size=5), max_size=4), min_size=1, max_size=3), data=st.data())
@settings(max_examples=150, deadline=None)
def test_every_content_chunk_is_found(texts: list[list[str]], data: st.DataObject) -> None:
    traffic = [
        (IN, request({"messages": [{"content": PROMPT}]}) * len(texts)),
        (OUT, b"".join(stream_of(*deltas) for deltas in texts)),
    ]
    done, counts = outcome(cut(traffic, data.draw))
    assert [len(x.chunks) for x in done] == [sum(map(bool, deltas)) for deltas in texts]
    assert all(x.complete for x in done)
    assert counts == {}


@given(traffic=PIECES, holes=st.lists(st.integers(0, 200), min_size=12, max_size=12))
@settings(max_examples=300, deadline=None)
def test_holes_never_raise_and_never_pass_for_whole(traffic: Traffic, holes: list[int]) -> None:
    done: list[Exchange] = []
    stream = HttpStream(done.append)
    for (direction, data), hole in zip(traffic, holes, strict=False):
        (stream.received if direction == IN else stream.sent)(0, data, hole)
        assert bounded(stream)
    stream.close(None)
    assert all(x.t_end is not None for x in done if x.complete)


# What fuzz seldom hits.


def test_an_event_of_several_lines_with_crlf_is_one_wherever_it_is_cut() -> None:
    body = b'data: {"choices":\r\ndata: [{"delta":{"content":"a"}}]}\r\n\r\n'
    traffic = SSE + chunk(body) + LAST
    for at in range(len(traffic)):
        r = Recorder()
        r.put(IN, request({}))
        r.put(OUT, traffic[:at])
        r.put(OUT, traffic[at:])
        assert (len(r.done[0].chunks), r.done[0].complete) == (1, True), at


def test_a_long_line_in_pieces_is_as_long() -> None:
    r = Recorder()
    r.put(IN, request({}))
    half = b"x" * (sse.MAX_EVENT * 2 // 3)
    r.put(OUT, SSE + chunk(b"data: " + half))
    r.put(OUT, chunk(half + b"\n\n") + chunk(event({"content": "a"})) + LAST)
    assert r.stream.counts == {"events_unread": 1}
    assert (r.done[0].chunks, r.done[0].complete) == ([2], False)


def test_a_hole_longer_than_the_body_loses_the_next_start() -> None:
    r = Recorder()
    r.put(IN, request({}, "/1") + request({}, "/2"))
    r.put(OUT, b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345", 6)
    assert [(x.path, x.complete) for x in r.done] == [("/1", False), ("/2", False)]
    assert r.stream.counts == {"desyncs": 1}


def test_the_late_response_to_a_request_that_was_given_up_is_passed_over() -> None:
    r = Recorder()
    r.put(IN, request({}, "/1"))
    r.put(IN, b"", 100)
    r.put(OUT, stream_of("late"))
    r.put(IN, request({}, "/2"))
    r.put(OUT, stream_of("a"))
    assert [(x.path, x.complete, len(x.chunks)) for x in r.done] == [("/1", False, 0), ("/2", True, 1)]
    assert r.stream.counts == {"desyncs": 1}
