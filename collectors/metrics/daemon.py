"""From a daemon's control socket: the daemon, its device and its sessions
(`flexnpu.control.messages.DaemonStatus`).
"""

from __future__ import annotations

from typing import Final

from collectors.metrics.metric import SESSION, Metric

UP: Final = Metric(
    "flexnpu_daemon_up",
    "gauge",
    "Whether the daemon of the device answers on its control socket: 1 or 0. At 0 for an hour after "
    "its socket is gone, then absent.",
    ("device",),
    "flexnpu.daemon.up",
)
DATA_PLANE_UP: Final = Metric(
    "flexnpu_daemon_data_plane_up",
    "gauge",
    "Whether the daemon's data plane answered in time: 1 or 0. At 0, sessions, lanes and counters are as old "
    "as its last answer, or absent.",
    ("device",),
    "flexnpu.daemon.data_plane.up",
)
DEVICE_INFO: Final = Metric(
    "flexnpu_device_info",
    "gauge",
    "1, with the device's chip and the daemon's version.",
    ("device", "soc", "version"),
    "flexnpu.device.info",
)
DEVICE_BUSY: Final = Metric(
    "flexnpu_device_busy_seconds_total",
    "counter",
    "Time for which the device ran operators.",
    ("device",),
    "flexnpu.device.busy",
    "s",
)
SESSION_MEMORY: Final = Metric(
    "flexnpu_session_memory_bytes",
    "gauge",
    "Device memory that the client process holds.",
    SESSION,
    "flexnpu.session.memory",
    "By",
)
SESSION_CALLS: Final = Metric(
    "flexnpu_session_calls_total",
    "counter",
    "Calls that the client process has made through its rings.",
    SESSION,
    "flexnpu.session.calls",
    "{call}",
)
SESSION_REFUSED: Final = Metric(
    "flexnpu_session_refused_calls_total",
    "counter",
    "Calls refused for a stale or forged handle, a foreign address or a malformed message.",
    SESSION,
    "flexnpu.session.refused_calls",
    "{call}",
)
SESSION_RING_FULL: Final = Metric(
    "flexnpu_session_ring_full_total",
    "counter",
    "Times that a thread of the client had to wait for room in its ring.",
    SESSION,
    "flexnpu.session.ring_full",
    "{wait}",
)
EVENTS: Final = Metric(
    "flexnpu_daemon_events_total",
    "counter",
    "What else the daemon's data plane counts, by its own name.",
    ("device", "kind"),
    "flexnpu.daemon.events",
    "{event}",
)
