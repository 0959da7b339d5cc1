"""A request that has ended, as an event."""

from __future__ import annotations

from typing import Final, Literal

from flexnpu.console.text import safe
from probes.feed import events
from probes.requests.exchange import Exchange

MAX_PATH_CHARS: Final = 256


def timing(
    pid: int, comm: str, fd: int, exchange: Exchange, caller: int | None = None
) -> events.RequestTiming:
    """The published form of an exchange. `caller`: the watched server that asked."""
    source: Literal["usage", "chunks"] | None = "usage"
    tokens = exchange.completion_tokens
    if tokens is None:
        tokens = exchange.token_ids or None
    if tokens is None:
        tokens = len(exchange.chunks) or None
        source = None if tokens is None else "chunks"
    whole = exchange.one_token and exchange.complete and not exchange.streamed and exchange.status == 200
    return events.RequestTiming(
        pid=pid,
        comm=comm,
        fd=fd,
        t_arrival_ns=exchange.t_arrival,
        t_first_ns=exchange.t_first,
        t_end_ns=exchange.t_end,
        chunk_ns=exchange.chunks,
        path=exchange.path[:MAX_PATH_CHARS],
        status=exchange.status,
        prompt_chars=exchange.prompt_chars,
        complete=exchange.complete,
        t_read_ns=exchange.t_read,
        # An answer in one piece of one token is that token.
        t_write_ns=exchange.t_write if exchange.t_first is not None or not whole else exchange.t_answer_write,
        tokens=tokens,
        tokens_from=source,
        prompt_tokens=exchange.prompt_tokens,
        error=exchange.error,
        t_answer_ns=exchange.t_answer,
        role=exchange.role,
        caller_pid=caller,
        request_id=safe(exchange.request_id) or None,
        traceparent=exchange.traceparent or None,
        answer_id=safe(exchange.answer_id) or None,
    )
