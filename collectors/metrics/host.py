"""From the host's scheduler, through the tracer (`probes.feed.events.HostDelay`)."""

from __future__ import annotations

from typing import Final

from collectors.metrics.metric import PROCESS, Metric

_SCOPE_HELP: Final = "scope: launcher (the threads that launch) or process (all threads)."
RUNQUEUE: Final = Metric(
    "flexnpu_host_runqueue_wait_seconds_total",
    "counter",
    f"Time for which threads were runnable and had no CPU. Long waits of launchers make steps longer "
    f"as a slow NPU would. {_SCOPE_HELP}",
    (*PROCESS, "scope"),
    "flexnpu.host.runqueue_wait",
    "s",
)
CPU: Final = Metric(
    "flexnpu_host_cpu_seconds_total",
    "counter",
    f"Time for which threads ran on a CPU. {_SCOPE_HELP}",
    (*PROCESS, "scope"),
    "flexnpu.host.cpu",
    "s",
)
IO: Final = Metric(
    "flexnpu_host_io_wait_seconds_total",
    "counter",
    "Time for which threads waited. kind: blkio (block devices) or swapin (pages from swap). Absent while "
    f"the kernel does not count it (sysctl kernel.task_delayacct). {_SCOPE_HELP}",
    (*PROCESS, "scope", "kind"),
    "flexnpu.host.io_wait",
    "s",
)
