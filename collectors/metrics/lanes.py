"""From a daemon's control socket: lanes, one a client stream (`flexnpu.control.messages.LaneStatus`)."""

from __future__ import annotations

from typing import Final

from collectors.metrics.metric import LANE, Metric

PHASE: Final = Metric(
    "flexnpu_lane_phase_info",
    "gauge",
    "1 for the phase that the gate takes the lane to be in.",
    (*LANE, "phase"),
    "flexnpu.lane.phase",
)
QUEUED: Final = Metric(
    "flexnpu_lane_queue_operators",
    "gauge",
    "Operators of the lane that wait to be dispatched.",
    LANE,
    "flexnpu.lane.queue",
    "{operator}",
)
IN_FLIGHT: Final = Metric(
    "flexnpu_lane_in_flight_operators",
    "gauge",
    "Operators of the lane that were dispatched and are not known to be complete.",
    LANE,
    "flexnpu.lane.in_flight",
    "{operator}",
)
IN_FLIGHT_TIME: Final = Metric(
    "flexnpu_lane_in_flight_seconds",
    "gauge",
    "Estimated device time of the lane's operators in flight.",
    LANE,
    "flexnpu.lane.in_flight_time",
    "s",
)
LAUNCHED: Final = Metric(
    "flexnpu_lane_operators_total",
    "counter",
    "Operators of the lane that were dispatched.",
    LANE,
    "flexnpu.lane.operators",
    "{operator}",
)
DEVICE_TIME: Final = Metric(
    "flexnpu_lane_device_seconds_total",
    "counter",
    "Device time of the lane's operators: measured where it was, else estimated.",
    LANE,
    "flexnpu.lane.device_time",
    "s",
)
GATED: Final = Metric(
    "flexnpu_lane_gated_seconds_total",
    "counter",
    "Time for which the gate held the lane's next operator.",
    LANE,
    "flexnpu.lane.gated",
    "s",
)
