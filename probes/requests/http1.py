"""Reading streamed HTTP/1.1 exchanges from copies of a server's socket traffic.

`HttpStream` is one connection as the server sees it: bytes that it read (requests) and bytes that it wrote
(responses), in order, in any fragmentation, each with the time of the call that moved them. It yields one
`Exchange` a request: when the request arrived, when each chunk with *content* was written, when the response
ended. Keep-alive, pipelining, chunked bodies, 1xx responses and bodies that end with the connection are
understood; so are holes, since the kernel part copies a bounded prefix of every call: a hole inside a body
costs what it hid, a hole elsewhere costs the requests in flight, and both make `Exchange.complete` false.

Content is what a model generated: `content_of` knows the streams of OpenAI-compatible chat, completions
and responses, Anthropic messages, SGLang's own, Hugging Face TGI, Ollama and llama.cpp. The role chunk has no
content. An echoed prompt has none either: with ``"echo": true`` in the request all chunks up to the prompt's
end are taken as echo; without it, a first chunk that holds the whole text of the last message, of the
user's last message or of the prompt, if that has `ECHO_MIN_CHARS` or more. Tokens are what the server says in
its usage statistics (`usage_of`).

The bytes come from a network, so nothing here trusts them: no input raises, memory is bounded by the
constants below, and the result does not depend on where the bytes were cut.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Final

MAX_HEAD: Final = 64 * 1024
"""Bytes of one message's start line and headers."""
MAX_LINE: Final = 1024
"""Bytes of a chunk-size line."""
MAX_BODY: Final = 1024 * 1024
"""Bytes of a request's body that are kept to read its prompt; a longer body's prompt is unknown."""
MAX_EVENT: Final = 256 * 1024
"""Bytes of one SSE event or JSON line."""
MAX_PENDING: Final = 256
"""Requests of one connection that wait for their response."""
MAX_CHUNKS: Final = 50_000
"""Content chunks of one exchange whose times are kept."""
MAX_DEPTH: Final = 12
"""Nesting of a request's message parts that is followed for its text."""
ECHO_MIN_CHARS: Final = 16

METHODS: Final = (b"POST", b"GET", b"PUT", b"HEAD", b"DELETE", b"OPTIONS", b"PATCH", b"CONNECT", b"TRACE")


@dataclass(slots=True)
class Exchange:
    """One request and its response. Times are in the unit of the `HttpStream.feed` calls (ns)."""

    t_arrival: int
    method: str = ""
    path: str = ""
    status: int | None = None
    t_first: int | None = None
    t_end: int | None = None
    chunks: list[int] = field(default_factory=list)
    t_read: int | None = None
    """When the server's read of the request's first byte was through."""
    t_write: int | None = None
    """When the server began to write the first content; `t_first` is when it was sent."""
    prompt_chars: int | None = None
    complete: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    # What follows is for the parser.
    whole: bool = True
    prompts: tuple[str, ...] = ()
    """What an echo would repeat."""
    text: str = ""
    """Of a stream whose events repeat the text so far: its end."""
    echo: bool = False
    echoed: int = 0
    streamed: bool = False
    """The response was a stream of events."""


class _State(Enum):
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


class _Malformed(Exception):
    pass


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

    def end(self, t: int) -> None:
        if self._part and not self._skip:
            self._on_line(t, bytes(self._part))
        self._part.clear()


class _Events:
    """An event stream, or JSON lines: calls `on_event` with each event's data."""

    def __init__(
        self, sse: bool, on_event: Callable[[int, bytes], None], on_overflow: Callable[[], None]
    ) -> None:
        self._sse, self._on_event, self._on_overflow = sse, on_event, on_overflow
        self._data: list[bytes] = []
        self._size = 0
        self._skip = False
        self._lines = _Lines(self._line, self._lost)
        self.feed, self.hole = self._lines.feed, self._hole

    def _line(self, t: int, line: bytes) -> None:
        if not self._sse:
            if line:
                self._on_event(t, line)
        elif not line:
            data, skip = self._data, self._skip
            self._data, self._size, self._skip = [], 0, False
            if data and not skip:
                self._on_event(t, b"\n".join(data))
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

    def end(self, t: int) -> None:
        self._lines.end(t)


