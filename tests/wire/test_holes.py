"""Holes in what is copied of a connection: each costs what it hid, and never more than it may have hidden."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from streams import DONE, IN, LAST, OUT, ROLE, SSE, Recorder, chunk, event, request, stream_of


def test_hole_that_hid_the_end_of_a_body_ends_with_the_next_response() -> None:
    r = Recorder()
    r.put(IN, request({}, "/1"))
    r.put(OUT, SSE + chunk(event({"content": "a"})), 1000)
    r.put(IN, request({}, "/2"))
    r.put(OUT, stream_of("b"))
    assert [(x.path, x.chunks, x.t_end, x.complete) for x in r.done] == [
        ("/1", [1], None, False),
        ("/2", [3], 3, True),
    ]


def test_hole_that_may_have_hidden_the_next_response_gives_both_up() -> None:
    r = Recorder()
    r.put(IN, request({}, "/1"))
    r.put(OUT, SSE + chunk(event({"content": "a"})))
    r.put(IN, request({}, "/2"))
    r.put(OUT, b"", 1000)
    r.put(OUT, chunk(event({"content": "whose?"})) + LAST)
    r.put(IN, request({}, "/3"))
    r.put(OUT, stream_of("c"))
    assert [(x.path, x.chunks, x.complete) for x in r.done] == [
        ("/1", [1], False),
        ("/2", [], False),
        ("/3", [6], True),
    ]
    assert r.stream.counts == {"desyncs": 1}


def test_hole_in_a_chunked_request_costs_only_the_prompt() -> None:
    r = Recorder()
    body = json.dumps({"prompt": "x" * 3000}).encode()
    r.put(
        IN,
        b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(body[:500])[:90],
        900,
    )
    r.put(IN, chunk(body[1400:]) + b"0\r\n\r\n")
    r.put(OUT, stream_of("a"))
    r.put(IN, request({"prompt": "abc"}, "/2"))
    r.put(OUT, stream_of("b"))
    assert [(x.path, x.prompt_chars, x.chunks, x.complete) for x in r.done] == [
        ("/v1/completions", None, [2], True),
        ("/2", 3, [4], True),
    ]
    assert r.stream.counts == {}


# Holes at any place of streams that are cut into any writes.


def written(deltas: list[str], frames: list[int], style: int) -> bytes:
    """A chunked answer: a frame an event, or frames of any size, whatever the events."""
    events = [ROLE, *(event({"content": text}) for text in deltas), DONE]
    if style == 1:
        events = [one.replace(b"\n", b"\r\n") for one in events]
    if style < 2 or not frames:
        return SSE + b"".join(map(chunk, events)) + LAST
    body, at, out = b"".join(events), 0, SSE
    for i in range(len(body)):
        size = frames[i % len(frames)]
        if at >= len(body):
            break
        out += chunk(body[at : at + size])
        at += size
    return out + LAST


TEXTS = st.text(alphabet='ab5 \r\n"{}0', max_size=12)


@given(
    answers=st.lists(
        st.tuples(st.lists(TEXTS, min_size=1, max_size=6), st.lists(st.integers(1, 90), max_size=4)),
        min_size=1,
        max_size=3,
    ),
    style=st.integers(0, 2),
    cuts=st.lists(st.integers(1, 400), min_size=1, max_size=8),
    hole=st.tuples(st.integers(0, 2), st.integers(0, 3000), st.integers(1, 1500)),
)
@settings(max_examples=200, deadline=None)
def test_a_hole_never_makes_a_wrong_request_nor_ends_a_connection(
    answers: list[tuple[list[str], list[int]]],
    style: int,
    cuts: list[int],
    hole: tuple[int, int, int],
) -> None:
    r = Recorder()
    which, begin, size = hole
    which %= len(answers)
    for i, (deltas, frames) in enumerate(answers):
        r.put(IN, request({"messages": []}, f"/{i}"))
        data = written(deltas, frames, style)
        head = len(SSE)
        first, last = (head + begin % (len(data) - head), len(data)) if i == which else (len(data), len(data))
        last = min(last, first + size)
        at = step = 0
        while at < len(data):
            n = min(cuts[step % len(cuts)], len(data) - at)
            step += 1
            # Of this write, what is copied before the hole, the hole, and what is copied behind it.
            before = data[at : min(at + n, max(at, first))]
            behind = data[max(at, min(last, at + n)) : at + n] if at + n > first else b""
            r.stream.sent(r.t, before, n - len(before) - len(behind), called=step)
            if behind:
                r.stream.sent(r.t, behind, called=step, first=len(behind) == n)
            r.t += 1
            at += n
    # A last request shows that the connection is still read.
    r.put(IN, request({}, "/last"))
    r.put(OUT, stream_of("x"))
    assert [x.path for x in r.done] == [*(f"/{i}" for i in range(len(answers))), "/last"]
    assert r.done[-1].complete
    assert len(r.done[-1].chunks) == 1
    assert r.stream.counts.get("malformed", 0) == 0
    for i, x in enumerate(r.done[:-1]):
        truth = sum(map(bool, answers[i][0]))
        assert x.status == 200
        assert len(x.chunks) <= truth
        assert x.complete == (i != which), "what lost a part is not whole, and nothing else lost any"
        if i != which:
            assert len(x.chunks) == truth
