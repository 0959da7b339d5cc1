"""From the probes' events to measurements.

`Aggregator.take` is given every event and `advance` the time; both feed the sinks. What each metric means
is said in `metrics`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from itertools import pairwise
from typing import Final

from collectors import metrics
from collectors.interference import Interference
from collectors.metrics.metric import Metric
from collectors.objective import GENERATION, Objective
from collectors.processes import KEEP_NS, Processes
from collectors.sinks import Labels, Sample, Sink
from probes.feed.events import (
    DELIVERED,
    EngineMetrics,
    Event,
    HostDelay,
    Losses,
    OpenRequests,
    ProcessState,
    RequestTiming,
    Step,
    StepBegin,
    is_loss,
)
from probes.requests.parts import PARTS

FORGET_NS: Final = KEEP_NS
"""State of a process without events is dropped after this time, at the latest after twice of it."""
_SEEN_FROM_0: Final = (("200", "true"), ("500", "true"), ("none", "false"))
"""Values of ``code`` and ``complete`` of which there are series before any request."""
_STATUS: Final = frozenset(map(int, HTTPStatus))

# The ends of paths, by the operation of the conventions (gen_ai.operation.name).
_OPERATIONS: Final = {
    "chat": ("/chat/completions", "/messages", "/api/chat", "/responses"),
    "text_completion": ("/completions", "/completion", "/generate", "/generate_stream"),
    "embeddings": ("/embeddings", "/embed"),
}


def operation(path: str) -> str:
    """``gen_ai.operation.name`` of a request path; ``other`` when it is not known."""
    for name, ends in _OPERATIONS.items():
        if path.endswith(ends):
            return name
    return "other"


def _code(status: int | None) -> str:
    """The label of a status: a server may answer with any three digits."""
    if status is None:
        return "none"
    return str(status) if status in _STATUS else f"{status // 100}xx"


def ttft_parts(request: RequestTiming) -> list[tuple[str, float]]:
    """(part of `metrics.requests.TTFT_PART`, us), in the order of a request's way; those that are known."""
    if request.parts_us is not None:
        return [(part, request.parts_us[part]) for part in PARTS if part in request.parts_us]
    parts = (
        ("queue", request.queue_us),
        ("compute", request.prefill_us),
        ("gate", request.gated_us),
        ("send", request.send_us),
    )
    return [(part, us) for part, us in parts if us is not None]


def _engine_samples(engine: EngineMetrics) -> list[Sample]:
    labels = (engine.url, engine.engine)
    values = (
        (metrics.engine.RUNNING, engine.running),
        (metrics.engine.WAITING, engine.waiting),
        (metrics.engine.KV_USAGE, engine.kv_usage),
        (metrics.engine.PROMPT_TOKENS, engine.prompt_tokens),
        (metrics.engine.GENERATION_TOKENS, engine.generation_tokens),
        (metrics.engine.PREEMPTIONS, engine.preemptions),
    )
    known = [Sample(metric, labels, value) for metric, value in values if value is not None]
    return [Sample(metrics.engine.UP, (engine.url,), 1.0 if engine.error is None else 0.0), *known]