class _Half:
    """One direction: cuts the bytes into messages. What the messages mean is said by the four hooks."""

    def __init__(self) -> None:
        self.state = _State.START
        self._head = bytearray()
        self._left = 0
        self._trailer = 0

    # Hooks. `head` returns (framing state, length).
    def start(self, t: int) -> None:
        raise NotImplementedError

    def head(self, t: int, lines: list[bytes]) -> tuple[_State, int]:
        raise NotImplementedError

    def body(self, t: int, data: bytes) -> None:
        raise NotImplementedError

    def body_hole(self, size: int) -> None:
        raise NotImplementedError

    def end(self, t: int) -> None:
        raise NotImplementedError

    def resumes(self, data: bytes) -> bool:
        """Whether these first bytes of a call start a message, after the stream was lost."""
        raise NotImplementedError

    def feed(self, t: int, data: bytes) -> None:
        """Raises `_Malformed`; the caller kills the connection."""
        if self.state is _State.LOST and self.resumes(data):
            self.state = _State.START
        at, size = 0, len(data)
        while at < size:
            state = self.state
            if state is _State.START:
                # A server ignores empty lines before a request (RFC 9112, 2.2).
                while at < size and data[at] in b"\r\n":
                    at += 1
                if at < size:
                    self.start(t)
                    self._head.clear()
                    self.state = _State.HEAD
            elif state is _State.HEAD:
                at = self._feed_head(t, data, at)
            elif state in (_State.LENGTH, _State.CHUNK):
                n = min(self._left, size - at)
                self.body(t, data[at : at + n])
                at += n
                self._take(t, n)
            elif state is _State.CLOSE:
                self.body(t, data[at:])
                at = size
            elif state in (_State.CHUNK_SIZE, _State.CHUNK_END, _State.TRAILERS):
                at = self._feed_line(t, data, at)
            else:
                at = size

    def _take(self, t: int, n: int) -> None:
        self._left -= n
        if self._left == 0:
            if self.state is _State.LENGTH:
                self._end(t)
            else:
                self.state = _State.CHUNK_END

    def _end(self, t: int) -> None:
        if self.state is not _State.DEAD:
            self.state = _State.START
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
                raise _Malformed
            return at + len(self._head) - old
        lines = [line.rstrip(b"\r") for line in bytes(self._head[:end]).split(b"\n")][:-2]
        self._head.clear()
        framing, length = self.head(t, lines)
        if self.state is _State.DEAD:
            return len(data)
        self.state, self._left = framing, length
        if framing is _State.LENGTH and length == 0:
            self._end(t)
        return at + end - old

    def _feed_line(self, t: int, data: bytes, at: int) -> int:
        found = data.find(b"\n", at)
        stop = len(data) if found < 0 else found + 1
        if len(self._head) + stop - at > MAX_LINE:
            raise _Malformed
        self._head += data[at:stop]
        if found >= 0:
            line = bytes(self._head).rstrip(b"\r\n")
            self._head.clear()
            self._line(t, line)
        return stop

    def _line(self, t: int, line: bytes) -> None:
        if self.state is _State.CHUNK_SIZE:
            digits = line.split(b";", 1)[0].strip(b" \t")
            if not 1 <= len(digits) <= 15 or digits.strip(b"0123456789abcdefABCDEF"):
                raise _Malformed
            self._left = int(digits, 16)
            self._trailer = 0
            self.state = _State.CHUNK if self._left else _State.TRAILERS
        elif self.state is _State.CHUNK_END:
            if line:
                raise _Malformed
            self.state = _State.CHUNK_SIZE
        elif line:
            self._trailer += len(line) + 1
            if self._trailer > MAX_HEAD:
                raise _Malformed
        else:
            self._end(t)

    def hole(self, t: int, size: int) -> bool:
        """`size` bytes are missing here. False: they hid where the next message starts."""
        if self.state in (_State.LENGTH, _State.CHUNK) and size <= self._left:
            self.body_hole(size)
            self._take(t, size)
            return True
        if self.state is _State.CLOSE:
            self.body_hole(size)
            return True
        return self.state is _State.DEAD

    def closed(self, t: int) -> None:
        if self.state is _State.CLOSE:
            self._end(t)

    @property
    def at_start(self) -> bool:
        return self.state is _State.START


def _headers(lines: list[bytes]) -> dict[bytes, bytes]:
    """Header fields, names in lower case; of a repeated field the values are joined by a comma."""
    fields: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon:
            raise _Malformed
        name, value = name.strip().lower(), value.strip()
        fields[name] = fields[name] + b"," + value if name in fields else value
    return fields


