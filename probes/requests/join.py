"""Joins each streamed request to the steps that served it, which splits its time to first token.

    joiner = Joiner(publish)
    joiner.step(step)          # every step of the tracer
    joiner.request(timing)     # every request of the wire tracer
    joiner.advance(now_ns)     # a few times a second; publishes what is ready

The step that made the first token belongs to the server's process or its family (`probes.host.families`). It
is the latest prefill or mixed step that started after the request's arrival and ended before the first
content was written. Where none ended by then, it is the first that had started, up to the write, half as
sure. With chunked prefill a request has several such steps. Those before it on the same lane belong to the
request too, back to the last step that made the first token of a request which came earlier. When the
response tells the prompt's length (``usage``), they go back no further than to where the steps' tokens reach
it.

TTFT then is the sum of four times, exact to the nanosecond:

    send      from the end of the step that made the first token to the moment the chunk left
    prefill   time of the request's own steps, less
    gate      time for which FlexNPU's gate held the lane during them; None when the target has no gate
    queue     the rest: from the arrival to the first own step, and between own steps

`join_confidence` is the product of how surely the processes belong together, how sure the step's phase is,
and 1 / (1 + n / 2), n being the other requests that were waiting for their first token while the step ran:
it may have been theirs, unless the tokens of the request's steps are exactly those of its prompt. A single
step with exactly those tokens is preferred to a later one. The figure orders the joins; it is no probability.
A request whose step was not seen has neither times nor confidence.

Two kinds of requests differ. One that asks for one token in one piece (an instance that does the prefill gets
such) has no stream: its answer is its first token. One whose prompt was computed by another server has a
decode step first: it is the last step that ended before the first content was written. Steps of children of
one launcher are taken only where the server has no lane nearer, and never for one that asks others: a proxy
that was started beside its servers has no steps.

A step becomes known when the next one begins on its lane, or after a quarter of a second of silence. So a
request waits until all lanes of its server have shown a later step, at most `SETTLE_NS` after its end.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Final

from probes.feed.events import RequestTiming, Step
from probes.host.families import ProcessFamilies

SETTLE_NS: Final = 600_000_000
MAX_STEPS: Final = 16_384
"""Steps kept of one lane."""
MAX_LANES: Final = 256
MAX_WAITING: Final = 4096
"""Requests that wait; beyond that the oldest is published as it is."""
KIN_NS: Final = 10_000_000_000
"""How long it is taken for granted which processes belong together."""
LANE_NS: Final = 600_000_000_000
"""A lane without a step for so long is forgotten."""
KEEP_NS: Final = 60_000_000_000
"""How long a finished request is kept to tell which steps were others'."""

_PREFILL: Final = ("prefill", "mixed")


@dataclass(frozen=True, slots=True)
class _Step:
    start: int
    end: int
    prefill: bool
    tokens: int | None
    gated_ns: int | None
    confidence: float


@dataclass(frozen=True, slots=True)
class Other:
    """A request as others see it: when it arrived and when its first token was written, if it was."""

    pid: int
    arrival: int
    write: int | None


@dataclass(slots=True)
class _Lane:
    pid: int
    steps: deque[_Step]
    latest: int = 0
    """Start of the latest step."""


