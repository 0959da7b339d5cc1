"""The OTLP side: the same measurements over HTTP, and spans of steps and requests."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Final

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Metric as Exported
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind, set_span_in_context

from collectors.aggregate import ttft_parts
from collectors.metrics.metric import ATTRIBUTES, Metric
from collectors.series import FORGET_S, Count, Distribution, Point, Series
from collectors.sinks import Labels, Snapshot
from probes.feed.events import RequestTiming, Step

_log = logging.getLogger(__name__)
_SCOPE: Final = "flexnpu.collectors"
_INTEGERS: Final = frozenset({"pid", "code"})

Attributes = dict[str, str | int | float | bool]


def attributes(metric: Metric, labels: Labels) -> Attributes:
    """A metric's labels as OTLP attributes (`metrics.metric.ATTRIBUTES`)."""
    return {
        ATTRIBUTES[name]: int(value) if name in _INTEGERS and value.isdigit() else value
        for name, value in zip(metric.labels, labels, strict=True)
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


class _Exports:
    """Sends what `measured` gives every `interval_s`, in a thread, and once more at the end.

    The SDK tries again for some seconds and logs an export that fails. What is counted goes with the next.
    """

    def __init__(self, endpoint: str, resource: Resource, measured: Measured, interval_s: float) -> None:
        self._exporter = OTLPMetricExporter(endpoint)
        self._resource = resource
        self._measured = measured
        self._interval = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self._export()
        self._export()

    def _export(self) -> None:
        try:
            scope = ScopeMetrics(InstrumentationScope(_SCOPE), self._measured.collect(time.time_ns()), "")
            self._exporter.export(MetricsData([ResourceMetrics(self._resource, [scope], "")]))
        except Exception:
            # Or no later export would be sent, and nobody would know.
            _log.exception("an OTLP export failed")

    def close(self, wait_s: float) -> None:
        """Send what is left, for at most `wait_s` seconds, and stop."""
        self._stop.set()
        self._thread.join(wait_s)
        self._exporter.shutdown()


class OtlpSink:
    """Exports to ``{endpoint}/v1/metrics`` and ``/v1/traces`` every `interval_s`.

    A process without events for `forget_s` seconds is in no later export. With `spans`, each step and each
    request is a span, dated by its own times; a request's first chunk is an event of it, and the parts of its
    TTFT are spans beneath it. Spans are dropped, with a log line of the SDK, when the endpoint is too slow.
    """

    def __init__(
        self,
        endpoint: str,
        snapshots: Sequence[Snapshot] = (),
        *,
        interval_s: float = 5.0,
        spans: bool = True,
        forget_s: float = FORGET_S,
    ) -> None:
        base = endpoint.rstrip("/")
        resource = Resource.create({"service.name": "flexnpu"})
        self._series = Series(forget_s)
        measured = Measured(self._series, snapshots)
        self._exports = _Exports(f"{base}/v1/metrics", resource, measured, interval_s)
        self._traces: TracerProvider | None = None
        if spans:
            self._traces = TracerProvider(resource=resource)
            self._traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{base}/v1/traces")))
            self._tracer = self._traces.get_tracer(_SCOPE)

    def add(self, metric: Metric, labels: Labels, amount: float = 1.0) -> None:
        """Count."""
        self._series.add(metric, labels, amount)

    def observe(self, metric: Metric, labels: Labels, value: float) -> None:
        """Put a value into a histogram."""
        self._series.observe(metric, labels, value)

    def step(self, step: Step) -> None:
        """Send a step's span, dated by its own times."""
        if self._traces is None:
            return
        shift = time.time_ns() - time.monotonic_ns()
        found: Attributes = {
            "process.pid": step.pid,
            "process.executable.name": step.comm,
            "flexnpu.stream": f"{step.stream:#x}",
            "flexnpu.evidence": step.evidence,
            "flexnpu.confidence": step.confidence,
        }
        if step.launches is not None:
            found["flexnpu.launches"] = step.launches
        if step.tokens is not None:
            found["flexnpu.tokens"] = step.tokens
        if step.batch is not None:
            found["flexnpu.batch"] = step.batch
        if step.gated_us is not None:
            found["flexnpu.gated"] = step.gated_us / 1e6
        span = self._tracer.start_span(
            f"step {step.phase}", attributes=found, start_time=step.t_start_ns + shift
        )
        span.end(step.t_end_ns + shift)

    def request(self, request: RequestTiming) -> None:
        """Send a request's span and those of its parts. One without an end is left out."""
        end = request.t_end_ns or (request.chunk_ns[-1] if request.chunk_ns else None)
        if self._traces is None or end is None:
            return
        shift = time.time_ns() - time.monotonic_ns()
        found: Attributes = {
            "process.pid": request.pid,
            "process.executable.name": request.comm,
            "url.path": request.path,
            "flexnpu.request.complete": request.complete,
            "flexnpu.request.chunks": len(request.chunk_ns),
        }
        if request.status is not None:
            found["http.response.status_code"] = request.status
        for name, value in (
            ("flexnpu.request.prompt_chars", request.prompt_chars),
            ("gen_ai.usage.input_tokens", request.prompt_tokens),
            ("gen_ai.usage.output_tokens", request.tokens if request.tokens_from == "usage" else None),
            ("flexnpu.request.prefill_steps", request.prefill_steps),
            ("flexnpu.request.join_confidence", request.join_confidence),
        ):
            if value is not None:
                found[name] = value
        start = request.t_arrival_ns + shift
        span = self._tracer.start_span("request", kind=SpanKind.SERVER, attributes=found, start_time=start)
        if request.t_first_ns is not None:
            span.add_event("gen_ai.first_token", timestamp=request.t_first_ns + shift)
            # One behind the other: between chunks of a prompt and amid a step, queue and gate have no place.
            at = start
            for part, us in ttft_parts(request):
                child = self._tracer.start_span(
                    f"request {part}",
                    context=set_span_in_context(span),
                    attributes={"flexnpu.request.part": part},
                    start_time=at,
                )
                at += round(us * 1000)
                child.end(at)
        span.end(end + shift)

    def close(self) -> None:
        """Send what is left, for a bounded time, and stop."""
        self._exports.close(5)
        if self._traces is not None:
            self._traces.force_flush(5000)
            self._traces.shutdown()
