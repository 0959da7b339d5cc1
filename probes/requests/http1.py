"""Reading streamed HTTP/1.1 exchanges from copies of a server's socket traffic.

`HttpStream` is one connection as the server sees it: bytes that it read (requests) and bytes that it wrote
(responses), in order, in any fragmentation, each with the time of the call that moved them. It yields one
`Exchange` a request: when the request arrived, when each chunk with *content* was written, when the response
ended. Keep-alive, pipelining, chunked bodies, 1xx responses and bodies that end with the connection are
understood; so are holes, since the kernel part copies a bounded part of every call: a hole inside a body
costs what it hid, a hole elsewhere costs the requests in flight, and both make `Exchange.complete` false.

Content is what a model generated (`dialects`). Messages are cut by `framing`, events by `sse`.

The bytes come from a network, so nothing here trusts them: no input raises, memory is bounded by the
constants of these modules, and the result does not depend on where the bytes were cut.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import deque
from collections.abc import Callable
from typing import Final

from probes.requests.dialects import (
    bears_tokens,
    content_of,
    error_of,
    is_echo,
    read_answer,
    read_ids,
    read_prompt,
    read_role_flag,
    read_stream_flag,
    token_ids_of,
)
from probes.requests.exchange import MAX_ANSWER, MAX_BODY, MAX_CHUNKS, MAX_PENDING, Exchange
from probes.requests.framing import Framing, Malformed, MessageReader, content_length, header_fields
from probes.requests.sse import EventStream

METHODS: Final = (b"POST", b"GET", b"PUT", b"HEAD", b"DELETE", b"OPTIONS", b"PATCH", b"CONNECT", b"TRACE")
_REQUEST: Final = re.compile(rb"(?:" + b"|".join(METHODS) + rb") [^ \r\n]+ HTTP/1\.[01]\r\n")
_VERSIONS: Final = (b"HTTP/1.0\r\n", b"HTTP/1.1\r\n")
_RESPONSE: Final = re.compile(rb"HTTP/1\.[01] [1-5][0-9][0-9][ \r]")
_RESPONSE_BYTES: Final = len(b"HTTP/1.1 200 ")
"""Bytes in which `_RESPONSE` is decided."""
_EVENT_FIELDS: Final = (b"data:", b"event:")
_EVENT_BYTES: Final = 32
"""Bytes of an answer in which it shows whether it is a stream of events."""
MIN_RESPONSE: Final = 24
"""Bytes from the end of a chunked body to that of another response's start line, at least."""


def _may_start(data: bytes) -> bool:
    """Whether these bytes are the first part of a request's start line."""
    method, *rest = data.split(b" ", 2)
    if not rest:
        return any(one.startswith(method) for one in METHODS)
    if method not in METHODS or b"\r" in rest[0] or b"\n" in rest[0]:
        return False
    return len(rest) == 1 or (rest[0] != b"" and any(one.startswith(rest[1]) for one in _VERSIONS))


