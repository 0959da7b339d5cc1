"""Decode first: prefill runs where no decode step is expected to feel it.

That is between decode steps, and while a step waits for its host. Nothing is measured and no target is
needed: each step has no time to spare. Prefill keeps what the gate guarantees it, one operator in each
`max_hold_us`. A device that decode keeps busy leaves prefill that and no more, so TTFT is the price.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from controllers.policies import Decision
from controllers.policies._sharing import sharing
from controllers.state import ControllerState
from flexnpu.control.messages import SetGate

_NO_TIME_US = 1.0


@dataclass
class DecodeFirst:
    """The options go to the gate as they are (`SetGate`)."""

    lease_s: float
    window_us: float = 300.0
    max_hold_us: float | None = None
    decode_idle_us: float | None = None
    name: ClassVar[str] = "decode-first"

    def decide(self, state: ControllerState, now_ns: int) -> Decision:
        """The same setting, as long as prefill and decode share the device."""
        shared = sharing(state, now_ns)
        if isinstance(shared, Decision):
            return shared
        gate = SetGate(
            policy=self.name,
            window_us=self.window_us,
            decode_target_us=_NO_TIME_US,
            overlap_slowdown=1.0,
            max_hold_us=self.max_hold_us,
            decode_idle_us=self.decode_idle_us,
            lease_s=self.lease_s,
            lanes=shared.roles,
        )
        return Decision(gate, "prefill and decode share the device", shared.evidence)
