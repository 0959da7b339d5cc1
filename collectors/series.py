"""The values that event metrics have, kept until their process is gone; both exports read them here."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Final

from collectors.metrics.collector import EVICTED
from collectors.metrics.metric import PROCESS, Metric
from collectors.sinks import Labels

FORGET_S: Final = 3600.0
"""A service or process that gave no event for so many seconds is gone: no later export has a series of it."""

MAX_PROCESSES: Final = 1024
"""Services, and processes without one, whose series are kept at once. Beyond that the longest silent goes."""

_SWEEPS: Final = 10
"""Without an export, what is gone leaves memory within this fraction of `FORGET_S` more."""


@dataclass(slots=True)
class Count:
    """A counter's series. `start_ns` is when it began, CLOCK_REALTIME."""

    start_ns: int
    total: float = 0.0

    def copy(self) -> Count:
        """What it is now."""
        return Count(self.start_ns, self.total)


@dataclass(slots=True)
class Distribution:
    """A histogram's series. `buckets` counts the values up to each of `Metric.buckets`, and those beyond.

    A value on a bound belongs to the bucket that ends there. `start_ns` is as in `Count`.
    """

    start_ns: int
    buckets: list[int] = field(default_factory=list)
    sum: float = 0.0
    least: float = float("inf")
    most: float = float("-inf")

    def copy(self) -> Distribution:
        """What it is now."""
        return Distribution(self.start_ns, list(self.buckets), self.sum, self.least, self.most)


Point = Count | Distribution


@dataclass(slots=True)
class _Process:
    """The series of one service or process. They are forgotten together: half of them would be misread."""

    at: float
    counts: dict[tuple[Metric, Labels], Count] = field(default_factory=dict)
    distributions: dict[tuple[Metric, Labels], Distribution] = field(default_factory=dict)


class Series:
    """Counters and histograms by metric and labels.

    Takes measurements from one thread and is read from any. What has no process in its labels is kept for
    good; there are as many such series as metrics.
    """

    def __init__(self, forget_s: float = FORGET_S) -> None:
        self._forget_s = forget_s
        self._lock = threading.Lock()
        self._rest = _Process(0.0)
        self._processes: dict[Labels, _Process] = {}
        """The longest silent first."""
        self._next_sweep = 0.0

    def add(self, metric: Metric, labels: Labels, amount: float) -> None:
        """Add to a counter. Adding 0 makes its series."""
        with self._lock:
            counts = self._process(metric, labels).counts
            count = counts.get((metric, labels))
            if count is None:
                count = counts[metric, labels] = Count(time.time_ns())
            count.total += amount

    def observe(self, metric: Metric, labels: Labels, value: float) -> None:
        """Count a value, in the metric's unit. One below 0 counts as 0: times of two threads may cross."""
        value = max(0.0, value)
        with self._lock:
            distributions = self._process(metric, labels).distributions
            found = distributions.get((metric, labels))
            if found is None:
                found = Distribution(time.time_ns(), [0] * (len(metric.buckets) + 1))
                distributions[metric, labels] = found
            found.buckets[bisect_left(metric.buckets, value)] += 1
            found.sum += value
            found.least, found.most = min(found.least, value), max(found.most, value)

    def collect(self) -> dict[Metric, list[tuple[Labels, Point]]]:
        """The series of processes that are not gone, as they are now."""
        found: dict[Metric, list[tuple[Labels, Point]]] = {}
        with self._lock:
            self._sweep(time.monotonic())
            for process in (self._rest, *self._processes.values()):
                for (metric, labels), count in process.counts.items():
                    found.setdefault(metric, []).append((labels, count.copy()))
                for (metric, labels), values in process.distributions.items():
                    found.setdefault(metric, []).append((labels, values.copy()))
        return found

    def _process(self, metric: Metric, labels: Labels) -> _Process:
        if metric.labels[: len(PROCESS)] != PROCESS:
            return self._rest
        now = time.monotonic()
        if now >= self._next_sweep:
            self._sweep(now)
        key = labels[: len(PROCESS)]
        process = self._processes.pop(key, None) or _Process(now)
        if len(self._processes) >= MAX_PROCESSES:
            del self._processes[next(iter(self._processes))]
            self._rest.counts.setdefault((EVICTED, ()), Count(time.time_ns())).total += 1
        self._processes[key] = process
        process.at = now
        return process

    def _sweep(self, now: float) -> None:
        self._next_sweep = now + self._forget_s / _SWEEPS
        while self._processes:
            key = next(iter(self._processes))
            if now - self._processes[key].at <= self._forget_s:
                break
            del self._processes[key]
