"""The Prometheus side: measurements as prometheus-client metrics, served over HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from collectors import metrics
from collectors.metrics.metric import Metric
from collectors.sinks import Labels, Sample, Snapshot
from probes.feed.events import RequestTiming, Step

FORGET_S: Final = 3600.0
"""Series of a process that gave no event for so long are dropped. Processes come and go; their series must
not pile up.
"""


class PrometheusSink:
    """Keeps `metrics.EVENT_METRICS` in a registry, and reads the others off `snapshots` at every scrape."""

    def __init__(self, snapshots: Sequence[Snapshot] = (), *, forget_s: float = FORGET_S) -> None:
        # Else each counter and histogram has one series more, which nothing reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._forget_s = forget_s
        self._seen: dict[tuple[Metric, Labels], float] = {}
        self._next_sweep = 0.0
        self._lock = threading.Lock()
        self._counters: dict[Metric, Counter] = {}
        self._histograms: dict[Metric, Histogram] = {}
        for metric in metrics.EVENT_METRICS:
            if metric.kind == "counter":
                self._counters[metric] = Counter(
                    metric.name, metric.help, metric.labels, registry=self.registry
                )
            else:
                self._histograms[metric] = Histogram(
                    metric.name, metric.help, metric.labels, registry=self.registry, buckets=metric.buckets
                )
        self.registry.register(_Read(snapshots))

    def add(self, metric: Metric, labels: Labels, amount: float = 1.0) -> None:
        counter = self._counters[metric]
        (counter.labels(*labels) if labels else counter).inc(amount)
        self._touch(metric, labels)

    def observe(self, metric: Metric, labels: Labels, value: float) -> None:
        # Times of two threads may cross by nanoseconds.
        self._histograms[metric].labels(*labels).observe(max(0.0, value))
        self._touch(metric, labels)

    def step(self, step: Step) -> None:
        """Prometheus has no spans."""

    def request(self, request: RequestTiming) -> None:
        """Prometheus has no spans."""

    def _touch(self, metric: Metric, labels: Labels) -> None:
        if "pid" not in metric.labels:
            return
        now = time.monotonic()
        self._seen[metric, labels] = now
        if now < self._next_sweep:
            return
        self._next_sweep = now + self._forget_s / 10
        # A process is dropped as a whole: half of its series would be misread.
        latest: dict[str, float] = {}
        for (_, key), at in self._seen.items():
            latest[key[0]] = max(at, latest.get(key[0], at))
        for seen, key in list(self._seen):
            if now - latest[key[0]] > self._forget_s:
                del self._seen[seen, key]
                (self._counters.get(seen) or self._histograms[seen]).remove(*key)


class _Read(Collector):
    def __init__(self, snapshots: Sequence[Snapshot]) -> None:
        self._snapshots = snapshots

    def describe(self) -> Iterable[Family]:
        return []

    def collect(self) -> Iterator[Family]:
        by_metric: dict[Metric, list[Sample]] = {}
        for snapshot in self._snapshots:
            for sample in snapshot():
                by_metric.setdefault(sample.metric, []).append(sample)
        for metric, samples in by_metric.items():
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(metric.name, metric.help, labels=metric.labels)
            for sample in samples:
                family.add_metric(sample.labels, sample.value)
            yield family


def serve(sink: PrometheusSink, host: str, port: int) -> tuple[WSGIServer, threading.Thread]:
    """Serve ``/metrics`` at `host`, `port` (0: any free). Raises `OSError` when it cannot listen there."""
    return start_http_server(port, host, sink.registry)
