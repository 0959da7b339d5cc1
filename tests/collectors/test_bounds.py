"""However many processes come and go, and whatever they call themselves, what is kept and told is bounded."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from collectors import metrics
from collectors.aggregate import FORGET_NS, Aggregator
from collectors.otlp import OtlpSink
from collectors.otlp.metrics import Measured, attributes
from collectors.prometheus import PrometheusSink
from collectors.series import FORGET_S, MAX_PROCESSES, Series
from collectors.sinks import MAX_LABEL, Sample
from probes.feed.events import Event, HostDelay
from tests.collectors.scripted import MS, S, begin, process, request, step, waiting
from tests.collectors.stand import otlp_receiver

PROCESSES = 10_000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [0.0]
    monkeypatch.setattr("collectors.series.time.monotonic", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] = seconds

    return move


def life(at: int, pid: int, service: str | None) -> list[Event]:
    """All that is told of a process in its short life; it does not end its last step and request."""
    comm = f"name-{pid}"
    return [
        process(at, pid, comm, service=service),
        begin(at, pid=pid, comm=comm),
        step(at, at + MS, "prefill", pid=pid, comm=comm),
        step(at + MS, at + 2 * MS, pid=pid, comm=comm),
        HostDelay(at, pid, comm, None, 1e6, 1.0, 1.0),
        waiting(at + 2 * S, [at], pid=pid, comm=comm),
        request(at, [at + MS], at + MS, pid=pid, comm=comm, status=100 + pid % 900),
        begin(at + 3 * MS, pid=pid, comm=comm),
        process(at, pid, comm, service=service, ended=True),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("services", [1, PROCESSES, 0], ids=["one service", "a service each", "no service"])
def test_ten_thousand_processes_come_and_go(clock: Callable[[float], None], services: int) -> None:
    prometheus, otlp = PrometheusSink(), Series()
    aggregator = Aggregator([prometheus], ttft_slo_s=1.0, ttft_objective=0.99)
    prometheus = PrometheusSink([aggregator.snapshot])
    aggregator._sinks = [prometheus]
    measured = Measured(otlp, [aggregator.snapshot])
    for i in range(PROCESSES):
        clock(i / 10)
        at = i * S // 10
        for event in life(at, 1000 + i, f"service-{i % services}" if services else None):
            aggregator.take(event)
        aggregator.advance(at)
    after_ns = PROCESSES * S // 10

    # At once: gauges have nobody, counters at most the kept number of services, with few values each.
    values: dict[str, set[str]] = {}
    for family in prometheus.registry.collect():
        for sample in family.samples:
            for name, value in sample.labels.items():
                values.setdefault(name, set()).add(value)
                assert family.type != "gauge" or name not in ("pid", "comm", "service")
    kept = len({*values.get("service", ())} | {*values.get("pid", ())})
    assert kept == min(services or PROCESSES, MAX_PROCESSES)
    evicted = prometheus.registry.get_sample_value(metrics.collector.EVICTED.name)
    assert evicted == max(0, (services or PROCESSES) - MAX_PROCESSES)
    assert len(values["code"]) < 80
    assert values["operation"] <= {"chat", "text_completion", "embeddings", "other"}
    if services:
        assert not values.keys() & {"pid", "comm"}
    assert not [one for one in measured.collect(1) if "process" in one.name]

    # Within the stated times: nothing is left anywhere.
    for later in (2, 4, 6):
        aggregator.advance(after_ns + later * FORGET_NS)
    assert len(aggregator._processes) == 0
    assert len(aggregator._objective) == 0
    assert not len(aggregator._interference._open)
    clock(PROCESSES / 10 + FORGET_S + 1)
    left = {
        sample.labels.get("pid") or sample.labels.get("service")
        for family in prometheus.registry.collect()
        for sample in family.samples
    }
    assert left == {None}


def test_memory_does_not_grow_with_processes_that_are_gone(clock: Callable[[float], None]) -> None:
    aggregator = Aggregator([PrometheusSink()], ttft_slo_s=1.0, ttft_objective=0.99)

    def live(first: int, count: int) -> None:
        for i in range(first, first + count):
            clock(float(i * 60))
            for event in life(i * 60 * S, i, f"service-{i}"):
                aggregator.take(event)
            aggregator.advance(i * 60 * S)
        gc.collect()

    live(1, 500)
    tracemalloc.start()
    try:
        live(501, 100)
        before = tracemalloc.get_traced_memory()[0]
        live(601, 1000)
        assert tracemalloc.get_traced_memory()[0] - before < 200_000
    finally:
        tracemalloc.stop()


NASTY = ['a"b\\c\nd', "\x1b[2J\u202e", "\udc80\ud800", "x" * 5000, "é模型", "{}=,", "\0"]


@pytest.mark.parametrize("name", NASTY, ids=range(len(NASTY)))
def test_any_name_can_be_exported(name: str) -> None:
    aggregator = Aggregator([], ttft_slo_s=1.0, ttft_objective=0.99)
    lane = Sample(metrics.lanes.QUEUED, ("0", "1", "7", name), 3.0)
    sink = PrometheusSink([aggregator.snapshot, lambda: [lane, lane]])
    aggregator._sinks = [sink]
    for event in (
        process(1, 7, name, service=name),
        step(1, 2, pid=7, comm=name),
        step(1, 2, pid=8, comm=name),
    ):
        aggregator.take(event)
    text = generate_latest(sink.registry).decode("utf-8")
    found = {
        value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        for label, value in sample.labels.items()
        if label in ("service", "comm")
    }
    assert len(found) == 1
    (shown,) = found
    assert shown.isprintable()
    assert len(shown) <= MAX_LABEL
    assert attributes(lane.metric, lane.labels)["process.executable.name"] == shown


def test_two_daemons_of_one_device_do_not_end_the_scrape() -> None:
    sink = PrometheusSink([lambda: [Sample(metrics.daemon.UP, ("0",), one) for one in (1.0, 0.0)]])
    lines = [
        one for one in generate_latest(sink.registry).decode().splitlines() if one.startswith("flexnpu_da")
    ]
    assert lines == ['flexnpu_daemon_up{device="0"} 1.0']


def test_a_turn_costs_the_same_with_many_processes() -> None:
    """By what it looks at, not by time: a thousand idle lanes with a prefill each are not gone through for
    each event."""
    aggregator = Aggregator([], ttft_slo_s=1.0, ttft_objective=0.99)

    def calls(lanes: int) -> int:
        aggregator.disconnected()
        for pid in range(lanes):
            aggregator.take(begin(S, pid=1000 + pid, comm="x"))
            aggregator.take(waiting(S, [], pid=1000 + pid, comm="x"))
        aggregator.advance(2 * S)
        count = 0

        def count_lines(*_: object) -> Callable[..., object]:
            nonlocal count
            count += 1
            return count_lines

        sys.settrace(count_lines)
        try:
            for i in range(20):
                aggregator.take(step(2 * S, 2 * S + MS, pid=1, stream=1))
                aggregator.advance(2 * S + i * MS)
        finally:
            sys.settrace(None)
        return count

    few = calls(2)
    assert calls(1000) < 3 * few


def test_spans_bear_any_name_and_say_that_a_request_failed() -> None:
    with otlp_receiver() as received:
        sink = OtlpSink(received.endpoint, interval_s=86400)
        for name in NASTY:
            sink.step(step(1, 2, comm=name))
            sink.request(request(1, [2], 3, comm=name, path="/" + name, error="event"))
        sink.close()
    assert len([one for one in received.spans if one.name == "step decode"]) == len(NASTY)
    requests = [one for one in received.spans if one.name == "request"]
    assert [one.status.code for one in requests] == [Status.STATUS_CODE_ERROR] * len(NASTY)
    texts = [a.value.string_value for one in received.spans for a in one.attributes]
    assert all(text.isprintable() and len(text) <= MAX_LABEL for text in texts)


def test_requests_of_one_way_are_one_trace() -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    hops = [(2, 10, "prefill", "id"), (3, 20, "decode", "answer")]
    with otlp_receiver() as received:
        sink = OtlpSink(received.endpoint, interval_s=86400)
        sink.request(request(10, [], 15, pid=2, caller_pid=1, role="prefill"))
        sink.request(request(20, [30], 40, pid=3, caller_pid=1, role="decode", answer_id="cmpl-1"))
        sink.request(request(25, [30], 40, pid=3, caller_pid=1, role="decode"))
        parts = {"proxy": 0.012, "prefill": 0.02}
        sink.request(request(1, [33], 45, hops=hops, parts_us=parts, traceparent=parent))
        sink.close()
    spans = [one for one in received.spans if one.name == "request"]
    pids = {
        one.span_id: next(a.value.int_value for a in one.attributes if a.key == "process.pid")
        for one in spans
    }
    (outer,) = [one for one in spans if pids[one.span_id] == 1]
    assert (outer.trace_id.hex(), outer.parent_span_id.hex()) == (parent[3:35], parent[36:52])
    inner = [one for one in spans if one.parent_span_id == outer.span_id]
    assert [pids[one.span_id] for one in inner] == [2, 3]
    assert {one.trace_id for one in inner} == {outer.trace_id}
    by = [{a.key: a.value.string_value for a in one.attributes} for one in inner]
    assert [one["flexnpu.request.joined_by"] for one in by] == ["id", "answer"]
    assert [one["flexnpu.request.role"] for one in by] == ["prefill", "decode"]
    assert by[1]["gen_ai.response.id"] == "cmpl-1"
    # One that belongs to no request that was seen is a trace of its own.
    (alone,) = [one for one in spans if not one.parent_span_id]
    assert (pids[alone.span_id], alone.trace_id != outer.trace_id) == (3, True)
    names = [one.name for one in received.spans if one.parent_span_id == outer.span_id]
    assert sorted(names) == ["request", "request", "request prefill", "request proxy"]


@pytest.mark.parametrize("parent", [None, "", "00-" + "0" * 32 + "-b7ad6b7169203331-01"])
def test_a_request_without_a_caller_s_span_is_a_trace_of_its_own(parent: str | None) -> None:
    with otlp_receiver() as received:
        sink = OtlpSink(received.endpoint, interval_s=86400)
        sink.request(request(1, [2], 3, traceparent=parent))
        sink.close()
    (span,) = [one for one in received.spans if one.name == "request"]
    assert not span.parent_span_id
