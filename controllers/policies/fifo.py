"""First in, first out: the gate stays transparent.

What every other policy is compared with. The controller owns the gate all the same, so that no other sets it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from controllers.policies import Decision
from controllers.state import ControllerState


@dataclass
class Fifo:
    """Has no options."""

    name: ClassVar[str] = "fifo"

    def decide(self, state: ControllerState, now_ns: int) -> Decision:
        """Nothing, ever."""
        return Decision(None, "first in, first out")
