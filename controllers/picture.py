"""What a controller knows of the lanes: their recent steps, folded into roles and step times.

A lane is a stream of a process, ``(pid, stream handle)``; steps come as they end, lanes as the daemon names
them.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from flexnpu.control.messages import LaneStatus
from probes.feed.events import Step, StepBegin

Key = tuple[int, int]
Role = Literal["unknown", "prefill", "decode"]

MEMORY_S = 30.0
"""Steps older than this are forgotten."""
MAX_STEPS = 4096
MIN_STEPS = 5
"""Fewer steps than this say nothing about a role."""
PREFILL_ODDS = 1.5
"""Prefill time to decode time from which a lane is a prefill lane, whatever the others do."""
DECODE_ODDS = 0.67
"""And up to which it may be a decode lane. Between the two it keeps the role it has."""
RELATIVE_ODDS = 3.0
"""A server that does both is a prefill lane when its odds are so many times those of the most decode-like
other lane (half of it is enough to remain one) and its prefills are long: `BURST` of its decode steps."""
BURST = 3.0
SOLO_STEPS = 256


def quantile(values: Iterable[float], q: float) -> float | None:
    """The value below which a fraction `q` of `values` lies; None of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else None


@dataclass
class LaneView:
    """One lane's recent steps."""

    key: Key
    steps: deque[Step] = field(default_factory=lambda: deque(maxlen=MAX_STEPS))
    role: Role = "unknown"
    solo_us: deque[float] = field(default_factory=lambda: deque(maxlen=SOLO_STEPS))
    """Durations of decode steps beside which no other lane's prefill ran; they outlive `MEMORY_S`, for
    under a lasting flood there are no new ones.
    """
    prefill_since_ns: int | None = None
    """Start of the prefill that now runs on the lane."""
    judged_ns: int = 0
    """End of the last decode step of which it is settled whether it was alone."""

    def durations(self, *phases: str) -> list[float]:
        """Durations of the remembered steps of these phases, us."""
        return [step.duration_us for step in self.steps if step.phase in phases]

    def odds(self) -> float | None:
        """Prefill time to decode time; infinite without decode, None when there are too few steps to say."""
        prefill, decode = self.durations("prefill"), self.durations("decode", "mixed")
        if len(prefill) + len(decode) < MIN_STEPS:
            return None
        return sum(prefill) / sum(decode) if sum(decode) > 0 else math.inf

    def bursty(self) -> bool:
        """Whether a prefill takes several times as long as a decode step."""
        prefill, decode = quantile(self.durations("prefill"), 0.5), quantile(self.durations("decode"), 0.5)
        return prefill is not None and (decode is None or prefill >= BURST * decode)

    def vote(self, odds: float, others: float | None) -> None:
        """Settle the role from the lane's odds and the least of the other lanes'."""
        was = self.role == "prefill"
        relative = odds / max(others, 0.01) if others is not None else 0.0
        mostly = odds >= (DECODE_ODDS if was else PREFILL_ODDS)
        beside = relative >= (RELATIVE_ODDS / 2 if was else RELATIVE_ODDS) and self.bursty()
        if mostly or beside:
            self.role = "prefill"
        elif odds <= DECODE_ODDS:
            self.role = "decode"


class Picture:
    """All lanes of one daemon. `update` with the daemon's lanes first: steps of others are counted and left
    out.
    """

    def __init__(self) -> None:
        self.lanes: dict[Key, LaneView] = {}
        self.numbers: dict[Key, int] = {}
        self.steps = 0
        self.unmapped = 0
        """Steps of streams that are no lanes of this daemon."""

    def update(self, lanes: Iterable[LaneStatus]) -> None:
        """Take over which lanes there are."""
        self.numbers = {(lane.pid, lane.stream): lane.lane for lane in lanes}
        self.lanes = {key: self.lanes.get(key) or LaneView(key) for key in self.numbers}

    def add(self, step: Step) -> None:
        view = self.lanes.get((step.pid, step.stream))
        if view is None:
            self.unmapped += 1
            return
        self.steps += 1
        view.steps.append(step)
        view.prefill_since_ns = None

    def begin(self, event: StepBegin) -> None:
        """A step has begun."""
        view = self.lanes.get((event.pid, event.stream))
        if view is not None:
            view.prefill_since_ns = event.t_ns if event.phase in ("prefill", "mixed") else None

    def settle(self, now_ns: int) -> None:
        """Forget old steps, vote on roles, and find the decode steps that ran alone."""
        for view in self.lanes.values():
            while view.steps and view.steps[0].t_end_ns < now_ns - int(MEMORY_S * 1e9):
                view.steps.popleft()
        odds = {key: odds for key, view in self.lanes.items() if (odds := view.odds()) is not None}
        for key, own in odds.items():
            others = [other for at, other in odds.items() if at != key]
            self.lanes[key].vote(own, min(others) if others else None)
        for view in self.lanes.values():
            self._find_solo(view, now_ns)

    def _find_solo(self, view: LaneView, now_ns: int) -> None:
        """A prefill is reported when it ends, and a feed may leave out that it has begun: a decode step is
        settled once no prefill that began before its end can still be running, taking the longest seen for
        the longest there is.
        """
        others = [
            (step.t_start_ns, step.t_end_ns)
            for other in self.lanes.values()
            if other is not view
            for step in other.steps
            if step.phase in ("prefill", "mixed")
        ]
        longest = max((end - start for start, end in others), default=0)
        settled_until = now_ns - longest - longest // 2
        others += [
            (other.prefill_since_ns, now_ns)
            for other in self.lanes.values()
            if other is not view and other.prefill_since_ns is not None
        ]
        others.sort()
        starts = [start for start, _ in others]
        # Ends in order of start: the latest end so far tells whether any of them reaches a given time.
        latest: list[int] = []
        for _, end in others:
            latest.append(max(end, latest[-1] if latest else 0))
        for step in view.steps:
            if step.phase != "decode" or step.t_end_ns <= view.judged_ns:
                continue
            if step.t_end_ns > settled_until:
                break
            view.judged_ns = step.t_end_ns
            before = bisect.bisect_left(starts, step.t_end_ns)
            if not before or latest[before - 1] <= step.t_start_ns:
                view.solo_us.append(step.duration_us)

    def last_step_ns(self) -> int:
        """End of the last step of any lane; 0 when there is none."""
        return max((view.steps[-1].t_end_ns for view in self.lanes.values() if view.steps), default=0)

    def with_role(self, role: Role) -> list[LaneView]:
        return [view for view in self.lanes.values() if view.role == role]
