"""Events become the right numbers."""

from __future__ import annotations

import math

import pytest

from collectors import metrics
from collectors.aggregate import FORGET_NS, Aggregator, operation
from collectors.metrics.requests import BAD_REASONS
from collectors.prometheus import PrometheusSink
from probes.feed.events import EngineMetrics, Event, HostDelay, Losses
from tests.collectors.scripted import MS, S, process, request, second, step


class Run:
    def __init__(self, *events: Event, slo: float = 0.1) -> None:
        self.sink = PrometheusSink([lambda: self.of.snapshot()])
        self.of = Aggregator([self.sink], ttft_slo_s=slo, ttft_objective=0.99)
        for event in events:
            self.of.take(event)
        self.of.advance(10**15)

    def value(self, series: str, **labels: str) -> float | None:
        return self.sink.registry.get_sample_value(series, labels)


CHAT = {"pid": "1", "comm": "chat"}


def test_steps() -> None:
    run = Run(
        step(0, 10 * MS, tokens=4),
        step(20 * MS, 50 * MS, tokens=None, launches=0, graph_launches=1),
        step(60 * MS, 90 * MS, "prefill", tokens=37),
    )
    assert run.value("flexnpu_steps_total", **CHAT, phase="decode") == 2
    assert run.value("flexnpu_step_tokens_total", **CHAT, phase="decode") == 4
    assert run.value("flexnpu_steps_unsized_total", **CHAT, phase="decode") == 1
    assert run.value("flexnpu_steps_unsized_total", **CHAT, phase="prefill") is None
    assert run.value("flexnpu_launches_total", **CHAT, phase="decode", kind="operator") == 214
    assert run.value("flexnpu_launches_total", **CHAT, phase="decode", kind="graph") == 1
    assert run.value("flexnpu_launches_total", **CHAT, phase="prefill", kind="graph") is None
    assert run.value("flexnpu_step_duration_seconds_sum", **CHAT, phase="decode") == pytest.approx(0.04)
    assert run.value("flexnpu_step_duration_seconds_count", **CHAT, phase="prefill") == 1


def test_requests() -> None:
    run = Run(request(0, [50 * MS, 70 * MS, 110 * MS], 120 * MS))
    chat = {**CHAT, "operation": "chat"}
    assert run.value("flexnpu_ttft_seconds_sum", **chat) == pytest.approx(0.05)
    assert run.value("flexnpu_token_interval_seconds_count", **chat) == 2
    assert run.value("flexnpu_token_interval_seconds_sum", **chat) == pytest.approx(0.06)
    assert run.value("flexnpu_tpot_seconds_sum", **chat) == pytest.approx(0.03)
    assert run.value("flexnpu_time_to_second_token_seconds_sum", **chat) == pytest.approx(0.07)
    assert run.value("flexnpu_request_duration_seconds_sum", **chat) == pytest.approx(0.12)
    assert run.value("flexnpu_requests_total", **chat, code="200", complete="true") == 1


def test_the_parts_of_a_ttft() -> None:
    parts = {"queue_us": 10e3, "prefill_us": 25e3, "gated_us": 5e3, "send_us": 10e3, "join_confidence": 1.0}
    run = Run(
        request(0, [50 * MS], 60 * MS, t_read_ns=2 * MS, t_write_ns=49 * MS, **parts),
        request(0, [50 * MS], 60 * MS, **(parts | {"prefill_us": 30e3, "gated_us": None})),
        request(0, [50 * MS], 60 * MS),
    )
    chat = {**CHAT, "operation": "chat"}
    for part, total, count in (
        ("queue", 0.02, 2),
        ("compute", 0.055, 2),
        ("gate", 0.005, 1),
        ("send", 0.02, 2),
    ):
        assert run.value("flexnpu_ttft_part_seconds_sum", **chat, part=part) == pytest.approx(total)
        assert run.value("flexnpu_ttft_part_seconds_count", **chat, part=part) == count
    assert run.value("flexnpu_requests_unjoined_total", **chat) == 1
    assert run.value("flexnpu_request_read_delay_seconds_sum", **chat) == pytest.approx(0.002)
    assert run.value("flexnpu_first_content_held_seconds_sum", **chat) == pytest.approx(0.001)


