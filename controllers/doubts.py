"""What a controller believes is checked before it acts on it.

A target that comes from steps is worth nothing where steps are cut wrong, and a gate that follows it does
harm. So each belief is held against what else is known of the lane. `doubt` names the first that does not
fit:

- ``launches``: a decode step of a model launches many operators, and about the same number each time.
  Steps with hardly any, or now half and now twice as many, are cut in their middle or are two.
- ``contradiction``: steps beside a prefill take at least as long as steps alone. Where they are clearly
  shorter, what was taken for alone was not.
- ``device-time``: a step holds all that its lane does on the device. The daemon's sum of the lane's device
  time cannot be much more than the durations of its steps, and steps of one lane do not overlap.
- ``missing``: launches that the daemon has counted are in steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from controllers.state import MIN_STEPS, LaneState, Window
from flexnpu.control import messages

ENOUGH = 4 * MIN_STEPS
"""Steps whose spread says something."""
SUMMED = 2 * MIN_STEPS
"""Steps whose sums do."""
FEW_LAUNCHES = 5
"""A layer of any model launches more operators than this."""
SPREAD = 1.5
"""Launches of nine decode steps in ten lie within this ratio."""
SHORTER = 0.67
"""Steps beside a prefill that take less than this part of a step alone contradict it. Batches shrink, too."""
DEVICE = 1.5
"""How much more device time than step time is put down to the daemon's estimates."""
OVERLAP = 1.2
"""How much more step time than time is put down to steps that are told late."""


@dataclass(frozen=True)
class Doubt:
    """Why not to act."""

    kind: messages.Doubt
    text: str


def doubt(lanes: Iterable[LaneState]) -> Doubt | None:
    """The first thing that does not fit among what is known of decode lanes."""
    for lane in lanes:
        for check in (_launches, _contradiction, _sums):
            if (found := check(lane)) is not None:
                return found
    return None


def _launches(lane: LaneState) -> Doubt | None:
    for window, graphs in ((lane.eager, False), (lane.replayed, True)):
        if len(window) >= ENOUGH and (found := _spread(window, graphs)) is not None:
            return found
    return None


def _spread(window: Window, graphs: bool) -> Doubt | None:
    low, middle, high = (window.quantile(q) or 0 for q in (0.1, 0.5, 0.9))
    if not graphs and middle < FEW_LAUNCHES:
        return Doubt("launches", f"decode steps of {middle} launches: too few for a model's")
    if high > SPREAD * max(low, 1) and high - low > FEW_LAUNCHES:
        return Doubt("launches", f"decode steps of {low} to {high} launches: they are not cut alike")
    return None


def _contradiction(lane: LaneState) -> Doubt | None:
    if len(lane.solo) < MIN_STEPS or len(lane.beside) < ENOUGH:
        return None
    alone, beside = lane.solo.quantile_us(0.5), lane.beside.quantile_us(0.5)
    if alone is None or beside is None or beside >= SHORTER * alone:
        return None
    return Doubt(
        "contradiction",
        f"decode steps take {alone / 1e3:.1f} ms alone and {beside / 1e3:.1f} ms beside a prefill: "
        "they cannot be shorter there",
    )


def _sums(lane: LaneState) -> Doubt | None:
    if len(lane.accounts) < 2 or len(lane.decode) < SUMMED:
        return None
    first, last = lane.accounts[0], lane.accounts[-1]
    stepped_us = (last.stepped_ns - first.stepped_ns) / 1e3
    device_us = last.device_us - first.device_us
    steps = lane.decode.quantile_us(0.5) or 0.0
    if stepped_us < SUMMED * steps or not first.last_step_ns:
        return None
    if device_us > DEVICE * stepped_us:
        return Doubt(
            "device-time",
            f"{device_us / 1e3:.0f} ms of device time in steps of {stepped_us / 1e3:.0f} ms in all: "
            "steps are cut short",
        )
    if (took_us := (last.last_step_ns - first.last_step_ns) / 1e3) * OVERLAP < stepped_us:
        return Doubt(
            "device-time", f"steps of {stepped_us / 1e3:.0f} ms in {took_us / 1e3:.0f} ms: they overlap"
        )
    launched, counted = last.launched - first.launched, last.counted - first.counted
    if last.uncounted == first.uncounted and launched > 2 * counted:
        return Doubt("missing", f"{counted} of {launched} launches in steps: most are in none")
    return None
