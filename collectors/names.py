"""The one list of metrics: names, units, help, labels, buckets, for dashboards, alerts and tests.

Names follow Prometheus: the prefix ``flexnpu_``, base units (seconds, bytes), ``_total`` for counters, and
what varies (the phase, the process) in labels. OTLP carries the same measurements under `Metric.otel`: the
OpenTelemetry semantic conventions' name where there is one (``gen_ai.server.*``), else ``flexnpu.`` and
dots, with `ATTRIBUTES` for labels. The conventions' attribute ``gen_ai.provider.name`` is left out: the
wire does not say it.

A series exists only once there was something to measure. Histograms of time to first token take every
request that had a first token; those of the whole answer (intervals, time per output token, duration) take
requests that were seen whole (``complete="true"`` in `REQUESTS`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["counter", "gauge", "histogram"]

ATTRIBUTES: Final[dict[str, str]] = {
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
"""OTLP attribute of each label. ``pid`` and ``http.response.status_code`` are integers there."""

PHASES: Final = ("prefill", "decode", "mixed", "other")

# Half powers of two, 0.5 ms to 23 s: a quantile is known to 1.4 times.
_STEP_BUCKETS: Final = tuple(round(0.0005 * 2 ** (i / 2), 6) for i in range(32))
# What the conventions advise for time to first token, and on to the minutes of a server with a backlog.
_TTFT_BUCKETS: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 320.0, 640.0),
)
# 0.1 ms to 3.3 s.
_DELAY_BUCKETS: Final = tuple(round(0.0001 * 2**i, 6) for i in range(16))


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
        return self._part("_sum")

    @property
    def count(self) -> str:
        return self._part("_count")

    def _part(self, suffix: str) -> str:
        if self.kind != "histogram":
            raise ValueError(f"{self.name} is a {self.kind}, no histogram")
        return self.name + suffix

    @property
    def series(self) -> tuple[str, ...]:
        """The names that a scrape shows for it."""
        return (self.bucket, self.sum, self.count) if self.kind == "histogram" else (self.name,)


_PROCESS: Final = ("pid", "comm")
_LANE: Final = ("device", "lane", "pid", "comm")

# From requests on the wire.

TTFT: Final = Metric(
    "flexnpu_ttft_seconds",
    "histogram",
    "Time to first token: from the arrival of a request at the server's socket to the write of the "
    "first chunk with "
    "content.",
    (*_PROCESS, "operation"),
    "gen_ai.server.time_to_first_token",
    "s",
    _TTFT_BUCKETS,
)
SECOND_TOKEN: Final = Metric(
    "flexnpu_time_to_second_token_seconds",
    "histogram",
    "From the arrival of a request to the write of its second chunk with content: shows a wait "
    "between prefill and "
    "decode, which TTFT and TPOT both hide.",
    (*_PROCESS, "operation"),
    "flexnpu.server.time_to_second_token",
    "s",
    _TTFT_BUCKETS,
)
TOKEN_INTERVAL: Final = Metric(
    "flexnpu_token_interval_seconds",
    "histogram",
    "Time between two consecutive chunks with content of one response. Chunks written by one call "
    "are 0 apart.",
    (*_PROCESS, "operation"),
    "flexnpu.server.token_interval",
    "s",
    _STEP_BUCKETS,
)
TPOT: Final = Metric(
    "flexnpu_tpot_seconds",
    "histogram",
    "Time per output token after the first, one value a request: (last chunk - first chunk) / (tokens - 1). "
    "Tokens are what the server says in usage, else chunks.",
    (*_PROCESS, "operation"),
    "gen_ai.server.time_per_output_token",
    "s",
    _STEP_BUCKETS,
)
TTFT_PART: Final = Metric(
    "flexnpu_ttft_part_seconds",
    "histogram",
    "TTFT split by the steps that served the request. part: queue (before and between its own prefill "
    "steps), compute (in them), gate (held by the gate meanwhile; absent without a daemon), send (from the "
    "last one's end until the first content left).",
    (*_PROCESS, "operation", "part"),
    "flexnpu.server.time_to_first_token.part",
    "s",
    _TTFT_BUCKETS,
)
UNJOINED: Final = Metric(
    "flexnpu_requests_unjoined_total",
    "counter",
    "Requests with a first token for which no step was found, so that their TTFT is not split.",
    (*_PROCESS, "operation"),
    "flexnpu.server.requests.unjoined",
    "{request}",
)
READ_DELAY: Final = Metric(
    "flexnpu_request_read_delay_seconds",
    "histogram",
    "From the arrival of a request at the server's socket until the server read it; part of the TTFT.",
    (*_PROCESS, "operation"),
    "flexnpu.server.request.read_delay",
    "s",
    _DELAY_BUCKETS,
)
SEND_DELAY: Final = Metric(
    "flexnpu_first_content_held_seconds",
    "histogram",
    "From the write of the first content until the kernel sent it; part of the TTFT. Some 40 ms tell of a "
    "server without TCP_NODELAY.",
    (*_PROCESS, "operation"),
    "flexnpu.server.first_content.held",
    "s",
    _DELAY_BUCKETS,
)
REQUEST_DURATION: Final = Metric(
    "flexnpu_request_duration_seconds",
    "histogram",
    "From the arrival of a request to the end of its response.",
    (*_PROCESS, "operation"),
    "gen_ai.server.request.duration",
    "s",
    _TTFT_BUCKETS,
)
REQUESTS: Final = Metric(
    "flexnpu_requests_total",
    "counter",
    'Requests that ended. code: HTTP status, "none" if there was no response. complete: seen whole, '
    "from first byte "
    "to last.",
    (*_PROCESS, "operation", "code", "complete"),
    "flexnpu.server.requests",
    "{request}",
)
SLO_REQUESTS: Final = Metric(
    "flexnpu_ttft_slo_requests_total",
    "counter",
    "Requests that the TTFT objective covers: those that had a first token, and requests for "
    "generation that failed "
    "(5xx) or were cut off before it.",
    _PROCESS,
    "flexnpu.slo.ttft.requests",
    "{request}",
)
SLO_GOOD: Final = Metric(
    "flexnpu_ttft_slo_good_requests_total",
    "counter",
    "Covered requests whose first token came within flexnpu_ttft_slo_threshold_seconds.",
    _PROCESS,
    "flexnpu.slo.ttft.good_requests",
    "{request}",
)

# From steps.

STEPS: Final = Metric(
    "flexnpu_steps_total",
    "counter",
    "Model steps (forward passes), and other runs of launches.",
    (*_PROCESS, "phase"),
    "flexnpu.steps",
    "{step}",
)
STEP_TOKENS: Final = Metric(
    "flexnpu_step_tokens_total",
    "counter",
    "Tokens processed by steps over all their sequences, padding included; steps of unknown size are "
    "left out.",
    (*_PROCESS, "phase"),
    "flexnpu.step.tokens",
    "{token}",
)
STEPS_UNSIZED: Final = Metric(
    "flexnpu_steps_unsized_total",
    "counter",
    "Steps whose token count nothing showed.",
    (*_PROCESS, "phase"),
    "flexnpu.steps.unsized",
    "{step}",
)
LAUNCHES: Final = Metric(
    "flexnpu_launches_total",
    "counter",
    "Launches seen in steps. kind: operator, only in steps for which the tracer probed every launch; or "
    "graph (one for a whole captured graph).",
    (*_PROCESS, "phase", "kind"),
    "flexnpu.launches",
    "{launch}",
)
COUNTED_STEPS: Final = Metric(
    "flexnpu_counted_steps_total",
    "counter",
    "Steps for which the tracer probed every launch: what the operators in flexnpu_launches_total belong to.",
    (*_PROCESS, "phase"),
    "flexnpu.steps.counted",
    "{step}",
)
STEP_DURATION: Final = Metric(
    "flexnpu_step_duration_seconds",
    "histogram",
    "Step time: from a step's first call to the return of the synchronise that ended it.",
    (*_PROCESS, "phase"),
    "flexnpu.step.duration",
    "s",
    _STEP_BUCKETS,
)
DECODE_STEP: Final = Metric(
    "flexnpu_decode_step_duration_seconds",
    "histogram",
    "Decode step time, apart for steps during which a prefill or mixed step ran on another lane of "
    "the same device "
    "(collectors/interference.py) and steps without.",
    (*_PROCESS, "prefill_in_flight"),
    "flexnpu.decode_step.duration",
    "s",
    _STEP_BUCKETS,
)
LATE_PREFILLS: Final = Metric(
    "flexnpu_interference_late_prefills_total",
    "counter",
    "Prefill steps that became known after decode steps beside them had been counted as undisturbed.",
    (),
    "flexnpu.interference.late_prefills",
    "{step}",
)

# From the host's scheduler, by the tracer.

_SCOPE_HELP: Final = "scope: launcher (the threads that launch) or process (all threads)."
HOST_RUNQUEUE: Final = Metric(
    "flexnpu_host_runqueue_wait_seconds_total",
    "counter",
    f"Time for which threads were runnable and had no CPU. Long waits of launchers make steps longer "
    f"as a slow NPU would. {_SCOPE_HELP}",
    (*_PROCESS, "scope"),
    "flexnpu.host.runqueue_wait",
    "s",
)
HOST_CPU: Final = Metric(
    "flexnpu_host_cpu_seconds_total",
    "counter",
    f"Time for which threads ran on a CPU. {_SCOPE_HELP}",
    (*_PROCESS, "scope"),
    "flexnpu.host.cpu",
    "s",
)
HOST_IO: Final = Metric(
    "flexnpu_host_io_wait_seconds_total",
    "counter",
    "Time for which threads waited. kind: blkio (block devices) or swapin (pages from swap). Absent while "
    f"the kernel does not count it (sysctl kernel.task_delayacct). {_SCOPE_HELP}",
    (*_PROCESS, "scope", "kind"),
    "flexnpu.host.io_wait",
    "s",
)

# From the engines' own metrics, by the tracer.

_ENGINE: Final = ("url", "engine")
ENGINE_UP: Final = Metric(
    "flexnpu_engine_up",
    "gauge",
    "Whether the engine's own metrics could be read: 1 or 0.",
    ("url",),
    "flexnpu.engine.up",
)
ENGINE_RUNNING: Final = Metric(
    "flexnpu_engine_running_requests",
    "gauge",
    "Requests in the engine's running batch, as it says.",
    _ENGINE,
    "flexnpu.engine.running",
    "{request}",
)
ENGINE_WAITING: Final = Metric(
    "flexnpu_engine_waiting_requests",
    "gauge",
    "Requests that wait for the engine's scheduler, as it says.",
    _ENGINE,
    "flexnpu.engine.waiting",
    "{request}",
)
ENGINE_KV: Final = Metric(
    "flexnpu_engine_kv_usage_ratio",
    "gauge",
    "Share of the engine's KV cache that is in use, as it says; the fullest of its caches.",
    _ENGINE,
    "flexnpu.engine.kv_usage",
)
ENGINE_PROMPT_TOKENS: Final = Metric(
    "flexnpu_engine_prompt_tokens_total",
    "counter",
    "Prompt tokens that the engine processed, as it says.",
    _ENGINE,
    "flexnpu.engine.prompt_tokens",
    "{token}",
)
ENGINE_TOKENS: Final = Metric(
    "flexnpu_engine_generation_tokens_total",
    "counter",
    "Tokens that the engine generated, as it says.",
    _ENGINE,
    "flexnpu.engine.generation_tokens",
    "{token}",
)
ENGINE_PREEMPTIONS: Final = Metric(
    "flexnpu_engine_preemptions_total",
    "counter",
    "Requests that the engine preempted for want of KV cache, as it says.",
    _ENGINE,
    "flexnpu.engine.preemptions",
    "{request}",
)

# From the tracer.

FEED_CONNECTED: Final = Metric(
    "flexnpu_feed_connected",
    "gauge",
    "Whether the tracer's feed is being read: 1 or 0. At 0 nothing above is measured.",
    (),
    "flexnpu.feed.connected",
)
LOST_EVENTS: Final = Metric(
    "flexnpu_lost_events_total",
    "counter",
    "What the tracer could not deliver, decide or read, since it started. source: steps, wire or "
    "feed; kind: see "
    "probes/steps/tracer.py, probes/requests/wire.py and probes/feed/socket.py.",
    ("source", "kind"),
    "flexnpu.lost.events",
    "{event}",
)
LOST_BYTES: Final = Metric(
    "flexnpu_lost_bytes_total",
    "counter",
    "Bytes of traffic that the wire tracer did not copy; those beyond its copy limit are no loss of timing.",
    ("source", "kind"),
    "flexnpu.lost.bytes",
    "By",
)
TRACER_RECORDS: Final = Metric(
    "flexnpu_tracer_records_total",
    "counter",
    "Records that the tracer's kernel part sent, and those received from it: the other half of "
    "flexnpu_lost_events_total.",
    ("source", "kind"),
    "flexnpu.tracer.records",
    "{record}",
)
SLO_THRESHOLD: Final = Metric(
    "flexnpu_ttft_slo_threshold_seconds",
    "gauge",
    "The TTFT that a good request keeps.",
    (),
    "flexnpu.slo.ttft.threshold",
    "s",
)
SLO_OBJECTIVE: Final = Metric(
    "flexnpu_ttft_slo_objective_ratio",
    "gauge",
    "The share of covered requests that shall be good.",
    (),
    "flexnpu.slo.ttft.objective",
)

# From daemons.

DAEMON_UP: Final = Metric(
    "flexnpu_daemon_up",
    "gauge",
    "Whether the daemon of the device answers on its control socket: 1 or 0.",
    ("device",),
    "flexnpu.daemon.up",
)
DEVICE_INFO: Final = Metric(
    "flexnpu_device_info",
    "gauge",
    "1, with the device's chip and the daemon's version.",
    ("device", "soc", "version"),
    "flexnpu.device.info",
)
DEVICE_BUSY: Final = Metric(
    "flexnpu_device_busy_seconds_total",
    "counter",
    "Time for which the device ran operators.",
    ("device",),
    "flexnpu.device.busy",
    "s",
)
GATE_POLICY: Final = Metric(
    "flexnpu_gate_policy_info",
    "gauge",
    "1 for the policy in force.",
    ("device", "policy"),
    "flexnpu.gate.policy",
)
GATE_WINDOW: Final = Metric(
    "flexnpu_gate_window_seconds",
    "gauge",
    "Prefill work that may be in flight while decode is amid a step. Absent while the gate is transparent.",
    ("device",),
    "flexnpu.gate.window",
    "s",
)
GATE_TARGET: Final = Metric(
    "flexnpu_gate_decode_target_seconds",
    "gauge",
    "Step target given to decode lanes. Absent when none was given.",
    ("device",),
    "flexnpu.gate.decode_target",
    "s",
)
GATE_SLOWDOWN: Final = Metric(
    "flexnpu_gate_overlap_slowdown_ratio",
    "gauge",
    "Decode slowdown for prefill work beside it, set or learned. Absent while the gate is transparent.",
    ("device",),
    "flexnpu.gate.overlap_slowdown",
)
GATE_LEASE: Final = Metric(
    "flexnpu_gate_lease_seconds",
    "gauge",
    "What is left of the controller's lease. Absent while the gate is transparent.",
    ("device",),
    "flexnpu.gate.lease",
    "s",
)
GATE_EXPIRED: Final = Metric(
    "flexnpu_gate_expired_leases_total",
    "counter",
    "Leases that ran out because the controller fell silent.",
    ("device",),
    "flexnpu.gate.expired_leases",
    "{lease}",
)
LANE_PHASE: Final = Metric(
    "flexnpu_lane_phase_info",
    "gauge",
    "1 for the phase that the gate takes the lane to be in.",
    (*_LANE, "phase"),
    "flexnpu.lane.phase",
)
LANE_QUEUED: Final = Metric(
    "flexnpu_lane_queue_operators",
    "gauge",
    "Operators of the lane that wait to be dispatched.",
    _LANE,
    "flexnpu.lane.queue",
    "{operator}",
)
LANE_IN_FLIGHT: Final = Metric(
    "flexnpu_lane_in_flight_operators",
    "gauge",
    "Operators of the lane that were dispatched and are not known to be complete.",
    _LANE,
    "flexnpu.lane.in_flight",
    "{operator}",
)
LANE_IN_FLIGHT_TIME: Final = Metric(
    "flexnpu_lane_in_flight_seconds",
    "gauge",
    "Estimated device time of the lane's operators in flight.",
    _LANE,
    "flexnpu.lane.in_flight_time",
    "s",
)
LANE_LAUNCHED: Final = Metric(
    "flexnpu_lane_operators_total",
    "counter",
    "Operators of the lane that were dispatched.",
    _LANE,
    "flexnpu.lane.operators",
    "{operator}",
)
LANE_DEVICE_TIME: Final = Metric(
    "flexnpu_lane_device_seconds_total",
    "counter",
    "Device time of the lane's operators: measured where it was, else estimated.",
    _LANE,
    "flexnpu.lane.device_time",
    "s",
)
LANE_GATED: Final = Metric(
    "flexnpu_lane_gated_seconds_total",
    "counter",
    "Time for which the gate held the lane's next operator.",
    _LANE,
    "flexnpu.lane.gated",
    "s",
)
SESSION_MEMORY: Final = Metric(
    "flexnpu_session_memory_bytes",
    "gauge",
    "Device memory that the client process holds.",
    ("device", "session", "pid", "comm"),
    "flexnpu.session.memory",
    "By",
)
SESSION_CALLS: Final = Metric(
    "flexnpu_session_calls_total",
    "counter",
    "Calls that the client process has made through its rings.",
    ("device", "session", "pid", "comm"),
    "flexnpu.session.calls",
    "{call}",
)
SESSION_REFUSED: Final = Metric(
    "flexnpu_session_refused_calls_total",
    "counter",
    "Calls refused for a stale or forged handle, a foreign address or a malformed message.",
    ("device", "session", "pid", "comm"),
    "flexnpu.session.refused_calls",
    "{call}",
)
SESSION_RING_FULL: Final = Metric(
    "flexnpu_session_ring_full_total",
    "counter",
    "Times that a thread of the client had to wait for room in its ring.",
    ("device", "session", "pid", "comm"),
    "flexnpu.session.ring_full",
    "{wait}",
)
DAEMON_COUNTER: Final = Metric(
    "flexnpu_daemon_events_total",
    "counter",
    "What else the daemon's data plane counts, by its own name.",
    ("device", "kind"),
    "flexnpu.daemon.events",
    "{event}",
)

METRICS: Final[tuple[Metric, ...]] = tuple(
    value for value in list(globals().values()) if isinstance(value, Metric)
)
EVENT_METRICS: Final = (
    *(TTFT, SECOND_TOKEN, TOKEN_INTERVAL, TPOT, REQUEST_DURATION, REQUESTS, SLO_REQUESTS, SLO_GOOD),
    *(STEPS, STEP_TOKENS, STEPS_UNSIZED, LAUNCHES, COUNTED_STEPS, STEP_DURATION, DECODE_STEP, LATE_PREFILLS),
    *(HOST_RUNQUEUE, HOST_CPU, HOST_IO),
    *(TTFT_PART, UNJOINED, READ_DELAY, SEND_DELAY),
)
"""Fed event by event; the others are read off at the time of a scrape."""
