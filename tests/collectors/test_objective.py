"""The objective is counted when it is missed, by service, once, and from 0."""

from __future__ import annotations

import dataclasses

import pytest

from collectors import metrics
from collectors.aggregate import FORGET_NS, Aggregator
from collectors.metrics.requests import BAD_REASONS
from collectors.prometheus import PrometheusSink
from probes.feed.events import Event, OpenRequests
from tests.collectors.scripted import MS, S, process, request, step, waiting

CHAT = {"pid": "1", "comm": "chat"}
SERVICE = {"service": "front"}


class Run:
    """An aggregator with an objective of one second."""

    def __init__(self) -> None:
        self.of = Aggregator([], ttft_slo_s=1.0, ttft_objective=0.99)
        self.sink = PrometheusSink([self.of.snapshot])
        self.of._sinks = [self.sink]

    def at(self, now_ns: int, *events: Event) -> None:
        for event in events:
            self.of.take(event)
        self.of.advance(now_ns)

    def value(self, metric: metrics.Metric, **labels: str) -> float | None:
        return self.sink.registry.get_sample_value(metric.name, labels)

    def counted(self, **labels: str) -> tuple[float | None, float | None, dict[str, float]]:
        """Covered, good, and bad ones by why, of those that there are."""
        bad = {one: self.value(metrics.requests.SLO_BAD, **labels, reason=one) for one in BAD_REASONS}
        return (
            self.value(metrics.requests.SLO_REQUESTS, **labels),
            self.value(metrics.requests.SLO_GOOD, **labels),
            {one: count for one, count in bad.items() if count},
        )


def test_a_request_that_waits_is_bad_when_the_objective_is_missed_and_once() -> None:
    run = Run()
    run.at(1 * S, waiting(1 * S, [100 * MS]))
    assert run.counted(**CHAT) == (0, 0, {})
    run.at(1101 * MS, waiting(1100 * MS, [100 * MS]))
    assert run.counted(**CHAT) == (0, 0, {})
    for now in (1200, 2200, 900_000):
        run.at(now * MS, waiting(now * MS, [100 * MS]))
        assert run.counted(**CHAT) == (1, 0, {"waiting": 1})
    # It ends after all, with a token that came late, and another request after it in good time.
    run.at(901 * S, waiting(901 * S, []), request(100 * MS, [900_500 * MS], 901 * S, fd=9))
    assert run.counted(**CHAT) == (1, 0, {"waiting": 1})
    run.at(902 * S, request(901 * S, [901_500 * MS], 902 * S, fd=9))
    assert run.counted(**CHAT) == (2, 1, {"waiting": 1})
    assert len(run.of._objective) == 0


def test_a_request_that_never_ends_is_counted() -> None:
    run = Run()
    for now in range(1, 3600, 30):
        run.at(now * S, waiting(now * S, [0, 1 * S], fd=9))
    assert run.counted(**CHAT) == (2, 0, {"waiting": 2})
    # The process is killed: its requests are told as cut.
    run.at(3601 * S, *(request(at, [], None, fd=9, status=None, complete=False) for at in (0, 1 * S)))
    assert run.counted(**CHAT) == (2, 0, {"waiting": 2})


def test_what_another_watched_server_asked_is_counted_there() -> None:
    run = Run()
    run.at(1 * S, process(0, 1, service="front"), process(0, 2, service="decode"))
    seen = dataclasses.replace(waiting(9 * S, [0, 1 * S], pid=2), inner=[1])
    run.at(9 * S, seen)
    assert run.counted(service="decode") == (1, 0, {"waiting": 1})
    run.at(10 * S, request(1 * S, [9 * S], 10 * S, pid=2, caller_pid=1))
    run.at(10 * S, request(9 * S, [9 * S + MS], 10 * S, pid=2, caller_pid=1))
    run.at(10 * S, request(1 * S, [], None, pid=2, caller_pid=1, status=503))
    assert run.counted(service="decode") == (1, 0, {"waiting": 1})
    run.at(11 * S, request(500 * MS, [9 * S], 10 * S, pid=1))
    assert run.counted(service="front") == (1, 0, {"late": 1})


def test_pipelined_requests_that_came_together_are_counted_each() -> None:
    run = Run()
    run.at(2 * S, waiting(2 * S, [0, 0, 0]))
    assert run.counted(**CHAT) == (3, 0, {"waiting": 3})
    run.at(3 * S, *(request(0, [2500 * MS], 3 * S, fd=9) for _ in range(3)))
    run.at(3 * S, waiting(3 * S, [0]))
    assert run.counted(**CHAT) == (4, 0, {"waiting": 4})