class Joiner:
    """Publishes requests with what their steps say. Not thread-safe.

    `open_requests` gives the requests that are running now, for who competes with whom.
    """

    def __init__(
        self,
        publish: Callable[[RequestTiming], None],
        *,
        families: ProcessFamilies | None = None,
        open_requests: Callable[[], list[Other]] = list,
        settle_ns: int = SETTLE_NS,
    ) -> None:
        self._publish = publish
        self._families = families or ProcessFamilies()
        self._open_requests = open_requests
        self._settle_ns = settle_ns
        self._lanes: dict[tuple[int, int], _Lane] = {}
        self._waiting: deque[RequestTiming] = deque()
        self._past: deque[Other] = deque()
        self._close: dict[tuple[int, int], float] = {}
        self._callers: dict[int, int] = {}
        """Servers that ask others, and when one of their requests last arrived there."""
        self._forget_at = 0

    def step(self, step: Step) -> None:
        """Take note of a step. Steps of phase ``other`` are none of a model's."""
        if step.phase == "other":
            return
        key = (step.pid, step.stream)
        lane = self._lanes.get(key)
        if lane is None:
            if len(self._lanes) >= MAX_LANES:
                del self._lanes[min(self._lanes, key=lambda one: self._lanes[one].latest)]
            lane = self._lanes[key] = _Lane(step.pid, deque(maxlen=MAX_STEPS))
        lane.latest = max(lane.latest, step.t_start_ns)
        gated = None if step.gated_us is None else round(step.gated_us * 1000)
        lane.steps.append(
            _Step(
                step.t_start_ns,
                step.t_end_ns,
                step.phase in _PREFILL,
                step.tokens,
                gated,
                step.confidence,
            )
        )

    def request(self, timing: RequestTiming) -> None:
        """Take a request that has ended; it is published, with or without steps, by `advance`."""
        if timing.caller_pid is not None:
            self._callers[timing.caller_pid] = timing.t_arrival_ns
        if _token_ns(timing) is None:
            self._publish(timing)
            return
        self._past.append(Other(timing.pid, timing.t_arrival_ns, _written(timing)))
        self._waiting.append(timing)
        if len(self._waiting) > MAX_WAITING:
            self._publish(self._joined(self._waiting.popleft()))

    def advance(self, now_ns: int) -> None:
        """Publish the requests that are ready at `now_ns`, CLOCK_MONOTONIC: all steps up to then that are
        known have been given to `step`."""
        if now_ns >= self._forget_at:
            self._forget_at = now_ns + KIN_NS
            self._close.clear()
            silent = [key for key, lane in self._lanes.items() if now_ns - lane.latest > LANE_NS]
            for key in silent:
                del self._lanes[key]
            self._callers = {pid: at for pid, at in self._callers.items() if now_ns - at <= LANE_NS}
        while self._waiting and self._ready(self._waiting[0], now_ns):
            self._publish(self._joined(self._waiting.popleft()))
        while self._past and now_ns - self._past[0].arrival > KEEP_NS and not self._waiting:
            self._past.popleft()
        while len(self._past) > 2 * MAX_WAITING:
            self._past.popleft()

    def flush(self) -> None:
        """Publish everything that waits: no more steps will come."""
        while self._waiting:
            self._publish(self._joined(self._waiting.popleft()))

    def _closeness(self, front: int, engine: int) -> float:
        key = (front, engine)
        if key not in self._close:
            self._close[key] = self._families.closeness(front, engine)
        return self._close[key]

    def _ready(self, timing: RequestTiming, now_ns: int) -> bool:
        end = timing.t_end_ns or max(timing.chunk_ns, default=_written(timing))
        if now_ns >= end + self._settle_ns:
            return True
        lanes = self._near(timing.pid)
        return bool(lanes) and all(lane.latest >= _written(timing) for lane, _ in lanes)

    def _near(self, front: int) -> list[tuple[_Lane, float]]:
        """The lanes that may serve a process, each with how surely."""
        found = [(lane, self._closeness(front, lane.pid)) for lane in self._lanes.values()]
        nearest = max((close for _, close in found), default=0.0)
        if nearest < 1 and front in self._callers:
            return []
        return [(lane, close) for lane, close in found if close and close == nearest]

    def _joined(self, timing: RequestTiming) -> RequestTiming:
        best: tuple[_Step, float, list[_Step], _Lane] | None = None
        write = _written(timing)
        for lane, close in self._near(timing.pid):
            if lane.latest < timing.t_arrival_ns:
                continue
            steps = [step for step in _since(lane, timing.t_arrival_ns) if step.start < write]
            run = [step for step in steps if step.prefill]
            own = [step for step in run if step.end <= write]
            if timing.role == "decode" or (timing.caller_pid is not None and not run):
                run, own = [], [step for step in steps if step.end <= write][-1:]
            if run and not own:
                # The token was out before the synchronise that was taken for the step's end.
                own = [replace(run[0], end=write, confidence=run[0].confidence / 2)]
            exact = [at for at, step in enumerate(own) if step.tokens == timing.prompt_tokens]
            if timing.prompt_tokens and len(exact) == 1:
                own = own[: exact[0] + 1]
            if own and (best is None or (close, own[-1].end) > (best[1], best[0].end)):
                best = own[-1], close, own, lane
        if best is None:
            return timing
        return self._split(timing, *best)

    def _split(
        self, timing: RequestTiming, first: _Step, close: float, run: list[_Step], lane: _Lane
    ) -> RequestTiming:
        first_ns = _token_ns(timing)
        assert first_ns is not None
        everyone = [*self._past, *self._open_requests()]
        served = {
            pid
            for pid in {other.pid for other in everyone}
            if any(near is lane for near, _ in self._near(pid))
        }
        others = [
            other
            for other in everyone
            if other.pid in served and (other.pid, other.arrival) != (timing.pid, timing.t_arrival_ns)
        ]
        ends = [step.end for step in run]
        begin = 0
        for other in others:
            if other.write is not None and other.arrival <= timing.t_arrival_ns and other.write < first.start:
                # The step that made the other's first token, and what was before it.
                begin = max(begin, bisect_left(ends, other.write + 1))
        own = run[begin:] or [first]
        rivals = sum(
            other.arrival < first.end and (other.write is None or other.write > first.start)
            for other in others
        )
        if timing.prompt_tokens:
            own = _cover(own, timing.prompt_tokens)
            if sum(step.tokens or 0 for step in own) == timing.prompt_tokens:
                rivals = 0
        if not first.prefill:
            # A decode step makes a token of each of its sequences.
            own, rivals = [first], 0
        total = first_ns - timing.t_arrival_ns
        busy = sum(step.end - step.start for step in own)
        send = first_ns - first.end
        gates = [step.gated_ns for step in own if step.gated_ns is not None]
        gated = min(sum(gates), busy) if len(gates) == len(own) else None
        return replace(
            timing,
            queue_us=(total - busy - send) / 1e3,
            prefill_us=(busy - (gated or 0)) / 1e3,
            gated_us=None if gated is None else gated / 1e3,
            send_us=send / 1e3,
            tpot_gated_us=_decode_gate(timing, lane),
            first_step=first.start,
            first_step_pid=lane.pid,
            prefill_steps=len(own) if first.prefill else 0,
            join_confidence=round(close * first.confidence / (1 + rivals / 2), 4),
        )


