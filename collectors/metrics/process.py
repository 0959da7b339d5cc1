"""From the tracer, of the processes that it watches (`probes.feed.events.ProcessState`)."""

from __future__ import annotations

from typing import Final

from collectors.metrics.metric import PROCESS, Metric

INFO: Final = Metric(
    "flexnpu_process_info",
    "gauge",
    "1 for each process that is watched: which service it belongs to, and its present name.",
    PROCESS,
    "flexnpu.process.info",
)
PROBES: Final = Metric(
    "flexnpu_process_probes",
    "gauge",
    "Probes on the process. 0 for one that uses an NPU and could not be attached to. Absent for one that "
    "only serves HTTP.",
    PROCESS,
    "flexnpu.process.probes",
    "{probe}",
)
LISTENING: Final = Metric(
    "flexnpu_process_listening_sockets",
    "gauge",
    "TCP sockets on which a process listens whose traffic is watched.",
    PROCESS,
    "flexnpu.process.listening_sockets",
    "{socket}",
)
CONNECTIONS: Final = Metric(
    "flexnpu_process_connections",
    "gauge",
    "Connections to those sockets.",
    PROCESS,
    "flexnpu.process.connections",
    "{connection}",
)
UNREAD: Final = Metric(
    "flexnpu_process_unread_connections",
    "gauge",
    "Connections to those sockets that the process has not accepted, or on which it has not read what came.",
    PROCESS,
    "flexnpu.process.unread_connections",
    "{connection}",
)
