"""The requests that are running, as an event a server: so that one that hangs is seen before it ends, if
ever it does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from probes.feed.events import OpenRequests
from probes.requests.exchange import Exchange

MAX_LISTED: Final = 4096
"""Waiting requests of one server that are listed, the oldest."""


def open_requests(
    t_ns: int, pid: int, comm: str, exchanges: Iterable[tuple[int, Exchange, bool]]
) -> OpenRequests:
    """The event of `pid` at `t_ns`. `exchanges`: (descriptor, exchange, whether another watched server asked)
    of each that has not ended."""
    running = list(exchanges)
    waits = sorted((exchange.t_arrival, fd, inner) for fd, exchange, inner in running if _waits(exchange))
    waiting = waits[:MAX_LISTED]
    return OpenRequests(
        t_ns=t_ns,
        pid=pid,
        comm=comm,
        in_flight=len(running),
        oldest_ns=min((exchange.t_arrival for _, exchange, _ in running), default=None),
        waiting=[(fd, arrival) for arrival, fd, _ in waiting],
        unlisted=len(waits) - len(waiting),
        inner=[at for at, (_, _, inner) in enumerate(waiting) if inner],
    )


def _waits(exchange: Exchange) -> bool:
    """Whether it is sure that a first token is due and has not come: content that could not be read may
    have been one."""
    streams = exchange.wants_stream if exchange.status is None else exchange.streamed and exchange.whole
    return bool(streams) and exchange.t_first is None and exchange.error is None
