"""Where the events of `flexnpu-probe attach` go."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from flexnpu.console.output import flush, out_line, say
from probes.feed.events import Event, Losses, OpenRequests, StepBegin
from probes.feed.recording import Overhead
from probes.feed.socket import FeedServer

if TYPE_CHECKING:
    from probes.host.gates import Gates
    from probes.show.screen import Display
    from probes.show.view import View


BEAT_S = 1.0
"""The feed is never silent for longer, whatever the interval."""


class Output:
    """Where events go: the feed, and standard output as JSON or tables."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self._json = as_json
        self._shows = not (as_json or quiet)
        self.display: Display | None = None
        self.feed: FeedServer | None = None
        self.overhead: Callable[[], dict[int, Overhead]] | None = None
        self._view: View | None = None
        self._gates: Gates | None = None
        self._since = time.monotonic()
        self._told: dict[str, dict[str, int]] = {}
        self._losses = Losses(time.monotonic_ns(), "steps", {})
        """As last published."""
        self._beat_at = 0.0

    def start(self) -> None:
        """Everything is attached: show tables from here on."""
        if self._shows:
            # Imported where tables are shown: who reads JSON or the feed is spared 10 MiB.
            from probes.host.gates import Gates
            from probes.show.screen import display
            from probes.show.view import View

            self._view, self._gates = View(), Gates()
            self.display = display()
            self._since = time.monotonic()

    def say(self, text: str) -> None:
        """A note, on standard error or in the screen's last line."""
        if self.display is None:
            say(text)
        else:
            self.display.say(text)

    def event(self, event: Event) -> None:
        """Publish an event, and print or count it."""
        if self.feed is not None:
            self.feed.publish(event)
        if self._json:
            if not isinstance(event, StepBegin | OpenRequests) and (
                not isinstance(event, Losses) or self._news(event)
            ):
                out_line(event.to_json())
        elif self._view is not None and self.display is not None and not self.display.paused:
            self._view.add(event)

    def _news(self, losses: Losses) -> bool:
        """Whether the counters of a source differ from the last ones."""
        before, self._told[losses.source] = self._told.get(losses.source), losses.counts
        return losses.counts != before

    def poll(self) -> bool:
        """Take what the user pressed; whether to go on. Also tells the feed's readers, who take silence for
        death, that the tracer lives: intervals may be long."""
        now = time.monotonic()
        if self.feed is not None and now >= self._beat_at:
            self._beat_at = now + BEAT_S
            self.feed.publish(dataclasses.replace(self._losses, t_ns=time.monotonic_ns()))
        if self.display is None:
            return True
        self.display.poll()
        return not self.display.quit

    def tick(self, losses: Losses, now: float) -> None:
        """The end of an interval, at `now` of time.monotonic."""
        if self.feed is not None:
            losses = Losses(losses.t_ns, losses.source, losses.counts | self.feed.counts)
            self.feed.publish(losses)
            self._losses, self._beat_at = losses, time.monotonic() + BEAT_S
        if self._json:
            flush()
        if self.display is not None and self._view is not None and self._gates is not None:
            self._view.add(losses)
            overhead = self.overhead() if self.overhead is not None else None
            snapshot = self._view.take(now - self._since, self._gates.delta_us(), overhead)
            self._since = now
            self.display.show(snapshot)

    def end(self, losses: Losses, now: float) -> None:
        """The last interval; `now` is CLOCK_MONOTONIC in s."""
        self.tick(losses, now)
        if self._json:
            out_line(losses.to_json())
            flush()

    def leave(self) -> None:
        """Give the terminal back: what comes now is printed."""
        if self.display is not None:
            from probes.show.screen import plain_after

            self.display.close()
            self.display = plain_after(self.display)

    def close(self) -> None:
        """May be called again."""
        if self.display is not None:
            self.display.close()
        if self._gates is not None:
            self._gates.close()