def _since(lane: _Lane, start: int) -> list[_Step]:
    """The lane's steps that started at `start` or later, in order."""
    found = list(takewhile(lambda step: step.start >= start, reversed(lane.steps)))
    found.reverse()
    return found


def _token_ns(timing: RequestTiming) -> int | None:
    """When the first token left; None when none did, or it is not known when."""
    whole = timing.t_write_ns is not None and timing.t_first_ns is None
    return timing.t_answer_ns if whole else timing.t_first_ns


def _written(timing: RequestTiming) -> int:
    """When the server began to write the first token."""
    found = _token_ns(timing) if timing.t_write_ns is None else timing.t_write_ns
    assert found is not None
    return found


def _cover(run: list[_Step], prompt_tokens: int) -> list[_Step]:
    """The last steps of `run` whose tokens reach `prompt_tokens`; all of them when tokens are not known."""
    seen = 0
    for back, step in enumerate(reversed(run), 1):
        if step.tokens is None:
            return run
        seen += step.tokens
        if seen >= prompt_tokens:
            return run[-back:]
    return run


def _decode_gate(timing: RequestTiming, lane: _Lane) -> float | None:
    """Gate time an output token after the first, in us: of the steps between the first and the last chunk."""
    if len(timing.chunk_ns) < 2:
        return None
    gates = [step.gated_ns for step in _since(lane, _written(timing)) if step.end <= timing.chunk_ns[-1]]
    known = [gate for gate in gates if gate is not None]
    if not known or len(known) < len(gates):
        return None
    return sum(known) / 1e3 / (len(timing.chunk_ns) - 1)
