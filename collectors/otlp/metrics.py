"""Metrics over OTLP: each export has what is kept and what is read off, and nothing that is gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Final

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Metric as Exported
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from collectors.metrics.metric import ATTRIBUTES, Metric
from collectors.otlp.trouble import SCOPE, Trouble
from collectors.series import Count, Distribution, Point, Series
from collectors.sinks import Labels, Snapshot, named

_INTEGERS: Final = frozenset({"pid", "code"})

Attributes = dict[str, str | int | float | bool]


def attributes(metric: Metric, labels: Labels) -> Attributes:
    """A metric's labels as OTLP attributes (`metrics.metric.ATTRIBUTES`)."""
    return {
        ATTRIBUTES[name]: int(value) if name in _INTEGERS and value.isdigit() else value
        for name, value in named(metric, labels).items()
    }


class Measured:
    """The metrics of each export: what is kept in `series`, then what `snapshots` read off.

    The SDK's instruments keep a series for every set of labels that there ever was. These do not.
    """

    def __init__(self, series: Series, snapshots: Sequence[Snapshot]) -> None:
        self._series = series
        self._snapshots = snapshots
        self._read_off: dict[tuple[Metric, Labels], Count] = {}
        """Counters of the last export that were read off; when they began is when they were first seen."""

    def collect(self, now_ns: int) -> list[Exported]:
        """Metrics with their points at `now_ns`, CLOCK_REALTIME."""
        points = self._series.collect() | self._read(now_ns)
        return [_exported(metric, found, now_ns) for metric, found in points.items()]

    def _read(self, now_ns: int) -> dict[Metric, list[tuple[Labels, Point]]]:
        before, self._read_off = self._read_off, {}
        points: dict[Metric, list[tuple[Labels, Point]]] = {}
        for sample in (one for snapshot in self._snapshots for one in snapshot()):
            count = before.get((sample.metric, sample.labels))
            # Who counts from zero again is a new series.
            if count is None or sample.value < count.total:
                count = Count(now_ns)
            count.total = sample.value
            self._read_off[sample.metric, sample.labels] = count
            points.setdefault(sample.metric, []).append((sample.labels, count))
        return points


def _exported(metric: Metric, points: Sequence[tuple[Labels, Point]], now_ns: int) -> Exported:
    data: Sum | Gauge | Histogram
    if metric.kind == "histogram":
        data = Histogram(
            [
                _distribution(metric, labels, one, now_ns)
                for labels, one in points
                if isinstance(one, Distribution)
            ],
            AggregationTemporality.CUMULATIVE,
        )
    else:
        numbers = [
            NumberDataPoint(
                attributes(metric, labels), one.start_ns if metric.kind == "counter" else 0, now_ns, one.total
            )
            for labels, one in points
            if isinstance(one, Count)
        ]
        data = Gauge(numbers)
        if metric.kind == "counter":
            data = Sum(numbers, AggregationTemporality.CUMULATIVE, is_monotonic=True)
    return Exported(metric.otel, metric.help, metric.unit, data)


def _distribution(metric: Metric, labels: Labels, found: Distribution, now_ns: int) -> HistogramDataPoint:
    return HistogramDataPoint(
        attributes=attributes(metric, labels),
        start_time_unix_nano=found.start_ns,
        time_unix_nano=now_ns,
        count=sum(found.buckets),
        sum=found.sum,
        bucket_counts=found.buckets,
        explicit_bounds=metric.buckets,
        min=found.least,
        max=found.most,
    )


class MetricExports:
    """Sends what `measured` gives every `interval_s`, in a thread, and once more at the end.

    The SDK tries an export again for some seconds. What is counted goes with the next.
    """

    def __init__(
        self, endpoint: str, resource: Resource, measured: Measured, interval_s: float, trouble: Trouble
    ) -> None:
        self._exporter = OTLPMetricExporter(endpoint)
        self._resource = resource
        self._measured = measured
        self._interval = interval_s
        self._trouble = trouble
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otlp-metrics", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self._export()
        self._export()

    def _export(self) -> None:
        try:
            scope = ScopeMetrics(InstrumentationScope(SCOPE), self._measured.collect(time.time_ns()), "")
            sent = self._exporter.export(MetricsData([ResourceMetrics(self._resource, [scope], "")]))
            self._trouble.told(sent is MetricExportResult.SUCCESS)
        except Exception as error:
            # Or no later export would be sent, and nobody would know.
            self._trouble.failed(repr(error))

    def end(self) -> None:
        """Begin the last export."""
        self._stop.set()

    def close(self, wait_s: float) -> None:
        """Give the last export at most `wait_s` seconds, and stop."""
        self._thread.join(wait_s)
        self._trouble.close()
        self._exporter.shutdown()
