"""What measurements are given to: the Prometheus and the OTLP side look alike from here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from collectors.metrics.metric import Metric
from probes.feed.events import RequestTiming, Step

Labels = tuple[str, ...]
"""Label values, in the order of `Metric.labels`."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The present value of a metric that is read off rather than counted here."""

    metric: Metric
    labels: Labels
    value: float


Snapshot = Callable[[], Iterable[Sample]]
"""Gives the samples of the moment; called from other threads."""


class Sink(Protocol):
    """Takes measurements of `metrics.EVENT_METRICS`, from one thread."""

    def add(self, metric: Metric, labels: Labels, amount: float = 1.0) -> None:
        """Count."""

    def observe(self, metric: Metric, labels: Labels, value: float) -> None:
        """Put a value into a histogram."""

    def step(self, step: Step) -> None:
        """A step as a whole, for spans."""

    def request(self, request: RequestTiming) -> None:
        """A request as a whole, for spans."""
