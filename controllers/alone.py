"""When prefill is held for a moment, so that decode steps can be seen as if they were alone.

Under a lasting flood of prefills no decode step runs alone, and what it would take alone can only be guessed.
So where no such step was seen lately, decode steps get no time to spare until `STEPS` of each lane have run:
prefill runs only where the gate expects no step to feel it, between steps and while decode's host is busy.
That takes prefill little, and it is what makes a target right: the least slowed of slowed steps are still
slow, and batches and contexts grow.

A hold ends as soon as enough was seen. It lasts `HOLD_STEPS` decode steps at most, and no longer than
`MOST_S`; the next one is `AGAIN_S` later at the earliest, whatever came of it.
"""

from __future__ import annotations

from collections.abc import Iterable

from controllers.state import MIN_STEPS, LaneState

STEPS = MIN_STEPS + 2
"""Steps alone that a hold is for."""
HOLD_STEPS = 2 * STEPS
"""And the most that it lasts, in steps as long as the recent ones. They get shorter as it goes on."""
LEAST_S, MOST_S = 0.3, 4.0
AGAIN_S = 60.0
"""For so long what steps take alone is taken to stay."""


class Holds:
    """`due` at each turn, with the decode lanes that have steps."""

    def __init__(self) -> None:
        self._until_ns: int | None = None
        self._next_ns = 0
        self.made = 0
        """Holds begun so far."""

    def due(self, lanes: Iterable[LaneState], now_ns: int) -> bool:
        """Whether prefill is to be held now wherever decode could feel it."""
        lanes = list(lanes)
        if self._until_ns is not None:
            if now_ns < self._until_ns and any(lane.held_steps < STEPS for lane in lanes):
                return True
            self._until_ns = None
            return False
        if now_ns < self._next_ns or not any(_unknown(lane, now_ns) for lane in lanes):
            return False
        longest_us = max(lane.decode.quantile_us(0.5) or 0.0 for lane in lanes)
        self._until_ns = now_ns + int(min(MOST_S, max(LEAST_S, HOLD_STEPS * longest_us / 1e6)) * 1e9)
        self._next_ns = now_ns + int(AGAIN_S * 1e9)
        self.made += 1
        return True


def _unknown(lane: LaneState, now_ns: int) -> bool:
    """Whether nobody knows what a decode step takes alone now."""
    if len(lane.decode) < MIN_STEPS:
        return False
    return len(lane.solo) < MIN_STEPS or lane.alone_ns < now_ns - int(AGAIN_S * 1e9)
