"""The one registry of metrics: names, units, help, labels, buckets, for dashboards, alerts and tests.

One file a source: `requests`, `steps`, `host`, `engine`, `process` and `tracer` come over the tracer's feed,
`daemon`, `lanes`, `gate` and `controller` from a daemon's control socket, `collector` from the collector
itself. ``python -m collectors.metrics`` prints all of them as Markdown: docs/reference/metrics.md.

Names follow Prometheus: the prefix ``flexnpu_``, base units (seconds, bytes), ``_total`` for counters, and
what varies (the phase, the process) in labels. OTLP carries the same measurements under `Metric.otel`: the
OpenTelemetry semantic conventions' name where there is one (``gen_ai.server.*``), else ``flexnpu.`` and
dots, with `metric.ATTRIBUTES` for labels. The conventions' attribute ``gen_ai.provider.name`` is left out:
the wire does not say it.

Counters and histograms belong to a service, which outlives its processes; while none is known of a process,
to the process (`metric.PROCESS`). What a rate is asked of exists at 0 from the first sight of a process.
Other series exist only once there was something to measure.
"""

from __future__ import annotations

from types import ModuleType
from typing import Final

from collectors.metrics import (
    collector,
    controller,
    daemon,
    engine,
    gate,
    host,
    lanes,
    metric,
    process,
    requests,
    steps,
    tracer,
)
from collectors.metrics.metric import Metric

__all__ = [
    "BY_SOURCE",
    "EVENT_METRICS",
    "METRICS",
    "Metric",
    "collector",
    "controller",
    "daemon",
    "engine",
    "gate",
    "host",
    "lanes",
    "metric",
    "process",
    "requests",
    "steps",
    "tracer",
]


def _of(module: ModuleType) -> tuple[Metric, ...]:
    return tuple(value for value in vars(module).values() if isinstance(value, Metric))


BY_SOURCE: Final[dict[ModuleType, tuple[Metric, ...]]] = {
    module: _of(module)
    for module in (requests, steps, host, engine, process, tracer, daemon, lanes, gate, controller, collector)
}
"""The metrics of each source, in the order of their files."""

METRICS: Final[tuple[Metric, ...]] = tuple(one for found in BY_SOURCE.values() for one in found)

EVENT_METRICS: Final[tuple[Metric, ...]] = tuple(
    one for module in (requests, steps, host) for one in BY_SOURCE[module] if one.kind != "gauge"
)
"""Fed event by event; the others are read off at the time of a scrape."""
