"""The OTLP side: the same measurements over HTTP, and spans of steps and requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, set_span_in_context

from collectors import metrics
from collectors.aggregate import ttft_parts
from collectors.metrics.metric import ATTRIBUTES, Metric
from collectors.sinks import Labels, Snapshot
from probes.feed.events import RequestTiming, Step

_SCOPE: Final = "flexnpu.collectors"
_INTEGERS: Final = frozenset({"pid", "code"})

Attributes = dict[str, str | int | float | bool]


def attributes(metric: Metric, labels: Labels) -> Attributes:
    """A metric's labels as OTLP attributes (`metrics.metric.ATTRIBUTES`)."""
    return {
        ATTRIBUTES[name]: int(value) if name in _INTEGERS and value.isdigit() else value
        for name, value in zip(metric.labels, labels, strict=True)
    }


class OtlpSink:
    """Exports to ``{endpoint}/v1/metrics`` and ``/v1/traces`` every `interval_s`.

    With `spans`, each step and each request is a span, dated by its own times; a request's first chunk is
    an event of it, and the parts of its TTFT are spans beneath it. Spans are dropped, with a log line of the
    SDK, when the endpoint is too slow for them.
    """

    def __init__(
        self,
        endpoint: str,
        snapshots: Sequence[Snapshot] = (),
        *,
        interval_s: float = 5.0,
        spans: bool = True,
    ) -> None:
        base = endpoint.rstrip("/")
        resource = Resource.create({"service.name": "flexnpu"})
        reader = PeriodicExportingMetricReader(
            OTLPMetricExporter(f"{base}/v1/metrics"), export_interval_millis=interval_s * 1000
        )
        self._meters = MeterProvider([reader], resource)
        meter = self._meters.get_meter(_SCOPE)
        self._counters: dict[Metric, Counter] = {}
        self._histograms: dict[Metric, Histogram] = {}
        for metric in metrics.METRICS:
            if metric in metrics.EVENT_METRICS and metric.kind == "histogram":
                self._histograms[metric] = meter.create_histogram(
                    metric.otel, metric.unit, metric.help, explicit_bucket_boundaries_advisory=metric.buckets
                )
            elif metric in metrics.EVENT_METRICS:
                self._counters[metric] = meter.create_counter(metric.otel, metric.unit, metric.help)
            else:
                create = (
                    meter.create_observable_counter
                    if metric.kind == "counter"
                    else meter.create_observable_gauge
                )
                create(metric.otel, [_reader(metric, snapshots)], metric.unit, metric.help)
        self._traces: TracerProvider | None = None
        if spans:
            self._traces = TracerProvider(resource=resource)
            self._traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{base}/v1/traces")))
            self._tracer = self._traces.get_tracer(_SCOPE)

    def add(self, metric: Metric, labels: Labels, amount: float = 1.0) -> None:
        self._counters[metric].add(amount, attributes(metric, labels))

    def observe(self, metric: Metric, labels: Labels, value: float) -> None:
        self._histograms[metric].record(max(0.0, value), attributes(metric, labels))

    def step(self, step: Step) -> None:
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
        self._meters.shutdown(5000)
        if self._traces is not None:
            self._traces.force_flush(5000)
            self._traces.shutdown()


def _reader(
    metric: Metric, snapshots: Sequence[Snapshot]
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def read(_options: CallbackOptions) -> Iterable[Observation]:
        for snapshot in snapshots:
            for sample in snapshot():
                if sample.metric == metric:
                    yield Observation(sample.value, attributes(metric, sample.labels))

    return read