def test_the_parts_of_a_ttft_over_several_servers() -> None:
    parts = {"proxy": 5e3, "prefill": 25e3, "decode_wait": 20e3}
    run = Run(
        request(0, [50 * MS], 60 * MS, parts_us=parts, hops=[(2, 1, "prefill", "id")]),
        request(
            1, [], 40 * MS, pid=2, comm="p", caller_pid=1, role="prefill", queue_us=1e3, join_confidence=1.0
        ),
    )
    chat = {**CHAT, "operation": "chat"}
    for part, us in parts.items():
        assert run.value("flexnpu_ttft_part_seconds_sum", **chat, part=part) == pytest.approx(us / 1e6)
    for part in ("queue", "compute", "prefill_queue", "send"):
        assert run.value("flexnpu_ttft_part_seconds_sum", **chat, part=part) is None
    assert run.value("flexnpu_requests_unjoined_total", **chat) is None
    # An answer in one piece has no TTFT, and has been split.
    inner = {"pid": "2", "comm": "p", "operation": "chat"}
    assert run.value("flexnpu_ttft_part_seconds_sum", **inner, part="queue") == pytest.approx(0.001)
    assert run.value("flexnpu_ttft_seconds_count", **inner) is None
    assert run.value("flexnpu_requests_inner_total", **inner, role="prefill") == 1
    assert run.value("flexnpu_requests_total", **inner, code="200", complete="true") == 1


def test_servers_of_one_service_count_a_request_once() -> None:
    both = [process(0, pid, service="chat") for pid in (1, 2)]
    inner = request(1, [40 * MS], 50 * MS, pid=2, caller_pid=1, role="decode")
    run = Run(*both, inner, request(0, [50 * MS], 60 * MS))
    of = {"service": "chat", "operation": "chat"}
    assert run.value("flexnpu_ttft_seconds_count", **of) == 1
    assert run.value("flexnpu_requests_total", **of, code="200", complete="true") == 1
    assert run.value("flexnpu_requests_inner_total", **of, role="decode") == 1
    # Two services: both have a TTFT of their own.
    run = Run(both[0], process(0, 2, service="decode"), inner, request(0, [50 * MS], 60 * MS))
    for service in ("chat", "decode"):
        assert run.value("flexnpu_ttft_seconds_count", service=service, operation="chat") == 1


def test_tpot_goes_by_the_servers_tokens_where_it_says_them() -> None:
    chunks = [50 * MS, 70 * MS, 110 * MS]
    for tokens, source, expected in ((7, "usage", 0.01), (3, "chunks", 0.03), (None, None, 0.03)):
        run = Run(request(0, chunks, 120 * MS, tokens=tokens, tokens_from=source))
        assert run.value("flexnpu_tpot_seconds_sum", **CHAT, operation="chat") == pytest.approx(expected)


def test_engines() -> None:
    run = Run(
        EngineMetrics(1, "http://a/metrics", "vllm", running=3.0, waiting=0.0, kv_usage=0.5),
        EngineMetrics(1, "http://b/metrics", "", error="HTTP status 404"),
    )
    of = {"url": "http://a/metrics", "engine": "vllm"}
    assert run.value("flexnpu_engine_running_requests", **of) == 3
    assert run.value("flexnpu_engine_waiting_requests", **of) == 0
    assert run.value("flexnpu_engine_kv_usage_ratio", **of) == 0.5
    assert run.value("flexnpu_engine_generation_tokens_total", **of) is None
    assert run.value("flexnpu_engine_up", url="http://a/metrics") == 1
    assert run.value("flexnpu_engine_up", url="http://b/metrics") == 0
    assert run.value("flexnpu_engine_running_requests", url="http://b/metrics", engine="") is None


def test_what_was_not_measured_is_absent() -> None:
    run = Run(
        request(0, [50 * MS], 60 * MS),
        request(0, [50 * MS, 60 * MS], None, pid=2, complete=False),
        request(0, [], 5 * MS, pid=3, path="/health"),
    )
    for pid in "123":
        for metric in (metrics.requests.TPOT, metrics.requests.SECOND_TOKEN, metrics.requests.TOKEN_INTERVAL):
            assert run.value(metric.count, pid=pid, comm="chat", operation="chat") is None
    assert run.value(metrics.requests.TTFT.count, pid="2", comm="chat", operation="chat") == 1
    assert run.value(metrics.requests.TTFT.count, pid="3", comm="chat", operation="other") is None
    # What a rate is asked of is there at 0.
    assert run.value(metrics.requests.SLO_REQUESTS.name, pid="3", comm="chat") == 0
    assert run.value(metrics.steps.DECODE_DURATION.count, **CHAT, prefill_in_flight="true") is None
    assert run.value(metrics.tracer.LOST_EVENTS.name, source="steps", kind="steps_lost") is None
    assert run.value(metrics.daemon.DEVICE_BUSY.name, device="0") is None