class _Requests(MessageReader):
    def __init__(self, owner: HttpStream) -> None:
        super().__init__()
        self._owner = owner
        self._exchange: Exchange | None = None
        self._body: bytearray | None = None

    def start(self, t: int) -> None:
        exchange = self._exchange = Exchange(t_arrival=t, t_read=self.called)
        self._owner.pending.append(exchange)
        if len(self._owner.pending) > MAX_PENDING:
            raise Malformed

    def head(self, t: int, lines: list[bytes]) -> tuple[Framing, int]:
        exchange = self._exchange
        if exchange is None:
            raise Malformed
        parts = lines[0].split(b" ") if lines else []
        if len(parts) != 3 or parts[0] not in METHODS or not parts[2].startswith(b"HTTP/1."):
            raise Malformed
        exchange.method = parts[0].decode("ascii")
        exchange.path = parts[1].split(b"?", 1)[0].decode("latin-1")
        fields = header_fields(lines[1:])
        read_ids(exchange, fields)
        self._body = bytearray() if b"content-encoding" not in fields else None
        if fields.get(b"transfer-encoding", b"").lower().endswith(b"chunked"):
            return Framing.CHUNK_SIZE, 0
        return Framing.LENGTH, content_length(fields.get(b"content-length", b"0"))

    def body(self, t: int, data: bytes) -> None:
        if self._body is not None and len(self._body) + len(data) <= MAX_BODY:
            self._body += data
        else:
            self._give_up_body(data)

    def body_hole(self, size: int) -> None:
        # What was hidden is the prompt's text, no measurement: the exchange is still whole.
        self._give_up_body(b"")

    def _give_up_body(self, data: bytes) -> None:
        """The body is not kept whole. `data` is a piece of it that came now."""
        kept, self._body = self._body, None
        if self._exchange is not None:
            piece = bytes(kept or b"") + data
            read_stream_flag(self._exchange, piece)
            read_role_flag(self._exchange, piece)

    def end(self, t: int) -> None:
        exchange, body = self._exchange, self._body
        self._exchange = self._body = None
        if exchange is not None and body:
            read_prompt(exchange, bytes(body))

    def body_resumes(self) -> None:
        pass

    def abandon(self) -> None:
        self._exchange = self._body = None

    def hides_message(self, size: int) -> bool:
        # A client that does not pipeline sends no other request before it has its response.
        return not self.goes_on()

    def goes_on(self) -> bool:
        return self._exchange is not None and self._exchange in self._owner.pending

    def starts(self, data: bytes) -> bool | None:
        return True if _REQUEST.match(data) else (None if _may_start(data) else False)

    def resumes(self, data: bytes) -> bool:
        return data.startswith(tuple(method + b" " for method in METHODS))


