"""Slack: decode gets what its objective asks, prefill gets the rest.

The step target follows the error of the objective, as a feedback controller does. Each period the time
between tokens is compared with the objective `tpot_us`, at `percentile`. Over it: the target shrinks by as
much, by a third at most. Under `CALM` of it: the target grows by `GROW`, up to the objective. Between the two
it stays, so that the gate does not hunt. A period has `ENOUGH` token times and takes `PERIOD_S` at least, so
there is at most one change a second.

It needs an objective and no step alone. Where the objective cannot be met even alone, the target sinks to
`LEAST` of it, which is decode first, and prefill keeps what the gate guarantees it.

The law is multiplicative increase and decrease with a dead band, as feedback schedulers of real-time systems
use it (Lu, Stankovic, Tao, Son: "Feedback Control Real-Time Scheduling", 2002).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from controllers.policies import Decision, PolicyError
from controllers.policies._sharing import sharing
from controllers.state import ControllerState, LaneState
from flexnpu.common.quantiles import quantile
from flexnpu.control.messages import SetGate

PERIOD_S = 1.0
ENOUGH = 20
CALM = 0.9
GROW = 1.08
SHRINK = 0.67
LEAST = 0.1
_START = 0.8
"""Of the objective: what is left for the host between two steps is not known yet."""


@dataclass
class Slack:
    """`window_us`, `max_hold_us` and `decode_idle_us` go to the gate as they are (`SetGate`)."""

    lease_s: float
    window_us: float = 300.0
    tpot_us: float | None = None
    percentile: float = 99.0
    max_hold_us: float | None = None
    decode_idle_us: float | None = None
    name: ClassVar[str] = "slack"

    def __post_init__(self) -> None:
        if self.tpot_us is None:
            raise PolicyError("policy slack needs an objective: give --tpot-ms")
        self._objective_us = self.tpot_us
        self._target_us = _START * self.tpot_us
        self._since_ns: int | None = None
        self._seen_us: float | None = None

    def decide(self, state: ControllerState, now_ns: int) -> Decision:
        """A target for decode steps, as long as prefill and decode share the device; else no policy."""
        shared = sharing(state, now_ns)
        if isinstance(shared, Decision):
            self._since_ns = None  # what was seen alone says nothing about sharing
            return shared
        if self._since_ns is None:
            self._since_ns = now_ns
        self._follow(shared.decode, now_ns)
        gate = SetGate(
            policy=self.name,
            window_us=self.window_us,
            decode_target_us=self._target_us,
            overlap_slowdown=1.0,
            max_hold_us=self.max_hold_us,
            decode_idle_us=self.decode_idle_us,
            lease_s=self.lease_s,
            lanes=shared.roles,
        )
        evidence = shared.evidence | {"objective_us": self._objective_us, "token_time_us": self._seen_us}
        return Decision(gate, self._why(), evidence)

    def _follow(self, lanes: list[LaneState], now_ns: int) -> None:
        """Move the target once a period by what was seen of the lane that is worst off."""
        assert self._since_ns is not None
        since_ns = self._since_ns
        if now_ns - since_ns < int(PERIOD_S * 1e9):
            return
        worst_us = 0.0
        for lane in lanes:
            times_us = [time_ns / 1e3 for at_ns, time_ns in lane.token_times.arrived if at_ns > since_ns]
            if len(times_us) >= ENOUGH:
                worst_us = max(worst_us, quantile(times_us, self.percentile / 100) or 0.0)
        if not worst_us:
            return
        self._since_ns, self._seen_us = now_ns, worst_us
        error = worst_us / self._objective_us
        if error > 1:
            self._target_us *= max(SHRINK, 1 / error)
        elif error < CALM:
            self._target_us *= GROW
        self._target_us = min(self._objective_us, max(LEAST * self._objective_us, self._target_us))

    def _why(self) -> str:
        if self._seen_us is None:
            return "the time between tokens is not known yet"
        if self._seen_us > self._objective_us:
            return "tokens come later than the objective"
        return "tokens come in time"
