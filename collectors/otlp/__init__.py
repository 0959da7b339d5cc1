"""The OTLP side: the same measurements over HTTP, and spans of steps and requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from opentelemetry.exporter.otlp.proto.http import metric_exporter, trace_exporter
from opentelemetry.sdk.resources import Resource

from collectors.metrics.collector import EVICTED
from collectors.metrics.metric import Metric
from collectors.otlp.metrics import Measured, MetricExports
from collectors.otlp.spans import SpanExports
from collectors.otlp.trouble import Trouble, quiet_sdk
from collectors.series import FORGET_S, Series
from collectors.sinks import Labels, Snapshot
from probes.feed.events import RequestTiming, Step

CLOSE_S: Final = 5.0
"""How long an endpoint may take for what is left at the end."""


class OtlpSink:
    """Exports to ``{endpoint}/v1/metrics`` and ``/v1/traces`` every `interval_s`.

    A service or process without events for `forget_s` seconds is in no later export. With `spans`, each step
    and each request is a span, dated by its own times; a request's first chunk is an event of it, and the
    parts of its TTFT are spans beneath it. Spans are dropped when the endpoint is too slow for them.
    `on_trouble` hears once of an endpoint that takes nothing, and again after it did.
    """

    def __init__(
        self,
        endpoint: str,
        snapshots: Sequence[Snapshot] = (),
        *,
        interval_s: float = 5.0,
        spans: bool = True,
        forget_s: float = FORGET_S,
        on_trouble: Callable[[str], None] = lambda message: None,
    ) -> None:
        quiet_sdk()
        base = endpoint.rstrip("/")
        resource = Resource.create({"service.name": "flexnpu"})
        self._series = Series(forget_s)
        self._series.add(EVICTED, (), 0.0)
        url = f"{base}/v1/metrics"
        self._metrics = MetricExports(
            url,
            resource,
            Measured(self._series, snapshots),
            interval_s,
            Trouble("metrics", url, metric_exporter.__name__, on_trouble),
        )
        url = f"{base}/v1/traces"
        self._spans: SpanExports | None = None
        if spans:
            trouble = Trouble("spans", url, trace_exporter.__name__, on_trouble)
            self._spans = SpanExports(url, resource, trouble)

    def add(self, metric: Metric, labels: Labels, amount: float = 1.0) -> None:
        """Count."""
        self._series.add(metric, labels, amount)

    def observe(self, metric: Metric, labels: Labels, value: float) -> None:
        """Put a value into a histogram."""
        self._series.observe(metric, labels, value)

    def step(self, step: Step) -> None:
        """Send a step's span, if there are to be spans."""
        if self._spans is not None:
            self._spans.step(step)

    def request(self, request: RequestTiming) -> None:
        """Send a request's span, if there are to be spans."""
        if self._spans is not None:
            self._spans.request(request)

    def close(self) -> None:
        """Send what is left, for at most `CLOSE_S` seconds, and stop."""
        until = time.monotonic() + CLOSE_S
        self._metrics.end()
        if self._spans is not None:
            self._spans.end()
            self._spans.close(CLOSE_S)
        self._metrics.close(max(0.0, until - time.monotonic()))
