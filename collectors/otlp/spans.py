"""Spans over OTLP: a step each, and a request each with the parts of its TTFT."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

from collectors.aggregate import ttft_parts
from collectors.otlp.metrics import Attributes
from collectors.otlp.trouble import SCOPE, Trouble
from collectors.sinks import shown
from probes.feed.events import RequestTiming, Step


class _Exporter(SpanExporter):
    """The SDK's, which also tells what came of an export."""

    def __init__(self, endpoint: str, trouble: Trouble) -> None:
        self._exporter = OTLPSpanExporter(endpoint)
        self._trouble = trouble

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send `spans`."""
        result = self._exporter.export(spans)
        self._trouble.told(result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        """Send nothing more."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]


class SpanExports:
    """Sends spans, some seconds' together. Those that find the queue full are dropped."""

    def __init__(self, endpoint: str, resource: Resource, trouble: Trouble) -> None:
        self._trouble = trouble
        self._exporter = _Exporter(endpoint, trouble)
        # Ended by `close`: at the program's exit nobody would bound it.
        self._traces = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._traces.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._traces.get_tracer(SCOPE)
        self._ending = threading.Thread(target=self._traces.shutdown, name="otlp-spans-end", daemon=True)

    def step(self, step: Step) -> None:
        """Send a step's span, dated by its own times."""
        shift = time.time_ns() - time.monotonic_ns()
        found: Attributes = {
            "process.pid": step.pid,
            "process.executable.name": shown(step.comm),
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
        if end is None:
            return
        shift = time.time_ns() - time.monotonic_ns()
        found: Attributes = {
            "process.pid": request.pid,
            "process.executable.name": shown(request.comm),
            "url.path": shown(request.path),
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
            ("flexnpu.request.error", request.error),
        ):
            if value is not None:
                found[name] = value
        start = request.t_arrival_ns + shift
        span = self._tracer.start_span("request", kind=SpanKind.SERVER, attributes=found, start_time=start)
        if request.error is not None:
            span.set_status(StatusCode.ERROR)
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

    def end(self) -> None:
        """Begin to send what is left."""
        self._ending.start()

    def close(self, wait_s: float) -> None:
        """Give what is left at most `wait_s` seconds, and stop."""
        self._ending.join(wait_s)
        self._trouble.close()
        self._exporter.shutdown()
