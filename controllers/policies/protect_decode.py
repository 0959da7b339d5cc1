"""Protect decode: bound the prefill work beside decode steps, in microseconds.

Acts while a decode lane has had steps in the last `MEMORY_S` and there is a prefill lane. The decode target
is given, or `factor` times the median of decode steps that ran beside no prefill; while none was
seen, `factor` times the lowest 0.1 quantile of decode steps so far (they were all slowed, so the least
slowed are the best guess), and with too few steps for that it is left to the gate.
"""

from __future__ import annotations

from dataclasses import dataclass

from controllers.picture import MEMORY_S, MIN_STEPS, LaneView, Picture, quantile
from controllers.policies import Decision
from flexnpu.control.messages import Phase, SetGate

_STEADY = 0.1  # a target within this fraction of the last one is not worth a change


@dataclass
class ProtectDecode:
    """`window_us` and `slowdown` go to the gate as they are (`SetGate`)."""

    lease_s: float
    window_us: float = 300.0
    target_us: float | None = None
    factor: float = 1.3
    slowdown: float | None = 1.0
    name: str = "protect-decode"

    def __post_init__(self) -> None:
        self._last_target: float | None = None
        self._least_slowed: dict[tuple[int, int], float] = {}

    def decide(self, picture: Picture, now_ns: int) -> Decision:
        decode, prefill = picture.with_role("decode"), picture.with_role("prefill")
        horizon = now_ns - int(MEMORY_S * 1e9)
        live = [view for view in decode if view.steps and view.steps[-1].t_end_ns > horizon]
        if not live:
            return Decision(None, "no decode lane with recent steps")
        if not prefill:
            return Decision(None, "no prefill lane beside decode")
        target, source = self._target(live)
        roles: dict[int, Phase] = {
            picture.numbers[view.key]: view.role for view in picture.lanes.values() if view.role != "unknown"
        }
        gate = SetGate(
            policy="protect-decode",
            window_us=self.window_us,
            decode_target_us=target,
            overlap_slowdown=self.slowdown,
            lease_s=self.lease_s,
            lanes=roles,
        )
        evidence: dict[str, object] = {
            "target_from": source,
            "decode_lanes": sorted(picture.numbers[view.key] for view in live),
            "prefill_lanes": sorted(picture.numbers[view.key] for view in prefill),
            "decode_step_p50_us": quantile((d for view in live for d in view.durations("decode")), 0.5),
            "decode_step_p99_us": quantile((d for view in live for d in view.durations("decode")), 0.99),
            "solo_steps": sum(len(view.solo_us) for view in live),
        }
        return Decision(gate, "prefill and decode share the device", evidence)

    def _target(self, live: list[LaneView]) -> tuple[float | None, str]:
        """(target in us, where it comes from): one for all decode lanes, that of the slowest."""
        if self.target_us is not None:
            return self.target_us, "given"
        targets: list[float] = []
        source = "steps alone"
        for view in live:
            base = quantile(view.solo_us, 0.5) if len(view.solo_us) >= MIN_STEPS else self._guess(view)
            if base is not None:
                targets.append(base * self.factor)
            if len(view.solo_us) < MIN_STEPS:
                source = "least slowed steps"
        if not targets:
            return self._last_target, "left to the gate" if self._last_target is None else "as before"
        target = max(targets)
        if self._last_target is not None and abs(target - self._last_target) <= _STEADY * self._last_target:
            target = self._last_target
        self._last_target = target
        return target, source

    def _guess(self, view: LaneView) -> float | None:
        times = view.durations("decode")
        if len(times) < MIN_STEPS:
            return self._least_slowed.get(view.key)
        low = quantile(times, 0.1)
        assert low is not None
        self._least_slowed[view.key] = min(low, self._least_slowed.get(view.key, low))
        return self._least_slowed[view.key]