def test_a_request_that_is_answered_late_and_for_long_is_counted_once() -> None:
    run = Run()
    run.at(2 * S, waiting(2 * S, [0]))
    for now in range(3, 400):
        # Its first token has come: it runs and does not wait.
        run.at(now * S, OpenRequests(now * S, 1, "chat", 1, 0, []))
    run.at(400 * S, request(0, [3 * S, 399 * S], 400 * S), waiting(400 * S, []))
    assert run.counted(**CHAT) == (1, 0, {"waiting": 1})
    assert len(run.of._objective) == 0


def test_requests_that_came_together_are_told_apart_by_their_first_token() -> None:
    run = Run()
    run.at(2 * S, waiting(2 * S, [0]))
    run.at(3 * S, request(0, [500 * MS], 3 * S))
    assert run.counted(**CHAT) == (2, 1, {"waiting": 1})
    run.at(4 * S, request(0, [3 * S], 4 * S))
    assert run.counted(**CHAT) == (2, 1, {"waiting": 1})
    assert len(run.of._objective) == 0


def test_a_connection_that_is_handed_to_another_process_is_the_same_request() -> None:
    run = Run()
    run.at(2 * S, waiting(2 * S, [0], pid=1, comm="chat", fd=9))
    run.at(3 * S, waiting(3 * S, [], pid=1), waiting(3 * S, [0], pid=2, comm="worker", fd=4))
    run.at(4 * S, request(0, [3 * S], 4 * S, pid=2, comm="worker", fd=4))
    assert run.counted(**CHAT) == (1, 0, {"waiting": 1})
    assert run.counted(pid="2", comm="worker") == (0, 0, {})


def test_what_was_counted_is_forgotten_with_its_process_or_tracer() -> None:
    run = Run()
    run.at(2 * S, waiting(2 * S, [0]))
    assert len(run.of._objective) == 1
    run.at(2 * S + 2 * FORGET_NS)
    run.at(2 * S + 4 * FORGET_NS)
    assert len(run.of._objective) == 0
    run.at(600 * S, waiting(600 * S, [0]))
    run.of.disconnected()
    assert len(run.of._objective) == 0
    assert run.value(metrics.requests.WAITING, **CHAT) is None


@pytest.mark.parametrize(
    ("ended", "reason"),
    [
        (request(0, [1001 * MS], 2 * S), "late"),
        (request(0, [], 2 * S, status=500), "status"),
        (request(0, [], None, status=None, complete=False), "cut"),
        (request(0, [50 * MS], 2 * S, error="event"), "error"),
    ],
)
def test_a_bad_request_is_told_by_why(ended: Event, reason: str) -> None:
    run = Run()
    run.at(2 * S, ended)
    assert run.counted(**CHAT) == (1, 0, {reason: 1})


def test_requests_in_flight_and_the_age_of_the_oldest() -> None:
    run = Run()
    run.at(1 * S, process(1 * S))
    gauges = (
        metrics.requests.IN_FLIGHT,
        metrics.requests.OLDEST,
        metrics.requests.WAITING,
        metrics.requests.OLDEST_WAITING,
    )
    assert [run.value(one, **CHAT) for one in gauges] == [0, 0, 0, 0]
    run.at(5 * S, waiting(5 * S, [2 * S, 4 * S]))
    assert [run.value(one, **CHAT) for one in gauges] == [2, 3, 2, 3]
    # Between two events it grows older.
    run.at(6 * S)
    assert [run.value(one, **CHAT) for one in gauges] == [2, 4, 2, 4]
    run.at(7 * S, waiting(7 * S, []))
    assert [run.value(one, **CHAT) for one in gauges] == [0, 0, 0, 0]
    run.at(8 * S, process(8 * S, ended=True))
    assert [run.value(one, **CHAT) for one in gauges] == [None] * 4


def test_series_are_there_at_0_before_any_traffic() -> None:
    run = Run()
    run.at(1 * S, process(1 * S, 7, "python", service="front"))
    assert run.counted(**SERVICE) == (0, 0, {})
    for reason in BAD_REASONS:
        assert run.value(metrics.requests.SLO_BAD, **SERVICE, reason=reason) == 0
    for code, complete in (("200", "true"), ("500", "true"), ("none", "false")):
        labels = {**SERVICE, "operation": "chat", "code": code, "complete": complete}
        assert run.value(metrics.requests.REQUESTS, **labels) == 0
    run.at(2 * S, step(1, 2, pid=8, comm="engine"))
    assert run.counted(pid="8", comm="engine") == (0, 0, {})


