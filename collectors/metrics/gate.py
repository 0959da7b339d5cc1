"""From a daemon's control socket: the dispatch gate and the controller that owns it
(`flexnpu.control.messages.GateStatus`).
"""

from __future__ import annotations

from typing import Final

from collectors.metrics.metric import Metric

POLICY: Final = Metric(
    "flexnpu_gate_policy_info",
    "gauge",
    "1 for the policy in force.",
    ("device", "policy"),
    "flexnpu.gate.policy",
)
WINDOW: Final = Metric(
    "flexnpu_gate_window_seconds",
    "gauge",
    "Prefill work that may be in flight while decode is amid a step. Absent while the gate is transparent.",
    ("device",),
    "flexnpu.gate.window",
    "s",
)
DECODE_TARGET: Final = Metric(
    "flexnpu_gate_decode_target_seconds",
    "gauge",
    "Step target given to decode lanes. Absent when none was given.",
    ("device",),
    "flexnpu.gate.decode_target",
    "s",
)
OVERLAP_SLOWDOWN: Final = Metric(
    "flexnpu_gate_overlap_slowdown_ratio",
    "gauge",
    "Decode slowdown for prefill work beside it, set or learned. Absent while the gate is transparent.",
    ("device",),
    "flexnpu.gate.overlap_slowdown",
)
LEASE: Final = Metric(
    "flexnpu_gate_lease_seconds",
    "gauge",
    "What is left of the controller's lease. Absent while the gate is transparent.",
    ("device",),
    "flexnpu.gate.lease",
    "s",
)
EXPIRED_LEASES: Final = Metric(
    "flexnpu_gate_expired_leases_total",
    "counter",
    "Leases that ran out because the controller fell silent.",
    ("device",),
    "flexnpu.gate.expired_leases",
    "{lease}",
)
OWNER: Final = Metric(
    "flexnpu_gate_owner_info",
    "gauge",
    "1 for the controller that owns the gate. Absent while nobody does.",
    ("device", "pid", "comm"),
    "flexnpu.gate.owner",
)
