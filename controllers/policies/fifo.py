"""First come, first dispatched: no policy. What every other one is held against."""

from __future__ import annotations

from dataclasses import dataclass

from controllers.policies import Decision
from controllers.state import ControllerState


@dataclass
class Fifo:
    """Needs nothing."""

    lease_s: float = 1.0
    name: str = "fifo"

    def decide(self, state: ControllerState, now_ns: int) -> Decision:
        """Never a setting: the gate is transparent."""
        return Decision(None, "first come, first dispatched")
