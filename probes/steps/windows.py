"""Windows of detail: for a moment, every launch of one process is probed.

The default plan sees where steps begin and end, not what they launch. A window now and then tells how many
launches a step of each lane and phase has, and which operators they are.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from probes.feed.events import Phase
from probes.placing.attach import Probe

PERIOD_S = 10.0
"""From one window to the next; processes take turns."""

ENOUGH = 5
"""Model steps wholly within a window that end it."""

SHORTEST_S = 0.05
LONGEST_S = 1.0
"""A window of steps that take longer ends without any."""

MIX_EVERY = 6
"""Every so many windows of a process tell its operators, too, which takes a probe on each of some hundred."""

MAX_LANES = 8192
"""Lanes of which something is remembered, several times as many as the kernel side knows at once."""

_KEPT = 15


@dataclass
class Window:
    """When every launch of a process was probed, in ns of CLOCK_MONOTONIC."""

    pid: int
    since: int
    until: int | None = None
    steps: int = 0
    names: tuple[str, ...] | None = None
    """The operators that were probed, by cookie; None: none were."""
    probes: list[Probe] = field(default_factory=list)

    def covers(self, start: int, end: int) -> bool:
        """Whether all of `start` to `end`, ns, lies in it."""
        return self.since <= start and (self.until is None or end <= self.until)


class Typical:
    """The median of the last counts, by lane and phase."""

    def __init__(self) -> None:
        self._counts: OrderedDict[tuple[int, int, Phase], deque[int]] = OrderedDict()

    def add(self, pid: int, stream: int, phase: Phase, launches: int) -> None:
        """Note the launches of a step of which every launch was counted."""
        key = (pid, stream, phase)
        self._counts.setdefault(key, deque(maxlen=_KEPT)).append(launches)
        self._counts.move_to_end(key)
        if len(self._counts) > MAX_LANES:
            self._counts.popitem(last=False)

    def get(self, pid: int, stream: int, phase: Phase) -> int | None:
        """The lower median; None when none was counted."""
        counts = self._counts.get((pid, stream, phase))
        return sorted(counts)[(len(counts) - 1) // 2] if counts else None

    def forget(self, pid: int) -> None:
        """Forget all lanes of a process."""
        for key in [key for key in self._counts if key[0] == pid]:
            del self._counts[key]
