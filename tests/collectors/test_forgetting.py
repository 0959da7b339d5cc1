"""What is gone leaves both exports within the stated time, and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from collectors import metrics
from collectors.aggregate import Aggregator
from collectors.metrics.metric import PROCESS, Metric
from collectors.otlp import OtlpSink
from collectors.otlp.metrics import Measured
from collectors.prometheus import PrometheusSink
from collectors.series import FORGET_S, Series
from collectors.sinks import Sample, Sink
from tests.collectors.scripted import MS, request, step
from tests.collectors.stand import otlp_receiver

Pids = Callable[[], set[int]]
"""The processes of an export that is made now."""
Export = Callable[[], AbstractContextManager[tuple[Sink, Pids]]]
NEVER_S = 86400.0


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the monotonic clock."""
    real, ahead = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: real() + ahead[0])

    def move(seconds: float) -> None:
        ahead[0] += seconds

    return move


@contextmanager
def prometheus() -> Iterator[tuple[Sink, Pids]]:
    sink = PrometheusSink()

    def pids() -> set[int]:
        samples = (sample for family in sink.registry.collect() for sample in family.samples)
        return {int(sample.labels["pid"]) for sample in samples if "pid" in sample.labels}

    yield sink, pids


@contextmanager
def otlp() -> Iterator[tuple[Sink, Pids]]:
    with otlp_receiver() as received:
        sink = OtlpSink(received.endpoint, interval_s=NEVER_S, spans=False)
        closed = False

        def pids() -> set[int]:
            nonlocal closed
            closed = True
            sink.close()
            points = [
                point
                for metric in received.metrics.values()
                for point in (*metric.sum.data_points, *metric.histogram.data_points)
            ]
            return {a.value.int_value for point in points for a in point.attributes if a.key == "process.pid"}

        yield sink, pids
        if not closed:
            sink.close()


@pytest.mark.parametrize("export", [prometheus, otlp])
def test_processes_that_are_gone_are_not_exported(export: Export, later: Callable[[float], None]) -> None:
    with export() as (sink, pids):
        aggregator = Aggregator([sink], ttft_slo_s=1.0, ttft_objective=0.99)
        for pid in range(1000, 1200):
            aggregator.take(step(0, 10 * MS, pid=pid))
            aggregator.take(request(0, [50 * MS, 70 * MS], 80 * MS, pid=pid))
        later(FORGET_S / 2)
        aggregator.take(step(0, 10 * MS, pid=7))
        later(FORGET_S / 2 + 1)
        assert pids() == {7}


@pytest.mark.parametrize("export", [prometheus, otlp])
def test_idle_processes_stay_until_then(export: Export, later: Callable[[float], None]) -> None:
    with export() as (sink, pids):
        aggregator = Aggregator([sink], ttft_slo_s=1.0, ttft_objective=0.99)
        aggregator.take(step(0, 10 * MS, pid=1))
        later(FORGET_S - 60)
        aggregator.take(step(0, 10 * MS, pid=7))
        assert pids() == {1, 7}


def test_memory_is_bounded_without_any_export(later: Callable[[float], None]) -> None:
    series = Series()
    for pid in range(1000):
        series.add(metrics.steps.STEPS, ("", str(pid), "python", "decode"), 1.0)
    later(FORGET_S * 1.2)
    series.add(metrics.steps.STEPS, ("", "7", "python", "decode"), 1.0)
    assert len(series._processes) == 1


def test_a_process_that_comes_back_is_a_new_series(later: Callable[[float], None]) -> None:
    series = Series()
    labels = ("", "1", "python", "decode")
    series.add(metrics.steps.STEPS, labels, 5.0)
    ((_, first),) = series.collect()[metrics.steps.STEPS]
    later(FORGET_S + 1)
    series.add(metrics.steps.STEPS, labels, 2.0)
    ((_, again),) = series.collect()[metrics.steps.STEPS]
    assert (first.total, again.total) == (5.0, 2.0)
    assert again.start_ns > first.start_ns


@pytest.mark.parametrize("metric", [one for one in metrics.EVENT_METRICS if one.labels], ids=lambda m: m.name)
def test_every_event_metric_belongs_to_a_process(metric: Metric) -> None:
    """Else its series would be kept for good."""
    assert metric.labels[: len(PROCESS)] == PROCESS


def test_what_is_read_off_leaves_with_what_it_was_read_off() -> None:
    present = [
        Sample(metrics.lanes.LAUNCHED, ("0", "1", "10", "chat"), 40.0),
        Sample(metrics.lanes.LAUNCHED, ("0", "2", "20", "flood"), 90.0),
    ]
    measured = Measured(Series(), [lambda: list(present)])

    def points(at_ns: int) -> dict[int, tuple[int, float]]:
        """Start and value by process."""
        return {
            point.attributes["process.pid"]: (point.start_time_unix_nano, point.value)
            for exported in measured.collect(at_ns)
            for point in exported.data.data_points
        }

    assert points(100) == {10: (100, 40.0), 20: (100, 90.0)}
    assert points(200) == {10: (100, 40.0), 20: (100, 90.0)}
    # One lane ends. The other's daemon is a new one, which counts from zero.
    present[:] = [Sample(metrics.lanes.LAUNCHED, ("0", "1", "10", "chat"), 3.0)]
    assert points(300) == {10: (300, 3.0)}
    present.clear()
    assert points(400) == {}


def test_values_fall_into_the_buckets_that_end_at_them() -> None:
    """As Prometheus has it: a bucket holds the values up to its bound, the bound included."""
    metric = metrics.steps.DURATION
    sink = PrometheusSink()
    labels = ("", "1", "python", "decode")
    for value in (-1e-9, metric.buckets[0], metric.buckets[0] * 1.1, metric.buckets[-1] * 2):
        sink.observe(metric, labels, value)
    found = {
        (sample.name, sample.labels.get("le")): sample.value
        for family in sink.registry.collect()
        for sample in family.samples
    }
    assert found[metric.bucket, str(metric.buckets[0])] == 2
    assert found[metric.bucket, str(metric.buckets[1])] == 3
    assert found[metric.bucket, str(metric.buckets[-1])] == 3
    assert found[metric.bucket, "+Inf"] == found[metric.count, None] == 4
    assert found[metric.sum, None] == pytest.approx(metric.buckets[0] * 2.1 + metric.buckets[-1] * 2)
