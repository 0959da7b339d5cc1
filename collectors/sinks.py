"""What measurements are given to: the Prometheus and the OTLP side look alike from here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from collectors.metrics.metric import Metric
from flexnpu.console.text import safe
from probes.feed.events import RequestTiming, Step

Labels = tuple[str, ...]
"""Label values, in the order of `Metric.labels`. An empty one is no label."""

MAX_LABEL: Final = 200
"""Characters of a label's value."""


def shown(value: str) -> str:
    """A text that a process, client or server chose, made printable and bounded. A lone surrogate would end
    a whole scrape or export."""
    return safe(value)[:MAX_LABEL]


def named(metric: Metric, labels: Labels) -> dict[str, str]:
    """Labels by name, as an export has them: without the empty ones."""
    return {name: shown(value) for name, value in zip(metric.labels, labels, strict=True) if value}


def distinct(metric: Metric, labels: Labels, seen: set[tuple[str, ...]]) -> dict[str, str] | None:
    """`named`, or None when `seen` has it already: two samples of one series would end a whole scrape."""
    found = named(metric, labels)
    key = (metric.name, *(part for pair in found.items() for part in pair))
    if key in seen:
        return None
    seen.add(key)
    return found


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
