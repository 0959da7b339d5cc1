"""The one way in which readers wait for a feed."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from probes.feed.follow import ENDED, RETRY_S, SLICE_S, FeedFollower
from probes.feed.socket import FeedError
from tests.collectors.scripted import step


class Clock:
    ns = 10**12

    def __call__(self) -> int:
        return self.ns

    def pause(self, seconds: float) -> None:
        assert 0 < seconds <= SLICE_S, "it must look whether to stop"
        self.ns += int(seconds * 1e9) + 1


class Feed:
    """Gives `events`, then ends, or stays silent."""

    def __init__(self, clock: Clock, *events: Any, ends: bool = True) -> None:
        self.clock, self.events, self.ends = clock, deque(events), ends
        self.ended = self.closed = False

    def read(self, timeout_s: float | None = None) -> Any:
        if self.events:
            event = self.events.popleft()
            if isinstance(event, Exception):
                raise event
            return event
        self.ended = self.ends
        if not self.ended:
            assert timeout_s is not None
            self.clock.pause(timeout_s)
        return None

    def close(self) -> None:
        self.closed = True


class Bench:
    def __init__(self, *feeds: Any) -> None:
        self.clock = Clock()
        self.feeds = deque(feeds)
        self.troubles: list[str] = []
        self.connected = self.tries = 0
        self.stop = False
        self.follower = FeedFollower(
            self.connect,
            on_trouble=self.troubles.append,
            on_connected=self.count,
            stopping=lambda: self.stop,
            clock=self.clock,
            pause=self.clock.pause,
        )

    def count(self) -> None:
        self.connected += 1

    def connect(self) -> Feed:
        self.tries += 1
        feed = self.feeds.popleft() if self.feeds else None
        if feed is None:
            raise FeedError("no tracer serves it; start one")
        feed.clock = self.clock
        return feed  # type: ignore[no-any-return]


CLOCK = Clock()


def test_events_come_over_as_many_tracers_as_there_are() -> None:
    b = Bench(Feed(CLOCK, step(1, 2)), None, None, Feed(CLOCK, step(3, 4)), Feed(CLOCK, step(5, 6)))
    read = [b.follower.read(10 * RETRY_S) for _ in range(3)]
    assert [event.t_start_ns for event in read if event is not None] == [1, 3, 5]  # type: ignore[union-attr]
    assert b.connected == 3
    assert b.troubles == [ENDED, "no tracer serves it; start one", ENDED]
    assert b.follower.losses == 4


def test_a_missing_feed_costs_a_try_a_second_and_one_line() -> None:
    b = Bench()
    assert b.follower.read(20 * RETRY_S) is None
    assert 19 <= b.tries <= 22
    assert len(b.troubles) == 1
    assert not b.follower.connected


def test_no_time_is_enough_for_what_is_there() -> None:
    b = Bench(Feed(CLOCK, step(1, 2), ends=False))
    assert b.follower.read(0) is not None
    assert b.follower.read(0) is None
    assert b.follower.connected


@pytest.mark.parametrize("feeds", [[], [Feed(CLOCK, ends=False)]], ids=["no feed", "a silent feed"])
def test_it_stops_within_a_slice(feeds: list[Feed]) -> None:
    b = Bench(*feeds)
    pause = b.clock.pause

    def stop_amid(seconds: float) -> None:
        b.stop = True
        pause(seconds)

    b.clock.pause = stop_amid  # type: ignore[method-assign]
    b.follower._pause = stop_amid
    start = b.clock.ns
    assert b.follower.read(100) is None
    assert b.clock.ns - start <= 2 * SLICE_S * 1e9


def test_a_feed_that_sends_nonsense_is_left_and_tried_again() -> None:
    bad = Feed(CLOCK, FeedError("sent a line that is no event"))
    b = Bench(bad, Feed(CLOCK, step(1, 2)))
    assert b.follower.read(5 * RETRY_S) is not None
    assert bad.closed
    assert b.troubles == ["sent a line that is no event"]


def test_events_gather_and_are_read_without_waiting() -> None:
    """A thousand of them in a row cost one pause, and those that come in that are not waited for either."""
    b = Bench(Feed(CLOCK, *[step(1, 2)] * 1000, ends=False))
    start = b.clock.ns
    assert all(b.follower.read(1) is not None for _ in range(1000))
    assert b.clock.ns == start
    assert b.follower.read(1) is None
    assert b.clock.ns - start == pytest.approx(1e9, rel=0.01)