def _length(value: bytes) -> int:
    """A Content-Length. Repeats of the same number are one (RFC 9112, 6.3)."""
    numbers = {part.strip() for part in value.split(b",")}
    if len(numbers) != 1:
        raise _Malformed
    number = numbers.pop()
    if not number.isdigit() or len(number) > 18:
        raise _Malformed
    return int(number)


class _Requests(_Half):
    def __init__(self, owner: HttpStream) -> None:
        super().__init__()
        self._owner = owner
        self._exchange: Exchange | None = None
        self._body: bytearray | None = None

    def start(self, t: int) -> None:
        exchange = self._exchange = Exchange(t_arrival=t, t_read=self._owner.called)
        self._owner.pending.append(exchange)
        if len(self._owner.pending) > MAX_PENDING:
            raise _Malformed

    def head(self, t: int, lines: list[bytes]) -> tuple[_State, int]:
        exchange = self._exchange
        if exchange is None:
            raise _Malformed
        parts = lines[0].split(b" ") if lines else []
        if len(parts) != 3 or parts[0] not in METHODS or not parts[2].startswith(b"HTTP/1."):
            raise _Malformed
        exchange.method = parts[0].decode("ascii")
        exchange.path = parts[1].split(b"?", 1)[0].decode("latin-1")
        fields = _headers(lines[1:])
        self._body = bytearray() if b"content-encoding" not in fields else None
        if fields.get(b"transfer-encoding", b"").lower().endswith(b"chunked"):
            return _State.CHUNK_SIZE, 0
        return _State.LENGTH, _length(fields.get(b"content-length", b"0"))

    def body(self, t: int, data: bytes) -> None:
        if self._body is not None:
            if len(self._body) + len(data) > MAX_BODY:
                self._body = None
            else:
                self._body += data

    def body_hole(self, size: int) -> None:
        # What was hidden is the prompt's text, no measurement: the exchange is still whole.
        self._body = None

    def end(self, t: int) -> None:
        exchange, body = self._exchange, self._body
        self._exchange = self._body = None
        if exchange is not None and body:
            read_prompt(exchange, bytes(body))

    def resumes(self, data: bytes) -> bool:
        return data.startswith(tuple(method + b" " for method in METHODS))


class _Responses(_Half):
    def __init__(self, owner: HttpStream) -> None:
        super().__init__()
        self._owner = owner
        self._exchange: Exchange | None = None
        self._events: _Events | None = None
        self._interim = False

    def start(self, t: int) -> None:
        pass

    def head(self, t: int, lines: list[bytes]) -> tuple[_State, int]:
        parts = lines[0].split(b" ", 2) if lines else []
        if (
            len(parts) < 2
            or not parts[0].startswith(b"HTTP/1.")
            or len(parts[1]) != 3
            or not parts[1].isdigit()
        ):
            raise _Malformed
        status, fields = int(parts[1]), _headers(lines[1:])
        self._interim = 100 <= status < 200
        if not self._owner.pending:
            raise _Malformed  # a response to nothing
        exchange = self._owner.pending[0]
        if status == 101:
            self._owner.count("upgraded")
        if status == 101 or (exchange.method == "CONNECT" and 200 <= status < 300):
            exchange.status = status
            self._owner.tunnel()
            return _State.DEAD, 0
        if self._interim:
            return _State.LENGTH, 0
        self._exchange, self._events = exchange, None
        exchange.status = status
        if exchange.method == "HEAD" or status in (204, 304):
            return _State.LENGTH, 0
        kind = fields.get(b"content-type", b"").split(b";", 1)[0].strip().lower()
        if kind in (b"text/event-stream", b"application/x-ndjson", b"application/jsonl"):
            exchange.streamed = True
            if fields.get(b"content-encoding", b"identity").lower() == b"identity":
                self._events = _Events(kind == b"text/event-stream", self._event, self._overflow)
            else:
                exchange.whole = False
                self._owner.count("opaque_streams")
        if fields.get(b"transfer-encoding", b"").lower().endswith(b"chunked"):
            return _State.CHUNK_SIZE, 0
        if b"content-length" in fields:
            return _State.LENGTH, _length(fields[b"content-length"])
        return _State.CLOSE, 0

    def body(self, t: int, data: bytes) -> None:
        if self._events is not None:
            self._events.feed(t, data)

    def body_hole(self, size: int) -> None:
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
        usage = usage_of(event)
        if usage[0] is not None:
            exchange.prompt_tokens = usage[0]
        if usage[1] is not None:
            exchange.completion_tokens = usage[1]
        if isinstance(event, dict) and "meta_info" in event:
            # SGLang's own stream repeats the text so far, unless it was told not to: only its end tells.
            tail, exchange.text = exchange.text, f"{len(text)} {text[-64:]}"
            if tail == exchange.text:
                return
        if not text or _is_echo(exchange, text):
            return
        if exchange.t_first is None:
            exchange.t_first, exchange.t_write = t, self._owner.called
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
        exchange, self._exchange, self._events = self._exchange, None, None
        if exchange is not None and self._owner.pending and self._owner.pending[0] is exchange:
            self._owner.pending.popleft()
            exchange.t_end = t
            exchange.complete = exchange.whole
            self._owner.finish(exchange)

    def resumes(self, data: bytes) -> bool:
        return bool(self._owner.pending) and data.startswith(b"HTTP/1.")


