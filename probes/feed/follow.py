"""Follows a feed over as many tracers as there will be: the one way in which readers wait for it.

A feed that is not there yet, that ends, or that cannot be read is tried again every `RETRY_S`. Why is told
once, with what to do about it, until it changes or the feed was there in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from flexnpu.common.closeable import Closeable
from probes.feed.events import Event

RETRY_S = 1.0
"""Between attempts to connect."""
SLICE_S = 0.2
"""How long a reader may sleep after `stopping` became true."""
BATCH_S = 0.1
"""How long a reader in no hurry lets events gather: each wake-up costs more than an event."""
ENDED = "the tracer has ended"


class Feed(Protocol):
    """What is used of `probes.feed.socket.FeedClient`."""

    @property
    def ended(self) -> bool:
        """Whether the server has closed the feed."""

    def read(self, timeout_s: float | None = None) -> Event | None:
        """The next event; None after `timeout_s` or at the end. Raises FeedError."""

    def close(self) -> None:
        """Close the connection."""


def _pause(seconds: float) -> None:
    time.sleep(seconds)


class FeedFollower(Closeable):
    """Reads events. `connect` opens the feed and raises OSError (`FeedError`) when there is none.

    `on_trouble` hears why there is no feed, `on_connected` when there is one. After events have come, `read`
    lets more gather for up to `batch_s` before it waits for the next; 0: each is given at once. When
    `stopping` becomes true, `read` returns within `SLICE_S`. Not for several threads.
    """

    def __init__(
        self,
        connect: Callable[[], Feed],
        *,
        on_trouble: Callable[[str], None],
        on_connected: Callable[[], None] = lambda: None,
        stopping: Callable[[], bool] = lambda: False,
        batch_s: float = BATCH_S,
        clock: Callable[[], int] = time.monotonic_ns,
        pause: Callable[[float], None] = _pause,
    ) -> None:
        self._connect = connect
        self._on_trouble = on_trouble
        self._on_connected = on_connected
        self._stopping = stopping
        self._batch_s = min(batch_s, SLICE_S)
        self._more = False
        """Events have come since it last let them gather."""
        self._clock = clock
        self._pause = pause
        self._feed: Feed | None = None
        self._connect_at_ns = 0
        self._told = ""
        self.losses = 0
        """Times that the feed ended, could not be read, or was not there."""

    @property
    def connected(self) -> bool:
        """Whether a feed is being read."""
        return self._feed is not None

    def read(self, timeout_s: float) -> Event | None:
        """The next event; None after `timeout_s` without one, feed or not, or when it is time to stop."""
        deadline_ns = self._clock() + int(timeout_s * 1e9)
        while not self._stopping():
            left_s = (deadline_ns - self._clock()) / 1e9
            slice_s = max(min(left_s, SLICE_S), 1e-6)
            if self._feed is None:
                wait_s = (self._connect_at_ns - self._clock()) / 1e9
                if wait_s <= 0:
                    self._try_to_connect()
                elif left_s <= 0:
                    return None
                else:
                    self._pause(min(wait_s, slice_s))
                continue
            try:
                event = self._feed.read(1e-6 if self._more else slice_s)
            except OSError as error:
                self._lose(str(error))
                continue
            if event is not None:
                self._more = self._batch_s > 0
                return event
            if self._feed.ended:
                self._lose(ENDED)
            elif self._more:
                self._more = False
                if left_s > 0:
                    self._pause(min(self._batch_s, slice_s))
            elif left_s <= slice_s:
                return None
        return None

    def close(self) -> None:
        """Close the feed. The next `read` opens it again."""
        if self._feed is not None:
            self._feed.close()
            self._feed = None

    def _try_to_connect(self) -> None:
        try:
            self._feed = self._connect()
        except OSError as error:
            self._lose(str(error))
            return
        self._told = ""
        self._on_connected()

    def _lose(self, why: str) -> None:
        self.close()
        self._more = False
        self.losses += 1
        self._connect_at_ns = self._clock() + int(RETRY_S * 1e9)
        if why != self._told:
            self._told = why
            self._on_trouble(why)
