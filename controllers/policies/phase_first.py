"""One phase before the other, whatever the step times: `DecodeFirst` and `PrefillFirst`.

Both are the gate's law with a target that is always missed: the phase that comes second goes only between the
first one's steps, within the window, and by the gate's bound on holds. So neither starves. Engines
schedule so, too: prefill first (Orca, vLLM without chunked prefill) or decode first (FasterTransformer), as
Sarathi-Serve names them (Agrawal et al., OSDI 2024, arXiv 2403.02310).
"""

from __future__ import annotations

from dataclasses import dataclass

from controllers.policies import Decision
from controllers.state import ControllerState, Role
from flexnpu.control.messages import Phase, SetGate

_NO_SLACK_US = 1.0
_SWAPPED: dict[Role, Phase] = {"prefill": "decode", "decode": "prefill", "unknown": "unknown"}


def _first(first: Role, state: ControllerState, lease_s: float, hold_us: float, name: str) -> Decision:
    roles: dict[int, Phase] = {
        state.numbers[lane.key]: lane.role for lane in state.lanes.values() if lane.role != "unknown"
    }
    if not {"prefill", "decode"} <= set(roles.values()):
        return Decision(None, "no prefill lane beside a decode lane")
    if first == "prefill":
        # The gate holds lanes that it knows as prefill for those that it knows as decode.
        roles = {lane: _SWAPPED[role] for lane, role in roles.items()}
    gate = SetGate(
        policy="protect-decode",
        decode_target_us=_NO_SLACK_US,
        overlap_slowdown=1.0,
        max_hold_us=hold_us,
        lease_s=lease_s,
        lanes=roles,
    )
    return Decision(gate, name)


@dataclass
class DecodeFirst:
    """Needs the lanes' roles. `hold_us`: the longest hold of an operator of a prefill, us."""

    lease_s: float = 1.0
    hold_us: float = 10_000.0
    name: str = "decode-first"

    def decide(self, state: ControllerState, now_ns: int) -> Decision:
        """Prefill waits for decode steps."""
        return _first("decode", state, self.lease_s, self.hold_us, self.name)


@dataclass
class PrefillFirst:
    """Needs the lanes' roles. `hold_us`: the longest hold of an operator of a decode step, us."""

    lease_s: float = 1.0
    hold_us: float = 10_000.0
    name: str = "prefill-first"

    def decide(self, state: ControllerState, now_ns: int) -> Decision:
        """Decode waits for prefill steps."""
        return _first("prefill", state, self.lease_s, self.hold_us, self.name)