class HttpStream:
    """One connection of a server.

    `on_exchange` is called once for each request whose head was read, when its response ended or the
    connection was lost, in the order of the requests. `counts` collects what could not be read: ``desyncs``
    (holes that hid the start of a message), ``malformed`` (connections given up), ``opaque_streams``
    (compressed event streams), ``events_unread`` (events that are too long or not JSON).
    """

    def __init__(self, on_exchange: Callable[[Exchange], None], counts: dict[str, int] | None = None) -> None:
        self._on_exchange = on_exchange
        self.counts: dict[str, int] = {} if counts is None else counts
        self.pending: deque[Exchange] = deque()
        self._requests = _Requests(self)
        self._responses = _Responses(self)
        self.called: int | None = None

    def received(self, t: int, data: bytes, hole: int = 0, called: int | None = None) -> None:
        """`data`, then `hole` bytes not copied, arrived at `t`; the server had read them at `called`."""
        self.called = called
        self._feed(self._requests, t, data, hole)

    def sent(self, t: int, data: bytes, hole: int = 0, called: int | None = None) -> None:
        """`data`, then `hole` bytes not copied, left at `t`; the server began to write them at `called`."""
        self.called = called
        self._feed(self._responses, t, data, hole)

    def close(self, t: int | None) -> None:
        """The connection was closed at `t`, or (None) is no longer watched. What is open is given up."""
        if t is not None:
            self._responses.closed(t)
        self._flush()
        self._requests.state = self._responses.state = _State.DEAD

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def finish(self, exchange: Exchange) -> None:
        exchange.prompts, exchange.text = (), ""
        if exchange.method:
            self._on_exchange(exchange)

    def tunnel(self) -> None:
        """The connection speaks another protocol from here on."""
        self._requests.state = self._responses.state = _State.DEAD
        self._flush()

    def _flush(self) -> None:
        while self.pending:
            exchange = self.pending.popleft()
            exchange.complete = False
            self.finish(exchange)

    def _feed(self, half: _Half, t: int, data: bytes, hole: int) -> None:
        try:
            if data:
                if half is self._requests and half.state is _State.LOST and half.resumes(data):
                    half = self._reset()
                half.feed(t, data)
            if hole > 0 and half.state is not _State.LOST and not half.hole(t, hole):
                self.count("desyncs")
                self._flush()
                self._reset().state = _State.LOST
        except _Malformed:
            self.count("malformed")
            self.tunnel()

    def _reset(self) -> _Requests:
        """Forget both halves' messages. The responses go on with the one to the next request."""
        self._requests = _Requests(self)
        self._responses = _Responses(self)
        self._responses.state = _State.LOST
        return self._requests


def _is_echo(exchange: Exchange, text: str) -> bool:
    """Whether a chunk repeats the prompt (the module's docstring has the rule)."""
    if exchange.chunks:
        return False
    for prompt in exchange.prompts:
        if exchange.echo:
            if prompt.startswith(text, exchange.echoed):
                exchange.echoed += len(text)
                return True
        elif exchange.echoed == 0 and len(prompt) >= ECHO_MIN_CHARS and prompt in text:
            exchange.echoed = len(text)
            # More than a chat template's few words behind the prompt is new text.
            return len(text) - text.rfind(prompt) - len(prompt) <= ECHO_MIN_CHARS
    return False


