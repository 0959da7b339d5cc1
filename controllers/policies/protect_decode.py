"""Protect decode: bound the prefill work beside decode steps, in microseconds.

Acts while a lane has had decode steps in the last `MEMORY_S` and another one prefills: as its role is, or as
its steps say (`LaneState.says`), where one lane may do both. The decode target is given, or for each lane
`factor` times the median of its decode steps that ran beside no prefill. Where none was seen lately, prefill
is held until some were (`controllers.alone`). Until then the target is `factor` times the lowest 0.1 quantile
of decode steps so far (they were all slowed, so the least slowed are the best guess), and with too few steps
for that it is left to the gate.

A target from steps is acted on only while nothing speaks against the steps (`controllers.doubts`). Else
nothing is set: a gate that follows wrong steps does harm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from controllers.alone import Holds
from controllers.doubts import ENOUGH, doubt
from controllers.policies import Decision
from controllers.policies._sharing import sharing
from controllers.state import MIN_STEPS, ControllerState, Key, LaneState
from flexnpu.common.quantiles import quantile
from flexnpu.control.messages import MAX_HOLD_US, Phase, SetGate

_STEADY = 0.1  # a target within this fraction of the last one is not worth a change
_NO_TIME_US = 1.0  # a step that is due at once has nothing to spare for prefill
_LOOK_S = 0.1  # how often it is looked whether a hold may end
_HOLD_LEASE_S = 1.0  # a controller that hangs amid a hold must not starve prefill for long


def _steady(target: float, last: float | None) -> float:
    return last if last is not None and abs(target - last) <= _STEADY * last else target


@dataclass
class ProtectDecode:
    """`window_us`, `slowdown`, `max_hold_us` and `decode_idle_us` go to the gate as they are (`SetGate`)."""

    lease_s: float
    window_us: float = 300.0
    target_us: float | None = None
    factor: float = 1.1
    slowdown: float | None = 1.0
    max_hold_us: float | None = None
    decode_idle_us: float | None = None
    name: ClassVar[str] = "protect-decode"

    def __post_init__(self) -> None:
        self._last_target: float | None = None
        self._last_of: dict[Key, float] = {}
        self._holds = Holds()

    def decide(self, state: ControllerState, now_ns: int) -> Decision:
        """A target for decode steps, as long as prefill and decode share the device; else no policy."""
        shared = sharing(state, now_ns)
        if isinstance(shared, Decision):
            return shared
        live = shared.decode
        if self.target_us is None and (found := doubt(live)) is not None:
            return Decision(None, f"not acted on: {found.text}", {"doubt": found.kind}, doubt=found.kind)
        if self.target_us is None and self._holds.due(live, now_ns):
            lease_s = min(self.lease_s, _HOLD_LEASE_S)
            gate = self._gate(shared.roles, _NO_TIME_US, MAX_HOLD_US, MAX_HOLD_US, lease_s)
            why = "prefill is held to see decode alone"
            return Decision(gate, why, shared.evidence, holds=True, again_s=_LOOK_S)
        target, targets, source = self._target(state, live)
        gate = self._gate(shared.roles, target, self.max_hold_us, self.decode_idle_us, self.lease_s)
        if targets:
            gate = gate.model_copy(update={"targets_us": targets})
        evidence: dict[str, object] = {
            "target_from": source,
            **({"targets_us": targets} if targets else {}),
            **shared.evidence,
            "solo_steps": sum(len(lane.solo) for lane in live),
            "holds": self._holds.made,
        }

        def details() -> dict[str, object]:
            durations_us = [duration_ns / 1e3 for lane in live for duration_ns in lane.decode]
            return {
                "decode_step_p50_us": quantile(durations_us, 0.5),
                "decode_step_p99_us": quantile(durations_us, 0.99),
            }

        return Decision(gate, "prefill and decode share the device", evidence, details)

    def _gate(
        self,
        roles: dict[int, Phase],
        target_us: float | None,
        max_hold_us: float | None,
        decode_idle_us: float | None,
        lease_s: float,
    ) -> SetGate:
        return SetGate(
            policy=self.name,
            window_us=self.window_us,
            decode_target_us=target_us,
            overlap_slowdown=self.slowdown,
            max_hold_us=max_hold_us,
            decode_idle_us=decode_idle_us,
            lease_s=lease_s,
            lanes=roles,
        )

    def _target(
        self, state: ControllerState, live: list[LaneState]
    ) -> tuple[float | None, dict[int, float], str]:
        """(target of all decode lanes in us, those of single lanes, where they come from). The one is that of
        the slowest lane; there are others only where lanes differ."""
        if self.target_us is not None:
            return self.target_us, {}, "given"
        targets: dict[Key, float] = {}
        source = "steps alone"
        for lane in live:
            alone = len(lane.solo) >= MIN_STEPS
            base = lane.solo.quantile_us(0.5) if alone else self._guess(lane)
            if base is not None:
                targets[lane.key] = _steady(base * self.factor, self._last_of.get(lane.key))
            if not alone:
                source = "least slowed steps"
        if not targets:
            return self._last_target, {}, "left to the gate" if self._last_target is None else "as before"
        self._last_of = targets
        self._last_target = _steady(max(targets.values()), self._last_target)
        differ = min(targets.values()) < (1 - _STEADY) * self._last_target
        own = {state.numbers[key]: target for key, target in targets.items()} if differ else {}
        return self._last_target, own, source

    def _guess(self, lane: LaneState) -> float | None:
        # Of few steps, the least may be one that was cut.
        if len(lane.decode) >= ENOUGH and (low := lane.decode.quantile_us(0.1)) is not None:
            lane.least_slowed_us = min(low, lane.least_slowed_us or low)
        return lane.least_slowed_us
