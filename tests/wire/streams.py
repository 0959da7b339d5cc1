"""HTTP/1.1 traffic of model servers, made for tests, and a recorder of what is read of it."""

from __future__ import annotations

import json

from probes.requests.exchange import Exchange
from probes.requests.http1 import HttpStream

IN, OUT = "in", "out"
Traffic = list[tuple[str, bytes]]


def request(
    body: object = None, path: str = "/v1/chat/completions", method: str = "POST", more: str = ""
) -> bytes:
    raw = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\n{more}"
    return (head + f"Content-Length: {len(raw)}\r\n\r\n").encode() + raw


def event(delta: dict[str, object] | None, **more: object) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": None}]
    return (
        b"data: "
        + json.dumps({"object": "chat.completion.chunk", "choices": choices, **more}).encode()
        + b"\n\n"
    )


def chunk(data: bytes) -> bytes:
    return b"%x\r\n" % len(data) + data + b"\r\n"


SSE = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
LAST = b"0\r\n\r\n"
ROLE = event({"role": "assistant", "content": ""})
DONE = b"data: [DONE]\n\n"


class Recorder:
    """Feeds traffic at the times 0, 1, 2 ... and keeps the exchanges."""

    def __init__(self) -> None:
        self.done: list[Exchange] = []
        self.stream = HttpStream(self.done.append)
        self.t = 0

    def put(self, direction: str, data: bytes, hole: int = 0) -> None:
        (self.stream.received if direction == IN else self.stream.sent)(self.t, data, hole)
        self.t += 1


def stream_of(*deltas: str) -> bytes:
    return (
        SSE
        + b"".join(chunk(part) for part in (ROLE, *(event({"content": text}) for text in deltas), DONE))
        + LAST
    )


PROMPT = "Tell me a story about ships"


def run_stream(body: object, *deltas: str) -> Exchange:
    r = Recorder()
    r.put(IN, request(body))
    r.put(OUT, SSE)
    for text in deltas:
        r.put(OUT, chunk(event({"content": text})))
    r.put(OUT, LAST)
    return r.done[0]


def run_events(*events: object, kind: bytes = b"text/event-stream") -> Exchange:
    r = Recorder()
    r.put(IN, request({}))
    r.put(OUT, b"HTTP/1.1 200 OK\r\nContent-Type: " + kind + b"\r\nTransfer-Encoding: chunked\r\n\r\n")
    for one in events:
        data = json.dumps(one).encode()
        lines = kind in (b"application/x-ndjson", b"application/jsonl")
        r.put(OUT, chunk(data + b"\n" if lines else b"data: " + data + b"\n\n"))
    r.put(OUT, LAST)
    return r.done[0]