def test_series_of_an_idle_server_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or its first failure after a quiet night would be born as 1."""
    now = 0.0
    monkeypatch.setattr("collectors.series.time.monotonic", lambda: now)
    run = Run()
    run.at(0, process(0, 7, "python", service="front"))
    for minute in range(0, 600, 2):
        now = minute * 60.0
        run.at(minute * 60 * S)
    assert run.counted(**SERVICE) == (0, 0, {})


def test_a_service_goes_on_in_its_series_when_its_process_is_another() -> None:
    run = Run()
    seen: list[float | None] = []
    for pid in range(101, 106):
        run.at(pid * S, process(pid * S, pid, "python", service="front"))
        seen.append(run.counted(**SERVICE)[0])
        run.at(pid * S, request(0, [], None, pid=pid, comm="python", status=None, complete=False))
        # Its last request is told a moment after its end.
        run.at(pid * S, process(pid * S, pid, "python", service="front", ended=True))
        run.at(pid * S, request(1, [], None, pid=pid, comm="python", status=None, complete=False))
    assert seen == [0, 2, 4, 6, 8]
    assert run.counted(**SERVICE) == (10, 0, {"cut": 10})
    names = {
        name
        for family in run.sink.registry.collect()
        for sample in family.samples
        for name in sample.labels
        if family.type != "gauge"
    }
    assert "pid" not in names


@pytest.mark.parametrize("service", ["front", None])
def test_renaming_makes_no_new_series(service: str | None) -> None:
    run = Run()

    def series() -> set[str]:
        return {
            f"{sample.name} {sorted(sample.labels.items())}"
            for family in run.sink.registry.collect()
            for sample in family.samples
            if family.name != metrics.process.INFO.name
        }

    def events(name: str) -> tuple[Event, ...]:
        state = process(1 * S, comm=name, service=service)
        return state, waiting(1 * S, [1 * S], comm=name), step(1, 2, comm=name), request(0, [5], 6, comm=name)

    run.at(100 * S, *events("first"))
    before = series()
    for i in range(100):
        run.at(100 * S, *events(f"name-{i}"))
    assert series() == before
    # The present name is there to look up.
    labels = {"pid": "1", "comm": "name-99"} | ({"service": service} if service else {})
    assert run.value(metrics.process.INFO, **labels) == 1


def test_a_service_that_becomes_known_is_used_from_then_on() -> None:
    run = Run()
    run.at(1 * S, process(1 * S), step(1, 2))
    run.at(2 * S, process(2 * S, service="port-8000"), step(3, 4), step(5, 6))
    assert run.value(metrics.steps.STEPS, **CHAT, phase="decode") == 1
    assert run.value(metrics.steps.STEPS, service="port-8000", phase="decode") == 2


def test_the_tracers_silence_is_told_while_it_is_connected() -> None:
    run = Run()
    run.at(9 * S)
    assert run.value(metrics.collector.TRACER_SILENCE) is None
    run.of.connect(10 * S)
    assert run.value(metrics.collector.TRACER_SILENCE) == 0
    run.at(10 * S)
    run.at(10 * S, step(1, 2))
    run.at(75 * S)
    assert run.value(metrics.collector.TRACER_SILENCE) == 65
    run.at(80 * S)
    run.at(80 * S, step(1, 2))
    assert run.value(metrics.collector.TRACER_SILENCE) == 0


def test_a_number_that_is_used_again_is_another_process() -> None:
    run = Run()
    run.at(1 * S, process(1 * S), step(1, 2))
    run.at(2 * S, process(2 * S, comm="renamed"), step(1, 2, comm="renamed"))
    assert run.value(metrics.steps.STEPS, **CHAT, phase="decode") == 2
    run.at(3 * S, process(3 * S, ended=True))
    run.at(4 * S, process(4 * S, comm="other"), step(1, 2, comm="other"))
    assert run.value(metrics.steps.STEPS, pid="1", comm="other", phase="decode") == 1


def test_nothing_is_told_of_a_relative_that_neither_listens_nor_computes() -> None:
    run = Run()
    run.at(1 * S, process(1 * S, 7, "sh", probes=None, listening=0))
    assert not [sample for one in run.sink.registry.collect() for sample in one.samples if sample.labels]
    run.at(2 * S, process(2 * S, 7, "sh", service="port-80", probes=None, listening=1))
    assert run.counted(service="port-80") == (0, 0, {})
    assert run.value(metrics.requests.IN_FLIGHT, pid="7", service="port-80") == 0
    assert run.value(metrics.process.PROBES, pid="7", service="port-80") is None
