"""What a tracer tells while it runs of the requests that run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from probes.commands.live import Live
from probes.feed.events import OpenRequests

pytestmark = pytest.mark.unit


class _Wire:
    """In the place of `WireTracer`."""

    def __init__(self) -> None:
        self.running: dict[int, int] = {}

    @property
    def pids(self) -> list[int]:
        return list(self.running)

    def unanswered(self, t_ns: int) -> Iterator[OpenRequests]:
        for pid, count in self.running.items():
            yield OpenRequests(t_ns, pid, "chat", count, 1 if count else None, [])


def test_that_no_request_runs_any_more_is_told_once() -> None:
    told: list[OpenRequests] = []
    live: Any = object.__new__(Live)
    live._on_event, live._answering = told.append, {}
    wire = _Wire()

    def look() -> list[tuple[int, int]]:
        told.clear()
        live._tell_gone(wire, 5)
        live._tell_open(wire, 5)
        return [(event.pid, event.in_flight) for event in told]

    wire.running = {1: 2, 2: 0}
    assert look() == [(1, 2)]
    wire.running = {1: 0, 2: 0}
    assert look() == [(1, 0)]
    assert look() == []
    # Its process ends while it has requests.
    wire.running = {1: 2, 2: 1}
    assert look() == [(1, 2), (2, 1)]
    wire.running = {2: 1}
    assert look() == [(1, 0), (2, 1)]
    assert (told[0].comm, told[0].oldest_ns, told[0].waiting) == ("chat", None, [])
    assert look() == [(2, 1)]
