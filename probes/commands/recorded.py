"""A running trace, into a recording."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from probes.feed.events import Losses, StepBegin
from probes.feed.recording import Overhead, Recorder, Tick
from probes.host.gates import Gates


class Recorded:
    """Events and intervals of a running trace, into a recording."""

    def __init__(self, path: Path) -> None:
        self.recorder = Recorder(path)
        self.overhead: Callable[[], dict[int, Overhead]] | None = None
        self._gates = Gates()
        self._since = time.monotonic()

    def event(self, event: Any) -> None:
        """Record an event; beginnings of steps are left out."""
        if not isinstance(event, StepBegin):
            self.recorder.event(event)

    def tick(self, losses: Losses, now: float) -> None:
        """End an interval at `now`, CLOCK_MONOTONIC in s."""
        self.recorder.event(losses)
        gated = [(pid, stream, us) for (pid, stream), us in sorted(self._gates.delta_us().items())]
        overhead = self.overhead() if self.overhead is not None else {}
        self.recorder.tick(Tick(losses.t_ns, now - self._since, gated, overhead))
        self._since = now

    def end(self, losses: Losses, now: float) -> None:
        """The last interval; the recording is complete then."""
        self.tick(losses, now)
        self._gates.close()
        self.recorder.close()
