"""The policies by name: each module has a class that follows `Policy`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from controllers.picture import Picture
from flexnpu.control.messages import SetGate


@dataclass(frozen=True)
class Decision:
    """What to set, if anything, and why."""

    gate: SetGate | None
    """None: no policy; one that is set is withdrawn."""
    why: str
    evidence: dict[str, object] = field(default_factory=dict)


class Policy(Protocol):
    """Decides from a settled `Picture`; `now_ns` is CLOCK_MONOTONIC."""

    name: str

    def decide(self, picture: Picture, now_ns: int) -> Decision: ...
