"""From a daemon's control socket: what the gate's owner counts
(`flexnpu.control.messages.GateOwner.counts`).
"""

from __future__ import annotations

from typing import Final

from collectors.metrics.metric import Metric

EVENTS: Final = Metric(
    "flexnpu_controller_events_total",
    "counter",
    "What the controller that owns the gate has counted since it started, by its own name: steps that it "
    "used, unmapped (of streams that are no lanes), unjudged (too old before it was known whether they ran "
    "alone), feed_dropped (lines that it was too slow for), decisions, changes, renewals, failures, "
    "feed_losses, owned.",
    ("device", "kind"),
    "flexnpu.controller.events",
    "{event}",
)
