"""What a metric is, and what several of them share: labels and buckets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["counter", "gauge", "histogram"]

ATTRIBUTES: Final[dict[str, str]] = {
    "service": "flexnpu.service",
    "pid": "process.pid",
    "comm": "process.executable.name",
    "operation": "gen_ai.operation.name",
    "code": "http.response.status_code",
    "complete": "flexnpu.request.complete",
    "phase": "flexnpu.phase",
    "prefill_in_flight": "flexnpu.prefill_in_flight",
    "kind": "flexnpu.kind",
    "source": "flexnpu.source",
    "part": "flexnpu.request.part",
    "role": "flexnpu.request.role",
    "reason": "flexnpu.slo.reason",
    "engine": "flexnpu.engine",
    "url": "url.full",
    "device": "flexnpu.device",
    "lane": "flexnpu.lane",
    "scope": "flexnpu.host.scope",
    "session": "flexnpu.session",
    "policy": "flexnpu.gate.policy",
    "soc": "flexnpu.soc",
    "version": "flexnpu.version",
}
"""OTLP attribute of each label. ``service`` is not ``service.name``, which is the exporter's own.
``pid`` and ``http.response.status_code`` are integers there."""

LABELS: Final[dict[str, str]] = {
    "service": "The name that outlives processes: of the process's environment (OTEL_SERVICE_NAME), else of "
    "its pod, container or systemd unit, else of its port (probes/host/services.py).",
    "pid": "The process. On a counter or histogram only while no service is known of the process.",
    "comm": "The process's name, as the kernel has it (15 bytes). flexnpu_process_info has the present one; "
    "elsewhere it is the first one, and is there only while no service is known of the process.",
    "operation": "What a request asks for, by its path: chat, text_completion, embeddings or other.",
    "code": "HTTP status of a response, none when there was no response; of a status that is none of HTTP's "
    "only the class, such as 5xx.",
    "complete": "true when the exchange was seen whole, else false.",
    "phase": "prefill, decode, mixed or other; of a lane prefill, decode or unknown.",
    "prefill_in_flight": "true when a prefill ran beside the step on another lane of the device, else false.",
    "kind": "What is counted; the metric's text says more.",
    "source": "Which part of the tracer counts: steps, wire or feed.",
    "part": "Part of the TTFT: queue, compute, gate or send; of a request that several servers worked at, "
    "proxy, prefill_queue, prefill, transfer, decode_queue, decode_wait, first_step, gate or send.",
    "role": "prefill, decode or both.",
    "reason": "Why a request is bad: late (its first token came after the threshold), waiting (it still "
    "waited for it then), error (its stream said that it failed), status (5xx) or cut (it ended before a "
    "first token).",
    "engine": "vllm or sglang.",
    "url": "Of the engine's metrics page.",
    "device": "The device's number.",
    "lane": "The daemon's number of a lane, which is one stream of one client process.",
    "scope": "process (all threads) or launcher (the threads that launch).",
    "session": "The daemon's number of a client process's connection.",
    "policy": "The gate's policy, as its controller names it; transparent: none.",
    "soc": "The device's chip.",
    "version": "Of the daemon's package.",
}
"""What each label says."""

PHASES: Final = ("prefill", "decode", "mixed", "other")

# Half powers of two, 0.5 ms to 23 s: a quantile is known to 1.4 times.
STEP_BUCKETS: Final = tuple(round(0.0005 * 2 ** (i / 2), 6) for i in range(32))
# What the conventions advise for time to first token, and on to the minutes of a server with a backlog.
TTFT_BUCKETS: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 320.0, 640.0),
)
# 0.1 ms to 3.3 s.
DELAY_BUCKETS: Final = tuple(round(0.0001 * 2**i, 6) for i in range(16))


@dataclass(frozen=True)
class Metric:
    """One metric. `unit` is UCUM, as OTLP wants it; Prometheus has it in the name."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    otel: str
    unit: str = "1"
    buckets: tuple[float, ...] = ()

    @property
    def bucket(self) -> str:
        """The series of a histogram's buckets."""
        return self._part("_bucket")

    @property
    def sum(self) -> str:
        """The series of a histogram's sum."""
        return self._part("_sum")

    @property
    def count(self) -> str:
        """The series of a histogram's count."""
        return self._part("_count")

    def _part(self, suffix: str) -> str:
        if self.kind != "histogram":
            raise ValueError(f"{self.name} is a {self.kind}, no histogram")
        return self.name + suffix

    @property
    def series(self) -> tuple[str, ...]:
        """The names that a scrape shows for it."""
        return (self.bucket, self.sum, self.count) if self.kind == "histogram" else (self.name,)


PROCESS: Final = ("service", "pid", "comm")
"""Of what is told of processes. A value that is empty is no label: a counter or histogram has ``service``, or
while none is known ``pid`` and ``comm``; a gauge always has ``pid``. `process.INFO` has all three."""
LANE: Final = ("device", "lane", "pid", "comm")
SESSION: Final = ("device", "session", "pid", "comm")
