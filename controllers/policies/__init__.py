"""The policies by name: each module has a class that follows `Policy`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from controllers.state import ControllerState
from flexnpu.control.messages import Doubt, SetGate


@dataclass(frozen=True)
class Decision:
    """What to set, if anything, and why."""

    gate: SetGate | None
    """None: no policy; one that is set is withdrawn."""
    why: str
    evidence: dict[str, object] = field(default_factory=dict)
    details: Callable[[], dict[str, object]] = dict
    """More evidence, which costs too much to work out for a decision that is no news."""
    doubt: Doubt | None = None
    """What spoke against acting."""
    holds: bool = False
    """Whether `gate` holds prefill wherever decode could feel it (`controllers.alone`)."""
    again_s: float | None = None
    """When to decide again, at the latest; None: at the next turn."""


class Policy(Protocol):
    """Decides from a settled `ControllerState`; `now_ns` is CLOCK_MONOTONIC."""

    name: str

    def decide(self, state: ControllerState, now_ns: int) -> Decision:
        """What to set now, and why. Must not wait: it is called at every turn of the controller."""
        ...
