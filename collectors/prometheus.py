"""The Prometheus side: measurements as prometheus-client metrics, served over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from collectors import metrics
from collectors.metrics.metric import Metric
from collectors.series import FORGET_S, Count, Distribution, Series
from collectors.sinks import Labels, Snapshot, distinct
from probes.feed.events import RequestTiming, Step


class PrometheusSink:
    """Keeps `metrics.EVENT_METRICS`, and reads the others off `snapshots` at every scrape.

    A service or process without events for `forget_s` seconds is in no later scrape.
    """

    def __init__(self, snapshots: Sequence[Snapshot] = (), *, forget_s: float = FORGET_S) -> None:
        self._series = Series(forget_s)
        for metric in (*metrics.EVENT_METRICS, metrics.collector.EVICTED):
            if not metric.labels:
                self._series.add(metric, (), 0.0)
        self.registry = CollectorRegistry()
        self.registry.register(_Read(self._series, snapshots))

    def add(self, metric: Metric, labels: Labels, amount: float = 1.0) -> None:
        """Count."""
        self._series.add(metric, labels, amount)

    def observe(self, metric: Metric, labels: Labels, value: float) -> None:
        """Put a value into a histogram."""
        self._series.observe(metric, labels, value)

    def step(self, step: Step) -> None:
        """Prometheus has no spans."""

    def request(self, request: RequestTiming) -> None:
        """Prometheus has no spans."""


class _Read(Collector):
    def __init__(self, series: Series, snapshots: Sequence[Snapshot]) -> None:
        self._series = series
        self._snapshots = snapshots

    def describe(self) -> Iterable[Family]:
        """Every metric's name, so that ``/metrics?name[]=...`` finds it."""
        return [_family(metric) for metric in metrics.METRICS]

    def collect(self) -> Iterator[Family]:
        """What is kept, then what is read off now. A metric without a series is left out."""
        seen: set[tuple[str, ...]] = set()
        for metric, points in self._series.collect().items():
            family = _family(metric)
            for labels, point in points:
                found = distinct(metric, labels, seen)
                if found is None:
                    continue
                if isinstance(point, Count):
                    family.add_sample(metric.name, found, point.total)
                else:
                    _add_histogram(family, metric, found, point)
            yield family
        by_metric: dict[Metric, Family] = {}
        for snapshot in self._snapshots:
            for sample in snapshot():
                found = distinct(sample.metric, sample.labels, seen)
                if found is not None:
                    family = by_metric.setdefault(sample.metric, _family(sample.metric))
                    family.add_sample(sample.metric.name, found, sample.value)
        yield from by_metric.values()


def _family(metric: Metric) -> Family:
    return Family(metric.name.removesuffix("_total"), metric.help, metric.kind)


def _add_histogram(family: Family, metric: Metric, named: dict[str, str], found: Distribution) -> None:
    bounds = (*map(floatToGoString, metric.buckets), "+Inf")
    total = 0
    for bound, count in zip(bounds, found.buckets, strict=True):
        total += count
        family.add_sample(metric.bucket, {**named, "le": bound}, total)
    family.add_sample(metric.count, named, total)
    family.add_sample(metric.sum, named, found.sum)


def serve(sink: PrometheusSink, host: str, port: int) -> tuple[WSGIServer, threading.Thread]:
    """Serve ``/metrics`` at `host`, `port` (0: any free). Raises `OSError` when it cannot listen there."""
    return start_http_server(port, host, sink.registry)
