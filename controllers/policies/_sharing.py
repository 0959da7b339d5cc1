"""What policies share: whether there is anything to decide, and how a setting names lanes."""

from __future__ import annotations

from dataclasses import dataclass

from controllers.policies import Decision
from controllers.state import MEMORY_S, ControllerState, LaneState
from flexnpu.control.messages import Phase


@dataclass(frozen=True)
class Sharing:
    """Lanes that share the device now."""

    decode: list[LaneState]
    """With decode steps lately."""
    prefill: list[LaneState]
    """A lane may be in both."""
    roles: dict[int, Phase]
    """Of all lanes that have one, by number, for the gate."""
    evidence: dict[str, object]


def sharing(state: ControllerState, now_ns: int) -> Sharing | Decision:
    """Who shares the device; the decision to set nothing where nobody does."""
    horizon = now_ns - int(MEMORY_S * 1e9)
    decode = [lane for lane in state.decoding() if lane.last_step_ns > horizon]
    prefill = state.prefilling()
    if not decode:
        return Decision(None, "no decode lane with recent steps")
    if not any(one is not other for one in prefill for other in decode):
        return Decision(None, "no prefill lane beside decode")
    roles: dict[int, Phase] = {
        state.numbers[lane.key]: lane.role for lane in state.lanes.values() if lane.role != "unknown"
    }
    evidence: dict[str, object] = {
        "decode_lanes": sorted(state.numbers[lane.key] for lane in decode),
        "prefill_lanes": sorted(state.numbers[lane.key] for lane in prefill),
    }
    return Sharing(decode, prefill, roles, evidence)
