"""Alert rules for each way in which measuring can end while the objective looks met.

A series that ends makes ``== 0`` false, so what can take its own series along is asked for in two ways: by
its value, and by its absence where it was before (`_gone`).
"""

from __future__ import annotations

from typing import Any, Final

from collectors.metrics import Metric, collector, daemon, engine, process, requests, steps, tracer
from collectors.metrics.metric import PROCESS

WHO: Final = "{{ $labels.service }}{{ $labels.comm }} {{ $labels.pid }}"
"""A service, or the process that stands for it, in an alert's words."""

COLLECTOR_JOBS: Final = ".*flexnpu.*"
"""Jobs of Prometheus whose targets are collectors."""
MEMORY: Final = "1d"
"""How long what was there before is missed."""
STUCK_S: Final = 60.0
"""A request that has waited for its first token for so long, and ten times the objective's threshold, is
stuck."""

# Not lost, but undecided, beyond a limit that costs no timing, or given up for the tracer's budget.
_BENIGN: Final = (
    "unclassified|reopened|foreign|wire_unsupported|wire_cut_requests"
    "|shed_.*|over_budget|layout_unknown|process_events_lost"
)
_BY: Final = f"by ({', '.join(PROCESS)})"
_SAME_COLLECTOR: Final = "on (job, instance)"


def _gone(metric: Metric) -> str:
    """PromQL: where the metric had series lately and has none now."""
    return f"(present_over_time({metric.name}[{MEMORY}]) unless {metric.name})"


def _collector_gone() -> str:
    """A target that cannot be scraped; one that was taken off, or lost; none at all."""
    connected = collector.FEED_CONNECTED
    unreachable = f'(up{{job=~"{COLLECTOR_JOBS}"}} == 0)'
    lost = _gone(connected)
    none = f"(absent({connected.name}) unless on () ({lost} or {unreachable}))"
    return f"{lost} or {unreachable} or {none}"


def _daemon_gone() -> str:
    """It does not answer; or a collector that knew it was restarted, and has not found it again."""
    lost = f"({_gone(daemon.UP)} and {_SAME_COLLECTOR} {collector.FEED_CONNECTED.name})"
    return f"({daemon.UP.name} == 0) or {lost}"


def _unseen() -> str:
    """A server with a listening socket and clients of which no request was seen for a quarter of an hour,
    while clients wait to be read, or its engine works: idle connections alone are no sign."""
    clients = (
        f"max {_BY} ({process.LISTENING.name}) > 0 "
        f"and max {_BY} (max_over_time({process.CONNECTIONS.name}[15m])) > 0"
    )
    waits = f"max by (service) (min_over_time({process.UNREAD.name}[5m])) > 0"
    works = f'sum by (service) (increase({steps.STEPS.name}{{phase="decode"}}[15m])) > 0'
    ended = f"sum by (service) (increase({requests.REQUESTS.name}[15m])) > 0"
    running = f"max by (service) (max_over_time({requests.IN_FLIGHT.name}[15m])) > 0"
    return f"({clients}) and on (service) ({waits} or {works}) unless on (service) ({ended} or {running})"


def _stuck() -> str:
    oldest = f"max {_BY} ({requests.OLDEST_WAITING.name})"
    return f"{oldest} > {STUCK_S:g} and {oldest} > 10 * scalar(max({collector.SLO_THRESHOLD.name}))"


def rules() -> list[dict[str, Any]]:
    """The rules of the group ``flexnpu-measurement``."""
    return [
        _rule(
            "FlexnpuCollectorGone",
            _collector_gone(),
            "5m",
            "the collector {{ $labels.instance }} is gone: nothing is measured",
            "No objective is watched on its host. Is the host there, and flexnpu-collector running? If "
            f"it was taken away for good, remove its target; the alert ends {MEMORY} after its last scrape.",
            "page",
        ),
        _rule(
            "FlexnpuNotMeasured",
            f"{collector.FEED_CONNECTED.name} == 0",
            "5m",
            "no tracer: steps and requests are not measured",
            "The TTFT objective is not watched. Type: sudo flexnpu-probe attach --all --feed",
        ),
        _rule(
            "FlexnpuTracerSilent",
            f"{collector.TRACER_SILENCE.name} > 60",
            "2m",
            "the tracer is connected and says nothing",
            "It speaks every second, so it hangs, and the TTFT objective is not watched. Restart it: "
            "sudo flexnpu-probe attach --all --feed",
        ),
        _rule(
            "FlexnpuDaemonGone",
            _daemon_gone(),
            "2m",
            "the daemon of NPU {{ $labels.device }} is gone",
            "Programs on this device get no answer, and nothing of its lanes and gate is measured. Start "
            "flexnpud again; if it was stopped for good, restart the collector, and the alert ends "
            f"{MEMORY} later.",
            "page",
        ),
        _rule(
            "FlexnpuDaemonHangs",
            f"{daemon.DATA_PLANE_UP.name} == 0",
            "2m",
            "the daemon of NPU {{ $labels.device }} answers, but its data plane does not",
            "Programs on this device may hang. Its log says more.",
            "page",
        ),
        _rule(
            "FlexnpuProbeLost",
            f"{process.PROBES.name} == 0",
            "2m",
            f"{WHO} uses an NPU and is not traced",
            "The tracer could not attach to it; its standard error says why. Steps of this process are not "
            "measured.",
        ),
        _rule(
            "FlexnpuServerUnseen",
            _unseen(),
            "5m",
            f"no request is seen of {WHO}, which has a listening socket and clients",
            "It does not read what its clients send, or it speaks what the wire tracer cannot read (TLS, "
            "HTTP/2, io_uring; the loss counters of source wire say which). Its TTFT objective is not "
            "watched.",
        ),
        _rule(
            "FlexnpuRequestsStuck",
            _stuck(),
            "1m",
            f"a request to {WHO} has waited {{{{ $value | humanizeDuration }}}} for its first token",
            "It was counted as bad once; while nobody sends another, the burn rate falls although the engine "
            "hangs. Is the engine alive, the device busy, the gate holding its lane?",
            "page",
        ),
        _rule(
            "FlexnpuEngineUnread",
            f"{engine.UP.name} == 0",
            "5m",
            "the metrics page {{ $labels.url }} cannot be read",
            "The engine is dead or hangs, or its address has changed.",
        ),
        _rule(
            "FlexnpuSeriesEvicted",
            f"increase({collector.EVICTED.name}[10m]) > 0",
            None,
            "the collector sees more services than it keeps series of",
            "Counters of services that were silent longest begin anew. Give the processes of a service "
            "one name: OTEL_SERVICE_NAME.",
        ),
        _rule(
            "FlexnpuEventsLost",
            f'sum by (source, kind) (increase({tracer.LOST_EVENTS.name}{{kind!~"{_BENIGN}"}}[10m])) > 0',
            None,
            "the tracer loses events ({{ $labels.kind }})",
            "Figures of the PD co-location dashboard are too low by what was lost.",
        ),
    ]


def _rule(
    name: str, expr: str, wait: str | None, summary: str, description: str, severity: str = "ticket"
) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expr,
        **({"for": wait} if wait else {}),
        "labels": {"severity": severity},
        "annotations": {"summary": summary, "description": description},
    }
