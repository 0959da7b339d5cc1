"""flexnpu-collector as a process: feed and daemon in, Prometheus and OTLP out."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from collectors import metrics
from probes.feed.socket import FeedServer
from tests.collectors.scripted import S, process, request, second, status, waiting
from tests.collectors.stand import collector, daemon, otlp_receiver


def wait_for_subscriber(server: FeedServer) -> None:
    deadline = time.monotonic() + 120
    while not server.counts["feed_subscribers"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_everything_arrives_over_both(tmp_path: Path) -> None:
    feed, ctl = tmp_path / "probe.sock", tmp_path / "npu0.ctl"
    with (
        otlp_receiver() as received,
        FeedServer(feed) as server,
        daemon(ctl, lambda: status(2.0)),
        collector(
            *("--feed", str(feed), "--ctl", str(ctl), "--settle", "0", "--poll-interval", "0.1"),
            *("--otlp-endpoint", received.endpoint, "--otlp-interval", "0.2", "--ttft-slo", "0.1"),
        ) as run,
    ):
        wait_for_subscriber(server)
        now = time.monotonic_ns()
        for event in second(now - S):
            server.publish(event)
        scrape = run.wait_for('kind="wire_lost"')
        for line in (
            'flexnpu_steps_total{comm="chat",phase="decode",pid="1"} 40.0',
            'flexnpu_step_tokens_total{comm="flood",phase="prefill",pid="2"} 2560.0',
            'flexnpu_launches_total{comm="chat",kind="graph",phase="decode",pid="1"} 20.0',
            'flexnpu_ttft_seconds_count{comm="chat",operation="chat",pid="1"} 1.0',
            'flexnpu_ttft_slo_good_requests_total{comm="flood",pid="2"} 0.0',
            'flexnpu_lost_events_total{kind="wire_lost",source="wire"} 0.0',
            'flexnpu_device_busy_seconds_total{device="0"} 0.8',
            'flexnpu_lane_gated_seconds_total{comm="flood",device="0",lane="2",pid="2"} 0.2',
            'flexnpu_gate_policy_info{device="0",policy="protect-decode"} 1.0',
            "flexnpu_feed_connected 1.0",
        ):
            assert line in scrape
        assert 'prefill_in_flight="true"' in scrape
        code, stderr = run.stop()
    assert (code, stderr) == (0, "")

    # OTLP has every metric, under the conventions' names, with the same numbers.
    expected = {metric.otel for metric in metrics.METRICS} - {metrics.steps.LATE_PREFILLS.otel}
    assert set(received.metrics) == expected
    ttft = received.metrics["gen_ai.server.time_to_first_token"]
    assert ttft.unit == "s"
    points = {
        tuple(sorted((a.key, a.value.string_value or a.value.int_value) for a in p.attributes)): p
        for p in ttft.histogram.data_points
    }
    chat = points[("gen_ai.operation.name", "chat"), ("process.executable.name", "chat"), ("process.pid", 1)]
    assert (chat.count, round(chat.sum, 6)) == (1, 0.05)
    assert tuple(chat.explicit_bounds) == metrics.requests.TTFT.buckets
    busy = received.metrics["flexnpu.device.busy"].sum
    assert busy.is_monotonic
    assert [p.as_double for p in busy.data_points] == [0.8]

    # Spans carry the events' own times, on the wall clock.
    steps = [s for s in received.spans if s.name == "step decode"]
    assert len(steps) == 40
    requests = [s for s in received.spans if s.name == "request"]
    assert [e.name for s in requests for e in s.events] == ["gen_ai.first_token"] * 2
    (split,) = [s for s in requests if any(p.parent_span_id == s.span_id for p in received.spans)]
    parts = [s for s in received.spans if s.parent_span_id == split.span_id]
    assert [s.name for s in parts] == [f"request {part}" for part in ("queue", "compute", "gate", "send")]
    assert parts[0].start_time_unix_nano == split.start_time_unix_nano
    assert parts[-1].end_time_unix_nano == split.events[0].time_unix_nano
    shift = time.time_ns() - time.monotonic_ns()
    assert all(abs(s.end_time_unix_nano - shift - (now - S)) < 1.1 * S for s in steps)
    assert {s.end_time_unix_nano - s.start_time_unix_nano for s in steps} <= set(
        range(11_990_000, 25_010_000)
    )


def test_feed_and_daemon_may_come_and_go(tmp_path: Path) -> None:
    feed, ctl = tmp_path / "probe.sock", tmp_path / "npu0.ctl"
    with collector(
        *("--feed", str(feed), "--ctl", str(ctl), "--settle", "0", "--poll-interval", "0.1")
    ) as run:
        scrape = run.scrape()
        assert "flexnpu_feed_connected 0.0" in scrape
        assert "flexnpu_daemon_up{" not in scrape
        assert "flexnpu_lost_events_total{" not in scrape
        for _ in range(2):
            with FeedServer(feed) as server, daemon(ctl, status):
                run.wait_for("flexnpu_feed_connected 1.0")
                run.wait_for('flexnpu_daemon_up{device="0"} 1.0')
                for event in second(time.monotonic_ns()):
                    server.publish(event)
                run.wait_for("flexnpu_lost_events_total{")
            run.wait_for("flexnpu_feed_connected 0.0")
            gone = run.wait_for('flexnpu_daemon_up{device="0"} 0.0')
            assert "flexnpu_device_busy_seconds_total{" not in gone
            assert "flexnpu_lost_events_total{" not in gone
        assert 'flexnpu_steps_total{comm="chat",phase="decode",pid="1"} 80.0' in gone
        code, stderr = run.stop()
    assert code == 0
    # Each was missed before it came and after each time it went, and that is said once a time.
    assert stderr.startswith("flexnpu-collector: no daemon at")
    assert "no tracer serves" in stderr
    assert stderr.count("the tracer has ended") == 2
    assert stderr.count("no daemon at") == 3


def test_default_sockets_are_those_of_the_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEXNPU_RUN_DIR", str(tmp_path))
    with FeedServer(tmp_path / "probe.sock"), daemon(tmp_path / "npu0.ctl", status), collector() as run:
        run.wait_for("flexnpu_feed_connected 1.0")
        run.wait_for('flexnpu_daemon_up{device="0"} 1.0')


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen", "9464"], "HOST:PORT"),
        (["--listen", "localhost:9464"], "not an IP address"),
        (["--listen", "127.0.0.1:99999"], "HOST:PORT"),
        (["--listen", "203.0.113.1:0"], "cannot listen"),
        (["--otlp-endpoint", "127.0.0.1:4318"], "URL like"),
        (["--otlp-endpoint", "http://127.0.0.1:4318/v1/metrics"], "without /v1"),
        (["--ttft-objective", "1"], "is not allowed: give"),
        (["--ttft-slo", "0"], "is not allowed: give"),
        (["--settle", "-1"], "is not allowed: give"),
        (["--nonsense"], "No such option"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "collectors.cli", "--feed", str(tmp_path / "x"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with collector("--feed", str(tmp_path / "x")) as run:
        done = subprocess.run(
            [sys.executable, "-m", "collectors.cli", "--feed", str(tmp_path / "x"), "--listen", run.target],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert "--listen" in done.stderr


def test_duration_ends_it(tmp_path: Path) -> None:
    with collector("--feed", str(tmp_path / "x"), "--duration", "0.5") as run:
        assert run.process.wait(120) == 0


@pytest.mark.slow
@pytest.mark.parametrize("answers", [False, True], ids=["nobody listens", "nobody answers"])
def test_an_endpoint_that_takes_nothing_is_told_once_and_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    """By the SDK's own time-out the program would end after an hour: the bound on the end is ours."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    feed, ctl = tmp_path / "probe.sock", tmp_path / "npu0.ctl"
    with socket.create_server(("127.0.0.1", 0)) as endpoint:
        port = endpoint.getsockname()[1]
        if not answers:
            endpoint.close()
        with (
            FeedServer(feed) as server,
            daemon(ctl, status),
            collector(
                *("--feed", str(feed), "--ctl", str(ctl), "--settle", "0", "--otlp-interval", "0.1"),
                *("--otlp-endpoint", f"http://127.0.0.1:{port}"),
            ) as run,
        ):
            wait_for_subscriber(server)
            for _ in range(3):
                for event in second(time.monotonic_ns()):
                    server.publish(event)
            run.wait_for('flexnpu_steps_total{comm="chat",phase="decode",pid="1"} 120.0')
            code, stderr = run.stop()  # within two minutes, a hang guard
    assert code == 0
    lines = stderr.splitlines()
    assert all(line.startswith("flexnpu-collector: http://127.0.0.1:") for line in lines), stderr
    assert sum("takes no metrics" in line for line in lines) <= 1
    assert sum("takes no spans" in line for line in lines) <= 1
    if not answers:
        assert "Connection refused" in stderr


