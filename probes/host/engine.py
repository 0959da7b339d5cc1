"""What serving engines say of themselves: vLLM's and SGLang's own Prometheus pages.

    engine = EngineScraper("http://127.0.0.1:8000/metrics", on_event)
    engine.poll()      # many times a second; delivers `events.EngineMetrics`
    engine.close()

The engine knows what no probe sees: how many requests wait in its scheduler, and how full its KV cache is. A
thread of its own asks every `INTERVAL_S`, with a time limit and a size limit; redirections are not followed.
Of the page only the lines named here are parsed. Metric names differ between versions; the first that is
there counts. Sources of the names: the engines' documentation of their production metrics.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import IO, Any, Final
from urllib.parse import urlsplit, urlunsplit

from flexnpu.common.closeable import Closeable
from probes.feed.events import EngineMetrics

INTERVAL_S: Final = 5.0
TIMEOUT_S: Final = 2.0
MAX_BYTES: Final = 8 << 20

_NAMES: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "vllm": {
        "running": ("vllm:num_requests_running",),
        "waiting": ("vllm:num_requests_waiting",),
        "kv_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        "prompt_tokens": ("vllm:prompt_tokens_total",),
        "generation_tokens": ("vllm:generation_tokens_total",),
        "preemptions": ("vllm:num_preemptions_total",),
        "ttft_s": ("vllm:time_to_first_token_seconds_sum",),
        "ttft_count": ("vllm:time_to_first_token_seconds_count",),
        "queue_s": ("vllm:request_queue_time_seconds_sum",),
        "queue_count": ("vllm:request_queue_time_seconds_count",),
        "interval_s": ("vllm:inter_token_latency_seconds_sum", "vllm:time_per_output_token_seconds_sum"),
        "interval_count": (
            "vllm:inter_token_latency_seconds_count",
            "vllm:time_per_output_token_seconds_count",
        ),
    },
    "sglang": {
        "running": ("sglang:num_running_reqs",),
        "waiting": ("sglang:num_queue_reqs",),
        "kv_usage": ("sglang:token_usage",),
        "prompt_tokens": ("sglang:prompt_tokens_total",),
        "generation_tokens": ("sglang:generation_tokens_total",),
        "preemptions": ("sglang:num_retractions_total", "sglang:num_retracted_requests_total"),
        "ttft_s": ("sglang:time_to_first_token_seconds_sum",),
        "ttft_count": ("sglang:time_to_first_token_seconds_count",),
        "queue_s": ("sglang:queue_time_seconds_sum",),
        "queue_count": ("sglang:queue_time_seconds_count",),
        "interval_s": ("sglang:inter_token_latency_seconds_sum", "sglang:time_per_output_token_seconds_sum"),
        "interval_count": (
            "sglang:inter_token_latency_seconds_count",
            "sglang:time_per_output_token_seconds_count",
        ),
    },
}
_WANTED: Final = {name for names in _NAMES.values() for few in names.values() for name in few}
_LARGEST: Final = frozenset({"kv_usage"})


class EngineError(ValueError):
    """The address is none of a metrics page; the message says why."""


def metrics_url(text: str) -> str:
    """The address to read: ``/metrics`` is added where there is no path. Raises `EngineError`."""
    parts = urlsplit(text)
    try:
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        fits = False
    if not fits:
        raise EngineError(f"{text!r} is no address of a metrics page; http://127.0.0.1:8000/metrics is one")
    return urlunsplit(parts._replace(path=parts.path if parts.path.strip("/") else "/metrics"))


def read_page(page: str) -> tuple[str, dict[str, float]]:
    """(engine, fields of `EngineMetrics`) of a Prometheus text page; ("", {}) when nothing in it is known.

    Raises ValueError for lines that are named like ours and are not Prometheus's.
    """
    lines = [line for line in page.splitlines() if line.split("{", 1)[0].split(" ", 1)[0] in _WANTED]
    values: dict[str, list[float]] = {}
    from prometheus_client.parser import text_string_to_metric_families  # takes 2 MiB

    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        for sample in family.samples:
            if 0 <= sample.value < float("inf"):
                values.setdefault(sample.name, []).append(float(sample.value))
    for engine, fields in _NAMES.items():
        found = {}
        for field, names in fields.items():
            for name in names:
                if name in values:
                    found[field] = max(values[name]) if field in _LARGEST else sum(values[name])
                    break
        if found:
            return engine, found
    return "", {}


def scrape(url: str, *, timeout_s: float = TIMEOUT_S, max_bytes: int = MAX_BYTES) -> EngineMetrics:
    """Read the page at `url` once. What goes wrong is in `EngineMetrics.error`."""
    # Imported where an engine is asked: with TLS they take 5 MiB.
    import urllib.error
    import urllib.request

    class _NoRedirection(urllib.request.HTTPRedirectHandler):
        def redirect_request(
            self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
        ) -> None:
            return None

    # Engines are asked directly: a proxy of the operator's shell is not meant for them.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirection)
    engine, error = "", None
    fields: dict[str, float] = {}
    try:
        with opener.open(url, timeout=timeout_s) as response:
            deadline = time.monotonic() + timeout_s
            parts, size = [], 0
            while part := response.read1(1 << 16):
                parts.append(part)
                size += len(part)
                if size > max_bytes:
                    raise ValueError(f"the page is longer than {max_bytes} bytes")
                if time.monotonic() > deadline:
                    raise ValueError(f"the page took longer than {timeout_s:g} s")
        engine, fields = read_page(b"".join(parts).decode("utf-8", "replace"))
        if not engine:
            error = "nothing on the page is known: neither vllm: nor sglang: metrics"
    except urllib.error.HTTPError as problem:
        problem.close()
        error = f"HTTP status {problem.code}"
    except urllib.error.URLError as problem:
        error = str(problem.reason)
    except Exception as problem:  # the page and the peer are not to be trusted, nor to end the tracer
        error = f"{type(problem).__name__}: {problem}"
    return EngineMetrics(t_ns=time.monotonic_ns(), url=url, engine=engine, error=error, **fields)


class EngineScraper(Closeable):
    """Reads the page at `url` (see `metrics_url`) in a thread and delivers it in `poll`.

    `on_trouble` is told a problem once, and again when it is another one.
    """

    def __init__(
        self,
        url: str,
        on_event: Callable[[EngineMetrics], None],
        on_trouble: Callable[[str], None] = lambda text: None,
        *,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self.url = metrics_url(url)
        self._on_event = on_event
        self._on_trouble = on_trouble
        self._interval_s = interval_s
        self._told: str | None = None
        self._results: queue.Queue[EngineMetrics] = queue.Queue(maxsize=4)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine-metrics", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            result = scrape(self.url)
            with contextlib.suppress(queue.Full):  # nobody polls
                self._results.put_nowait(result)
            self._stop.wait(self._interval_s)

    def poll(self) -> None:
        """Deliver what was read since the last call. Does not wait."""
        while True:
            try:
                result = self._results.get_nowait()
            except queue.Empty:
                return
            if result.error is not None and result.error != self._told:
                self._on_trouble(f"{self.url}: {result.error}")
            self._told = result.error
            self._on_event(result)

    def close(self) -> None:
        """Ask no more. A question that is under way ends within its time limit, unheard."""
        self._stop.set()


def engine_line(metrics: EngineMetrics) -> str:
    """A few words for a header, such as ``vllm: 3 running, 5 waiting, KV 42 %``."""
    if metrics.error is not None:
        return f"engine: {metrics.error}"
    parts = [
        f"{value:g} {word}"
        for value, word in ((metrics.running, "running"), (metrics.waiting, "waiting"))
        if value is not None
    ]
    if metrics.kv_usage is not None:
        parts.append(f"KV {metrics.kv_usage * 100:.0f} %")
    return f"{metrics.engine}: {', '.join(parts)}"
