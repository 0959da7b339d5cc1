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
    "feed_losses, owned, doubtful (turns in which nothing was set, since what the steps say does not add "
    "up), and of those doubt_launches, doubt_contradiction, doubt_device_time, doubt_missing.",
    ("device", "kind"),
    "flexnpu.controller.events",
    "{event}",
)

DOUBT: Final = Metric(
    "flexnpu_controller_doubt_info",
    "gauge",
    "1 while the controller that owns the gate sets nothing for this reason, though prefill and decode "
    "share the device: launches (decode steps launch now more, now less than they should), contradiction "
    "(they are shorter beside a prefill than alone), device-time (the device's time and that of the steps do "
    "not agree), missing (most launches are in no step). Absent while it has no doubt.",
    ("device", "kind"),
    "flexnpu.controller.doubt",
    "1",
)