def test_a_server_that_hangs_misses_its_objective_while_it_hangs(tmp_path: Path) -> None:
    feed = tmp_path / "probe.sock"
    with FeedServer(feed) as server:
        # Before anybody reads: who comes later is told of the processes that are there.
        server.publish(process(time.monotonic_ns(), 7, "python", service='a "front"'))
        with collector("--feed", str(feed), "--ctl", str(tmp_path / "x.ctl"), "--ttft-slo", "0.5") as run:
            who = 'service="a \\"front\\""'
            run.wait_for(f"flexnpu_ttft_slo_requests_total{{{who}}} 0.0")
            assert f'flexnpu_requests_in_flight{{pid="7",{who}}} 0.0' in run.scrape()
            now = time.monotonic_ns()
            for _ in range(3):
                server.publish(waiting(now, [now - S], pid=7, comm="python"))
            scrape = run.wait_for(f"flexnpu_ttft_slo_requests_total{{{who}}} 1.0")
            assert f"flexnpu_ttft_slo_good_requests_total{{{who}}} 0.0" in scrape
            assert f'flexnpu_ttft_slo_bad_requests_total{{reason="waiting",{who}}} 1.0' in scrape
            assert f'flexnpu_requests_waiting{{pid="7",{who}}} 1.0' in scrape
            late = request(now - S, [now], now, pid=7, comm="python", fd=9)
            server.publish(late)
            seen = f'flexnpu_requests_total{{code="200",complete="true",operation="chat",{who}}} 1.0'
            scrape = run.wait_for(seen)
            assert f"flexnpu_ttft_slo_requests_total{{{who}}} 1.0" in scrape