def _texts(node: Any, depth: int = 0) -> list[str]:
    """The texts of a message's content: a string, or parts with a ``text``."""
    if isinstance(node, str):
        return [node]
    if depth > MAX_DEPTH:
        return []
    if isinstance(node, list):
        return [text for item in node for text in _texts(item, depth + 1)]
    if isinstance(node, dict):
        return _texts(node.get("text", node.get("content", [])), depth + 1)
    return []


def read_prompt(exchange: Exchange, body: bytes) -> None:
    """Read the prompt's length in characters, its last text, and ``echo``, from a request's JSON body."""
    try:
        request = json.loads(body.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return
    if not isinstance(request, dict):
        return
    texts: list[str] = []
    for key in ("system", "messages", "prompt", "input", "inputs", "text"):
        if key in request:
            texts += _texts(request[key])
    if not texts:
        return
    exchange.prompt_chars = sum(map(len, texts))
    exchange.echo = request.get("echo") is True
    last = [texts[-1]]
    messages = request.get("messages")
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, dict) and message.get("role") == "user":
            last += _texts(message)[-1:]
            break
    exchange.prompts = tuple(
        dict.fromkeys(text for text in (t if exchange.echo else t.strip() for t in last) if text)
    )


def _filled(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(usage: Any, *names: str) -> int | None:
    for name in names:
        value = usage.get(name) if isinstance(usage, dict) else None
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31:
            return value
    return None


def usage_of(event: Any) -> tuple[int | None, int | None]:
    """Tokens of the prompt and of the answer so far, as far as one event of a stream says them."""
    if not isinstance(event, dict):
        return None, None
    usage = event.get("usage") or event.get("meta_info") or event.get("details")
    for outer in ("message", "response"):  # Anthropic's message_start; OpenAI's response.completed
        inner = event.get(outer)
        if not usage and isinstance(inner, dict):
            usage = inner.get("usage")
    if isinstance(usage, dict):
        return (
            _count(usage, "prompt_tokens", "input_tokens"),
            _count(usage, "completion_tokens", "output_tokens", "generated_tokens"),
        )
    return (  # Ollama, llama.cpp
        _count(event, "prompt_eval_count", "tokens_evaluated"),
        _count(event, "eval_count", "tokens_predicted"),
    )


def content_of(event: Any) -> str:
    """The generated text in one event of a stream; empty if it has none.

    Reasoning text and tool calls count: a model generated them. A tool call's text is its arguments and name.
    """
    if not isinstance(event, dict):
        return ""
    choices = event.get("choices")
    if isinstance(choices, list):  # OpenAI chat and completions, vLLM, SGLang, transformers serve
        return "".join(_choice(choice) for choice in choices)
    delta = event.get("delta")
    if isinstance(delta, str):  # OpenAI responses: response.output_text.delta and its kin
        return delta if str(event.get("type", "")).endswith(".delta") else ""
    if isinstance(delta, dict):  # Anthropic messages: content_block_delta
        return (
            _filled(delta.get("text")) + _filled(delta.get("thinking")) + _filled(delta.get("partial_json"))
        )
    token = event.get("token")
    if isinstance(token, dict):  # TGI
        return "" if token.get("special") is True else _filled(token.get("text"))
    if isinstance(event.get("meta_info"), dict):  # SGLang's /generate
        return _filled(event.get("text"))
    message = event.get("message")
    if isinstance(message, dict):  # Ollama chat
        return _filled(message.get("content")) + _filled(message.get("thinking"))
    return _filled(event.get("content")) or _filled(event.get("response"))  # llama.cpp; Ollama generate


def _choice(choice: Any) -> str:
    if not isinstance(choice, dict):
        return ""
    text = _filled(choice.get("text"))
    delta = choice.get("delta")
    if isinstance(delta, dict):
        for key in ("content", "reasoning_content", "reasoning", "refusal"):
            text += _filled(delta.get(key))
        calls = delta.get("tool_calls")
        functions = (
            [call.get("function") for call in calls if isinstance(call, dict)]
            if isinstance(calls, list)
            else []
        )
        for function in (*functions, delta.get("function_call")):
            if isinstance(function, dict):
                text += _filled(function.get("name")) + _filled(function.get("arguments"))
    return text
