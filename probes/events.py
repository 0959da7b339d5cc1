"""Events of the probes under their former name, for programs outside of FlexNPU.

Ours import `probes.feed.events`.
"""

from __future__ import annotations

from probes.feed.events import (
    DELIVERED,
    VERSION,
    EngineMetrics,
    Event,
    EventError,
    HostDelay,
    Losses,
    OperatorMix,
    Phase,
    RequestTiming,
    Step,
    StepBegin,
    from_json,
    is_loss,
)

__all__ = [
    "DELIVERED",
    "VERSION",
    "EngineMetrics",
    "Event",
    "EventError",
    "HostDelay",
    "Losses",
    "OperatorMix",
    "Phase",
    "RequestTiming",
    "Step",
    "StepBegin",
    "from_json",
    "is_loss",
]