class _Responses(MessageReader):
    def __init__(self, owner: HttpStream) -> None:
        super().__init__()
        self._owner = owner
        self._exchange: Exchange | None = None
        self._events: EventStream | None = None
        self._answer: bytearray | None = None
        """Of an answer that is not known to be a stream: what came of it so far."""
        self._begun: tuple[int, int | None] = (0, None)
        """When the first byte of the message was sent, and the start of the call that wrote it."""
        self._interim = False
        self._resuming = False

    def start(self, t: int) -> None:
        self._begun = t, self.called

    def head(self, t: int, lines: list[bytes]) -> tuple[Framing, int]:
        parts = lines[0].split(b" ", 2) if lines else []
        if (
            len(parts) < 2
            or not parts[0].startswith(b"HTTP/1.")
            or len(parts[1]) != 3
            or not parts[1].isdigit()
        ):
            raise Malformed
        status, fields = int(parts[1]), header_fields(lines[1:])
        self._interim = 100 <= status < 200
        if not self._owner.pending:
            raise Malformed  # a response to nothing
        exchange = self._owner.pending[0]
        if status == 101:
            self._owner.count("upgraded")
        if status == 101 or (exchange.method == "CONNECT" and 200 <= status < 300):
            exchange.status = status
            self._owner.tunnel()
            return Framing.DEAD, 0
        if self._interim:
            return Framing.LENGTH, 0
        self._exchange, self._events, self._answer = exchange, None, None
        exchange.status = status
        exchange.t_answer, exchange.t_answer_write = self._begun
        if exchange.method == "HEAD" or status in (204, 304):
            return Framing.LENGTH, 0
        kind = fields.get(b"content-type", b"").split(b";", 1)[0].strip().lower()
        if kind in (b"text/event-stream", b"application/x-ndjson", b"application/jsonl"):
            exchange.streamed = True
            if fields.get(b"content-encoding", b"identity").lower() == b"identity":
                self._events = EventStream(kind == b"text/event-stream", self._event, self._overflow)
            else:
                exchange.whole = False
                self._owner.count("opaque_streams")
        elif b"content-encoding" not in fields and (
            kind == b"application/json" or (exchange.wants_stream and kind in (b"text/plain", b""))
        ):
            self._answer = bytearray()
        if fields.get(b"transfer-encoding", b"").lower().endswith(b"chunked"):
            return Framing.CHUNK_SIZE, 0
        if b"content-length" in fields:
            return Framing.LENGTH, content_length(fields[b"content-length"])
        return Framing.CLOSE, 0

    def body(self, t: int, data: bytes) -> None:
        if self._answer is not None:
            data = self._judge(data)
        if self._events is not None:
            if self._resuming and data:
                self._events.resume(data)
            self._resuming = False
            self._events.feed(t, data)

    def _judge(self, data: bytes) -> bytes:
        """Keep what came of an answer. Where it is a stream, whatever its type says (proxies of vLLM call
        theirs JSON), what there is of it so far: no JSON begins like an event."""
        answer, exchange = self._answer, self._exchange
        if answer is None or exchange is None:
            return b""
        first = not answer
        answer += data
        start = bytes(answer[:_EVENT_BYTES]).lstrip()
        if not first and len(answer) - len(data) >= _EVENT_BYTES:
            start = b""  # it was judged
        if start.startswith(_EVENT_FIELDS):
            exchange.streamed = True
            self._answer, self._events = None, EventStream(True, self._event, self._overflow)
            return bytes(answer)
        if len(answer) > MAX_ANSWER:
            self._answer = None
        return b""

    def _read_answer(self, exchange: Exchange, answer: bytes) -> None:
        with contextlib.suppress(ValueError, RecursionError):
            read_answer(exchange, json.loads(answer.decode("utf-8", "replace")))

    def body_resumes(self) -> None:
        self._resuming = True

    def body_hole(self, size: int) -> None:
        self._answer = None
        if self._events is not None and self._exchange is not None:
            self._exchange.whole = False
            self._events.hole()

    def _overflow(self) -> None:
        if self._exchange is not None:
            self._exchange.whole = False
        self._owner.count("events_unread")

    def _event(self, t: int, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None or data.strip() == b"[DONE]":
            return
        try:
            event = json.loads(data.decode("utf-8", "replace"))
            text = content_of(event)
        except (ValueError, RecursionError):
            # Not what a model server sends; it may have been content.
            exchange.whole = False
            self._owner.count("events_unread")
            return
        exchange.error = exchange.error or error_of(event)
        ids = token_ids_of(event)
        bears = bears_tokens(event, exchange.completion_tokens, ids)
        exchange.token_ids += ids
        read_answer(exchange, event)
        if isinstance(event, dict) and "meta_info" in event:
            # SGLang's own stream repeats the text so far, unless it was told not to: only its end tells.
            tail, exchange.text = exchange.text, f"{len(text)} {text[-64:]}"
            if tail == exchange.text:
                return
        if is_echo(exchange, text) if text else not bears:
            return
        if exchange.t_first is None:
            exchange.t_first, exchange.t_write = t, self.called
        if len(exchange.chunks) < MAX_CHUNKS:
            exchange.chunks.append(t)
        else:
            exchange.whole = False

    def end(self, t: int) -> None:
        if self._interim:
            self._interim = False
            return
        if self._events is not None:
            self._events.end(t)
        answer, self._answer = self._answer, None
        exchange, self._exchange, self._events = self._exchange, None, None
        if exchange is not None and self._owner.pending and self._owner.pending[0] is exchange:
            if answer:
                self._read_answer(exchange, bytes(answer))
            self._owner.pending.popleft()
            exchange.t_end = t
            exchange.complete = exchange.whole
            self._owner.finish(exchange)

    def abandon(self) -> None:
        exchange, self._exchange, self._events = self._exchange, None, None
        self._answer = None
        if exchange is not None and self._owner.pending and self._owner.pending[0] is exchange:
            self._owner.pending.popleft()
            exchange.complete = False
            self._owner.finish(exchange)

    def hides_message(self, size: int) -> bool:
        return len(self._owner.pending) > 1 and size >= MIN_RESPONSE

    def goes_on(self) -> bool:
        return True

    def starts(self, data: bytes) -> bool | None:
        if _RESPONSE.match(data):
            # Of three, one may have been answered in the hole.
            return len(self._owner.pending) == 2
        return None if len(data) < _RESPONSE_BYTES else False

    def resumes(self, data: bytes) -> bool:
        return bool(self._owner.pending) and data.startswith(b"HTTP/1.")


class HttpStream:
    """One connection of a server.

    `on_exchange` is called once for each request whose head was read, when its response ended or the
    connection was lost, in the order of the requests. `counts` collects what could not be read: ``desyncs``
    (holes that hid the start of a message, or behind which nothing was found), ``malformed`` (connections
    given up), ``opaque_streams`` (compressed event streams), ``events_unread`` (events that are too long or
    not JSON).
    """

    def __init__(self, on_exchange: Callable[[Exchange], None], counts: dict[str, int] | None = None) -> None:
        self._on_exchange = on_exchange
        self.counts: dict[str, int] = {} if counts is None else counts
        self.pending: deque[Exchange] = deque()
        self._requests = _Requests(self)
        self._responses = _Responses(self)

    def received(
        self, t: int, data: bytes, hole: int = 0, called: int | None = None, first: bool = True
    ) -> None:
        """`data`, then `hole` bytes not copied, arrived at `t`; the server had read them at `called`.
        `first`: they are the first of their call."""
        self._feed(self._requests, t, data, hole, called, first)

    def sent(self, t: int, data: bytes, hole: int = 0, called: int | None = None, first: bool = True) -> None:
        """`data`, then `hole` bytes not copied, left at `t`; the server began to write them at `called`."""
        self._feed(self._responses, t, data, hole, called, first)

    def close(self, t: int | None) -> None:
        """The connection was closed at `t`, or (None) is no longer watched. What is open is given up."""
        if t is not None:
            self._responses.closed(t)
        self._flush()
        self._requests.state = self._responses.state = Framing.DEAD

    def count(self, what: str) -> None:
        """Count something that was lost or not understood."""
        self.counts[what] = self.counts.get(what, 0) + 1

    def finish(self, exchange: Exchange) -> None:
        """Report an exchange, without the texts that were needed to understand it."""
        exchange.prompts, exchange.text = (), ""
        if exchange.method:
            self._on_exchange(exchange)

    def tunnel(self) -> None:
        """The connection speaks another protocol from here on."""
        self._requests.state = self._responses.state = Framing.DEAD
        self._flush()

    def _flush(self) -> None:
        while self.pending:
            exchange = self.pending.popleft()
            exchange.complete = False
            self.finish(exchange)

    def _feed(
        self, half: MessageReader, t: int, data: bytes, hole: int, called: int | None, first: bool
    ) -> None:
        try:
            if data:
                if half is self._requests and half.state is Framing.LOST and first and half.resumes(data):
                    half = self._reset()
                half.feed(t, data, called, first)
            if hole > 0 and half.state is not Framing.LOST and not half.hole(t, hole):
                self._lose(half)
        except Malformed:
            if half.holed:
                self._lose(half)  # what was taken for the framing was none
            else:
                self.count("malformed")
                self.tunnel()

    def _lose(self, half: MessageReader) -> None:
        """A hole may have hidden the start of a message: give up what is open, wait for the next one."""
        self.count("desyncs")
        self._flush()
        if half is self._requests:
            self._reset().state = Framing.LOST
        else:
            self._responses = _Responses(self)
            self._responses.state = Framing.LOST

    def _reset(self) -> _Requests:
        """Forget both halves' messages. The responses go on with the one to the next request."""
        self._requests = _Requests(self)
        self._responses = _Responses(self)
        self._responses.state = Framing.LOST
        return self._requests
