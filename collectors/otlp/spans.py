"""Spans over OTLP: a step each, and a request each with the parts of its TTFT.

A request is a child of the span that its ``traceparent`` names. One that came from another watched server
is a child of the request there (`RequestTiming.hops`). It ends before that one, so it waits for it, `WAIT_NS`
at most; then it is a span of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from collectors.aggregate import ttft_parts
from collectors.otlp.metrics import Attributes
from collectors.otlp.trouble import SCOPE, Trouble
from collectors.sinks import shown
from probes.feed.events import RequestTiming, Step

WAIT_NS: Final = 300 * 10**9
MAX_WAITING: Final = 4096
"""Inner requests that wait; beyond that the oldest is sent as it is."""


def caller_of(traceparent: str | None) -> Context | None:
    """The context that a ``traceparent`` names (W3C Trace Context); None when there is none."""
    if not traceparent:
        return None
    _, trace, span, flags = traceparent[:55].split("-")
    of = SpanContext(int(trace, 16), int(span, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
    return set_span_in_context(NonRecordingSpan(of))


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
        self._inner: dict[tuple[int, int], RequestTiming] = {}
        """Inner requests, by process and arrival, the longest waiting first."""
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
        """Send a request's span, those of its parts, and those of the requests that were made of it. One
        without an end is left out."""
        if request.caller_pid is not None:
            self._inner[request.pid, request.t_arrival_ns] = request
        else:
            self._send(request, caller_of(request.traceparent))
        horizon = time.monotonic_ns() - WAIT_NS
        while self._inner and (
            len(self._inner) > MAX_WAITING or next(iter(self._inner.values())).t_arrival_ns < horizon
        ):
            self._send_alone()

    def _send_alone(self) -> None:
        request = self._inner.pop(next(iter(self._inner)))
        self._send(request, caller_of(request.traceparent))

    def _send(self, request: RequestTiming, parent: Context | None, joined_by: str | None = None) -> None:
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
            ("gen_ai.response.id", request.answer_id),
            ("flexnpu.request.id", request.request_id),
            ("flexnpu.request.role", request.role),
            ("flexnpu.request.joined_by", joined_by),
        ):
            if value is not None:
                found[name] = value
        start = request.t_arrival_ns + shift
        span = self._tracer.start_span(
            "request", context=parent, kind=SpanKind.SERVER, attributes=found, start_time=start
        )
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
        for pid, arrival, _, by in request.hops or ():
            inner = self._inner.pop((pid, arrival), None)
            if inner is not None:
                self._send(inner, set_span_in_context(span), by)

    def end(self) -> None:
        """Begin to send what is left."""
        while self._inner:
            self._send_alone()
        self._ending.start()

    def close(self, wait_s: float) -> None:
        """Give what is left at most `wait_s` seconds, and stop."""
        self._ending.join(wait_s)
        self._trouble.close()
        self._exporter.shutdown()