class Aggregator:
    """Feeds `sinks`.

    `ttft_slo_s` is the TTFT that a good request keeps, `ttft_objective` the share that shall; `device_of`
    gives the device of a process, None when it is not known.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        *,
        ttft_slo_s: float,
        ttft_objective: float,
        settle_ns: int = 10**9,
        device_of: Callable[[int], int | None] = lambda pid: None,
    ) -> None:
        self._sinks = sinks
        self._constants = (
            Sample(metrics.collector.SLO_THRESHOLD, (), ttft_slo_s),
            Sample(metrics.collector.SLO_OBJECTIVE, (), ttft_objective),
        )
        self._interference = Interference(self._decided, settle_ns=settle_ns, device_of=device_of)
        self._objective = Objective(self._add, round(ttft_slo_s * 1e9))
        self._processes = Processes(self._sight)
        self._forget_at_ns = 0
        self._now_ns = 0
        self._heard_ns = 0
        self._late = 0
        self._lock = threading.Lock()
        self._losses: dict[tuple[str, str], int] = {}
        self._engines: dict[str, EngineMetrics] = {}
        self.connected = False

    def take(self, event: Event) -> None:
        """Measure one event. Events come in the order of the feed."""
        self._heard_ns = self._now_ns
        match event:
            case Step():
                self._step(event)
            case StepBegin():
                self._interference.begin(event)
            case RequestTiming():
                self._request(event)
            case OpenRequests():
                self._processes.take_open(event)
                self._objective.open(event, self._processes.labels(event.pid, event.comm))
            case ProcessState():
                self._processes.take(event)
            case HostDelay():
                self._host(event)
            case EngineMetrics():
                with self._lock:
                    self._engines[event.url] = event
            case Losses():
                with self._lock:
                    self._losses |= {(event.source, kind): n for kind, n in event.counts.items()}

    def advance(self, now_ns: int) -> None:
        """Let settle what settles at `now_ns`, CLOCK_MONOTONIC."""
        self._now_ns = now_ns
        self._processes.advance(now_ns)
        self._interference.advance(now_ns)
        if now_ns >= self._forget_at_ns:
            self._forget_at_ns = now_ns + FORGET_NS
            self._processes.forget()
            self._objective.forget(now_ns)
        if self._interference.late > self._late:
            self._add(metrics.steps.LATE_PREFILLS, (), self._interference.late - self._late)
            self._late = self._interference.late

    def connect(self, now_ns: int) -> None:
        """There is a feed, since `now_ns`, CLOCK_MONOTONIC."""
        self._now_ns = self._heard_ns = now_ns
        self.connected = True

    def finish(self) -> None:
        """Decide what is undecided: nothing will come any more."""
        self._interference.flush()

    def disconnected(self) -> None:
        """The feed has ended: the next tracer counts from zero."""
        self.finish()
        self._processes.clear()
        self._objective.clear()
        with self._lock:
            self._losses = {}
            self._engines = {}
        self.connected = False

    def snapshot(self) -> list[Sample]:
        """What is read off: losses, the objective, processes, whether the feed is there. From any thread."""
        samples = [*self._constants, Sample(metrics.collector.FEED_CONNECTED, (), float(self.connected))]
        if self.connected:
            silence_s = max(0, self._now_ns - self._heard_ns) / 1e9
            samples.append(Sample(metrics.collector.TRACER_SILENCE, (), silence_s))
        samples += self._processes.samples()
        with self._lock:
            losses, engines = dict(self._losses), list(self._engines.values())
        for (source, kind), count in losses.items():
            if kind in DELIVERED:
                metric = metrics.tracer.RECORDS
            elif is_loss(kind):
                metric = metrics.tracer.LOST_BYTES if kind.endswith("_bytes") else metrics.tracer.LOST_EVENTS
            else:
                continue
            samples.append(Sample(metric, (source, kind), float(count)))
        for engine in engines:
            samples += _engine_samples(engine)
        return samples

    def _add(self, metric: Metric, labels: Labels, amount: float = 1.0) -> None:
        for sink in self._sinks:
            sink.add(metric, labels, amount)

    def _observe(self, metric: Metric, labels: Labels, value: float) -> None:
        for sink in self._sinks:
            sink.observe(metric, labels, value)

    def _sight(self, process: Labels) -> None:
        """A service or process is there: what a rate is asked of is made at 0, before any traffic."""
        self._objective.sight(process)
        for operation in GENERATION:
            for seen in _SEEN_FROM_0:
                self._add(metrics.requests.REQUESTS, (*process, operation, *seen), 0.0)

    def _step(self, step: Step) -> None:
        labels = (*self._processes.labels(step.pid, step.comm), step.phase)
        self._add(metrics.steps.STEPS, labels)
        if step.tokens is None:
            self._add(metrics.steps.UNSIZED, labels)
        else:
            self._add(metrics.steps.TOKENS, labels, step.tokens)
        if step.launches is not None:
            self._add(metrics.steps.COUNTED, labels, 1)
            self._add(metrics.steps.LAUNCHES, (*labels, "operator"), step.launches)
        if step.graph_launches:
            self._add(metrics.steps.LAUNCHES, (*labels, "graph"), step.graph_launches)
        self._observe(metrics.steps.DURATION, labels, (step.t_end_ns - step.t_start_ns) / 1e9)
        self._interference.step(step)
        for sink in self._sinks:
            sink.step(step)

    def _host(self, delay: HostDelay) -> None:
        find = self._processes.labels if delay.tid is None else self._processes.labels_of_thread
        labels = (*find(delay.pid, delay.comm), "process" if delay.tid is None else "launcher")
        self._add(metrics.host.RUNQUEUE, labels, delay.runqueue_us / 1e6)
        self._add(metrics.host.CPU, labels, delay.cpu_us / 1e6)
        for kind, waited in (("blkio", delay.blkio_us), ("swapin", delay.swapin_us)):
            if waited is not None:
                self._add(metrics.host.IO, (*labels, kind), waited / 1e6)

    def _decided(self, step: Step, disturbed: bool) -> None:
        labels = (*self._processes.labels(step.pid, step.comm), "true" if disturbed else "false")
        self._observe(metrics.steps.DECODE_DURATION, labels, (step.t_end_ns - step.t_start_ns) / 1e9)

    def _request(self, request: RequestTiming) -> None:
        process = self._processes.labels(request.pid, request.comm)
        kind = operation(request.path)
        labels = (*process, kind)
        for sink in self._sinks:
            sink.request(request)
        if request.caller_pid is not None:
            self._add(metrics.requests.INNER, (*labels, request.role or "both"))
            if process[0] and process == self._processes.labels_of_thread(request.caller_pid, ""):
                return
        whole = "true" if request.complete else "false"
        self._add(metrics.requests.REQUESTS, (*labels, _code(request.status), whole))
        self._objective.ended(request, kind, process)
        if request.t_first_ns is not None:
            self._observe(metrics.requests.TTFT, labels, (request.t_first_ns - request.t_arrival_ns) / 1e9)
        if request.t_first_ns is not None or request.join_confidence is not None:
            self._parts(request, labels)
        if request.complete:
            self._whole(request, labels)

    def _parts(self, request: RequestTiming, labels: Labels) -> None:
        for part, us in ttft_parts(request):
            self._observe(metrics.requests.TTFT_PART, (*labels, part), us / 1e6)
        if request.join_confidence is None and request.parts_us is None:
            self._add(metrics.requests.UNJOINED, labels)
        if request.t_read_ns is not None:
            self._observe(
                metrics.requests.READ_DELAY, labels, (request.t_read_ns - request.t_arrival_ns) / 1e9
            )
        if request.t_write_ns is not None and request.t_first_ns is not None:
            self._observe(
                metrics.requests.SEND_DELAY, labels, (request.t_first_ns - request.t_write_ns) / 1e9
            )

    def _whole(self, request: RequestTiming, labels: Labels) -> None:
        chunks = request.chunk_ns
        for before, after in pairwise(chunks):
            self._observe(metrics.requests.TOKEN_INTERVAL, labels, (after - before) / 1e9)
        if len(chunks) >= 2:
            self._observe(metrics.requests.SECOND_TOKEN, labels, (chunks[1] - request.t_arrival_ns) / 1e9)
            tokens = request.tokens or len(chunks)
            if tokens >= 2:
                self._observe(metrics.requests.TPOT, labels, (chunks[-1] - chunks[0]) / (tokens - 1) / 1e9)
        if chunks and request.t_end_ns is not None:
            self._observe(metrics.requests.DURATION, labels, (request.t_end_ns - request.t_arrival_ns) / 1e9)