@pytest.mark.parametrize(
    ("event", "covered", "good"),
    [
        (request(0, [100 * MS], S), 1, 1),
        (request(0, [100 * MS + 1], S), 1, 0),
        (request(0, [50 * MS], None, complete=False), 1, 1),
        (request(0, [], None, complete=False, status=None), 1, 0),
        (request(0, [], S, status=503), 1, 0),
        (request(0, [], S, status=200, error="event"), 1, 0),
        (request(0, [50 * MS], S, status=200, error="finish"), 1, 0),
        (request(0, [], S, status=200), 0, 0),
        (request(0, [], S, status=404), 0, 0),
        (request(0, [], None, complete=False, path="/health"), 0, 0),
    ],
)
def test_the_objective(event: Event, covered: int, good: int) -> None:
    run = Run(event)
    assert run.value(metrics.requests.SLO_REQUESTS.name, **CHAT) == covered
    assert run.value(metrics.requests.SLO_GOOD.name, **CHAT) == good
    bad = [run.value(metrics.requests.SLO_BAD.name, **CHAT, reason=one) for one in BAD_REASONS]
    assert sum(one or 0.0 for one in bad) == covered - good


def test_constants_losses_and_connection() -> None:
    run = Run(
        Losses(t_ns=1, source="steps", counts={"steps_sent": 9, "steps_lost": 2}),
        Losses(t_ns=2, source="steps", counts={"steps_sent": 10, "steps_lost": 3, "feed_subscribers": 1}),
        Losses(t_ns=2, source="steps", counts={"hits_client": 8633, "windows": 2}),
        Losses(t_ns=2, source="wire", counts={"wire_truncated_bytes": 7, "wire_lost": 0}),
    )
    assert run.value("flexnpu_ttft_slo_threshold_seconds") == 0.1
    assert run.value("flexnpu_ttft_slo_objective_ratio") == 0.99
    assert run.value("flexnpu_feed_connected") == 0
    assert run.value("flexnpu_tracer_records_total", source="steps", kind="steps_sent") == 10
    assert run.value("flexnpu_lost_events_total", source="steps", kind="steps_lost") == 3
    assert run.value("flexnpu_lost_events_total", source="wire", kind="wire_lost") == 0
    assert run.value("flexnpu_lost_bytes_total", source="wire", kind="wire_truncated_bytes") == 7
    assert run.value("flexnpu_lost_events_total", source="steps", kind="feed_subscribers") is None
    assert run.value("flexnpu_lost_events_total", source="steps", kind="hits_client") is None
    run.of.disconnected()
    assert run.value("flexnpu_lost_events_total", source="steps", kind="steps_lost") is None


def test_interference_of_the_scripted_second() -> None:
    run = Run(*second(100 * S))
    hit = run.value(metrics.steps.DECODE_DURATION.count, **CHAT, prefill_in_flight="true")
    free = run.value(metrics.steps.DECODE_DURATION.count, **CHAT, prefill_in_flight="false")
    # Of 20 periods 5 have a prefill, beside the step of stream 2 only.
    assert (hit, free) == (5, 35)


def test_a_silent_process_is_forgotten_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("collectors.series.time.monotonic", lambda: now)
    run = Run(step(0, 1), request(0, [5], 6), step(0, 1, pid=2))
    now = 3000.0
    run.of.take(step(0, 1, pid=2))
    now = 3700.0
    run.of.take(step(0, 1, pid=2))
    assert run.value("flexnpu_steps_total", **CHAT, phase="decode") is None
    assert run.value(metrics.requests.TTFT.count, **CHAT, operation="chat") is None
    assert run.value("flexnpu_steps_total", pid="2", comm="chat", phase="decode") == 3
    run.of.take(step(0, 1))
    assert run.value("flexnpu_steps_total", **CHAT, phase="decode") == 1


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/chat/completions", "chat"),
        ("/v1/completions", "text_completion"),
        ("/generate_stream", "text_completion"),
        ("/v1/messages", "chat"),
        ("/v1/embeddings", "embeddings"),
        ("/health", "other"),
    ],
)
def test_operations(path: str, name: str) -> None:
    assert operation(path) == name


def test_buckets_hold_the_tail() -> None:
    assert not math.isinf(metrics.requests.TTFT.buckets[-1])
    assert metrics.requests.TTFT.buckets[-1] >= 600


def test_processes_that_are_gone_leave_nothing() -> None:
    of = Aggregator([], ttft_slo_s=1, ttft_objective=0.99)
    for pid in range(1000):
        of.take(HostDelay(pid * S, pid, "x", None, 1e6, 8e5, 3e5))
        of.advance(pid * S)
    assert len(of._processes) <= 2 * FORGET_NS // S + 1
