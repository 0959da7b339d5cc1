"""One request and its response, as the wire tells them, and the bounds of what is kept of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

Failure = Literal["event", "finish"]
"""How a stream said that the request failed: by an error event, or by the reason for which it finished."""

Role = Literal["prefill", "decode"]
"""Of an instance that does one phase of a request: what a proxy asks it to do with the KV cache."""

MAX_PENDING: Final = 256
"""Requests of one connection that wait for their response."""
MAX_CHUNKS: Final = 50_000
"""Content chunks of one exchange whose times are kept."""
MAX_BODY: Final = 1024 * 1024
"""Bytes of a request's body that are kept to read its prompt; a longer body's prompt is unknown."""
MAX_ANSWER: Final = 256 * 1024
"""Bytes of an answer in one piece that are kept to read its usage and id."""
MAX_ID: Final = 128
"""Characters of an id; a longer one is none."""


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
    token_ids: int = 0
    """Ids of tokens that the stream has had."""
    error: Failure | None = None
    """The stream said that the request failed, whatever the status."""
    t_answer: int | None = None
    """When the response's first byte was sent, an interim response aside."""
    t_answer_write: int | None = None
    """When the server began to write it."""
    request_id: str = ""
    """Header ``X-Request-Id`` of the request."""
    traceparent: str = ""
    """Header ``traceparent`` (W3C Trace Context) of the request, if it is one."""
    answer_id: str = ""
    """Field ``id`` of the answer, which a proxy that passes an answer on does not change."""
    prompt_digest: bytes = b""
    """Of the prompt; empty when the body did not show one."""
    role: Role | None = None
    one_token: bool = False
    """The request asked for one token in one piece: the whole answer is the first token."""
    wants_stream: bool | None = None
    """Whether the request asked for a stream of events; None when its body did not show it."""
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
