"""Engines' own metrics pages: real-looking ones, bad ones, and servers that misbehave."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.feed.events import EngineMetrics
from probes.host import engine
from probes.host.engine import EngineError, EngineScraper, engine_line, metrics_url, read_page, scrape

VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a b"} 3.0
vllm:num_requests_running{engine="1",model_name="a b"} 1.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="a b"} 5.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="a b"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="a b"} 0.5
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="a b"} 1024.0
vllm:prompt_tokens_created{engine="0",model_name="a b"} 1.7e+09
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="a b"} 0.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="a b"} 2.5
vllm:time_to_first_token_seconds_count{engine="0",model_name="a b"} 10.0
"""
SGLANG = """\
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{model_name="m"} 7.0
sglang:num_queue_reqs{model_name="m"} 0.0
sglang:token_usage{model_name="m"} NaN
sglang:inter_token_latency_seconds_sum{model_name="m"} 4.0
sglang:inter_token_latency_seconds_count{model_name="m"} 100.0
"""


def test_vllms_page() -> None:
    name, fields = read_page(VLLM)
    assert name == "vllm"
    assert fields == {
        "running": 4.0,
        "waiting": 5.0,
        "kv_usage": 0.5,
        "prompt_tokens": 1024.0,
        "ttft_s": 2.5,
        "ttft_count": 10.0,
    }


def test_an_older_vllms_names() -> None:
    page = 'vllm:gpu_cache_usage_perc{model_name="m"} 0.75\nvllm:time_per_output_token_seconds_sum 3\n'
    assert read_page(page) == ("vllm", {"kv_usage": 0.75, "interval_s": 3.0})


def test_sglangs_page() -> None:
    name, fields = read_page(SGLANG)
    assert (name, fields) == (
        "sglang",
        {"running": 7.0, "waiting": 0.0, "interval_s": 4.0, "interval_count": 100.0},
    )


def test_another_programs_page() -> None:
    assert read_page("process_cpu_seconds_total 1.0\npython_info 1\n") == ("", {})


LINES = st.lists(
    st.sampled_from(
        [
            *VLLM.splitlines(),
            *SGLANG.splitlines(),
            "vllm:num_requests_running",
            "vllm:num_requests_running{",
            "\x00",
        ]
    )
    | st.text(max_size=30)
    | st.text(max_size=20).map("vllm:num_requests_running".__add__),
    max_size=20,
)


@given(LINES)
def test_any_page_is_read_or_refused(lines: list[str]) -> None:
    try:
        _, fields = read_page("\n".join(lines))
    except ValueError:
        return
    EngineMetrics(t_ns=0, url="", engine="", **fields)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/metrics"),
        ("http://[::1]:8000/", "http://[::1]:8000/metrics"),
        ("https://engine/a/metrics?x=1", "https://engine/a/metrics?x=1"),
    ],
)
def test_addresses(given: str, url: str) -> None:
    assert metrics_url(given) == url


@pytest.mark.parametrize(
    "text", ["", "8000", "127.0.0.1:8000", "file:///etc/passwd", "http://", "http://x:99999"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(EngineError, match="metrics page"):
        metrics_url(text)


@contextmanager
def serving(status: int, body: bytes, *, pause_s: float = 0.0, location: str = "") -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            self.end_headers()
            for i in range(0, len(body), 4096):
                self.wfile.write(body[i : i + 4096])
                time.sleep(pause_s)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()


def test_a_page_is_read_over_http() -> None:
    with serving(200, VLLM.encode()) as url:
        got = scrape(url)
    assert (got.engine, got.running, got.error) == ("vllm", 4.0, None)
    assert engine_line(got) == "vllm: 4 running, 5 waiting, KV 50 %"


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (404, b"", "HTTP status 404"),
        (302, b"", "HTTP status 302"),
        (200, b"x" * 200_000, "longer than 100000 bytes"),
        (200, b"hello", "nothing on the page is known"),
        (200, b"vllm:num_requests_running{ 3", "ValueError"),
        (200, b"\xff\xfe\x00", "nothing on the page"),
    ],
)
def test_what_goes_wrong_is_said(status: int, body: bytes, error: str) -> None:
    with serving(status, body, location="http://127.0.0.1:1/") as url:
        got = scrape(url, max_bytes=100_000)
    assert got.error is not None
    assert error in got.error
    assert engine_line(got) == f"engine: {got.error}"


def test_a_slow_page_is_given_up() -> None:
    with serving(200, b"x" * 100_000, pause_s=0.1) as url:
        before = time.monotonic()
        got = scrape(url, timeout_s=0.3)
    assert "longer than 0.3 s" in (got.error or "")
    assert time.monotonic() - before < 60  # a hang guard: the message says what ended it


def test_nobody_there() -> None:
    got = scrape("http://127.0.0.1:1/metrics")
    assert "refused" in (got.error or "")


def test_trouble_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["HTTP status 500", "HTTP status 500", None, "HTTP status 500"])
    done = threading.Event()

    def answer(url: str) -> EngineMetrics:
        error = next(answers, "end")
        if error == "end":
            done.set()
        return EngineMetrics(t_ns=0, url=url, engine="", error=error)

    monkeypatch.setattr(engine, "scrape", answer)
    events: list[EngineMetrics] = []
    told: list[str] = []
    with EngineScraper("http://127.0.0.1:9", events.append, told.append, interval_s=0.01) as scraper:
        deadline = time.monotonic() + 120
        while not done.is_set() and time.monotonic() < deadline:
            scraper.poll()
            time.sleep(0.001)
    url = "http://127.0.0.1:9/metrics"
    assert [event.error for event in events][:4] == [
        "HTTP status 500",
        "HTTP status 500",
        None,
        "HTTP status 500",
    ]
    assert told[:2] == [f"{url}: HTTP status 500"] * 2
