"""Which decode steps had a prefill beside them.

Method. A decode step is *disturbed* when a prefill or mixed step of another lane (process and stream) on
the same device was in flight at any moment of it, from the prefill's first call to the synchronise that
ended it, waits at the gate included. Steps of processes whose device is unknown count as of one device.

A prefill step becomes known when it begins (`StepBegin`) and again when it has ended, both a little late:
the tracer publishes a step when the next one begins on its lane, or after a quarter of a second of silence.
So a decode step is judged `settle_ns` after its end. A prefill that becomes known later than that is
counted in `late`. The end of a step may be lost; then the next sign of life on its lane ends it, or
`STALE_NS`.

No clock and no thread: the caller says what time it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from probes.feed.events import Step, StepBegin

STALE_NS: Final = 120 * 10**9
_KEEP_NS: Final = 30 * 10**9
_SLACK_NS: Final = 10**9
"""By how much steps may be known out of the order of their ends."""
_PREFILL: Final = ("prefill", "mixed")

Lane = tuple[int, int]


@dataclass(slots=True)
class _Span:
    lane: Lane
    start: int
    end: int


class Interference:
    """Calls ``on_decided(step, disturbed)`` for each decode step, in the order of their arrival."""

    def __init__(
        self,
        on_decided: Callable[[Step, bool], None],
        *,
        settle_ns: int = 10**9,
        device_of: Callable[[int], int | None] = lambda pid: None,
    ) -> None:
        self._on_decided = on_decided
        self._settle = settle_ns
        self._device_of = device_of
        self._waiting: deque[Step] = deque()
        self._open: dict[Lane, int] = {}
        self._ended: deque[_Span] = deque()
        self._judged: deque[_Span] = deque()
        """Undisturbed decode steps, kept to notice a prefill that comes too late."""
        self.late = 0

    def begin(self, event: StepBegin) -> None:
        """A step has begun; a prefill disturbs from now on."""
        lane = (event.pid, event.stream)
        self._close(lane, event.t_ns)
        if event.phase in _PREFILL:
            self._open[lane] = event.t_ns
            self._note_late(lane, event.t_ns, event.t_ns)

    def step(self, step: Step) -> None:
        """A step has ended. A decode step is decided on once it has settled (`advance`)."""
        lane = (step.pid, step.stream)
        known = self._open.pop(lane, None) if self._open.get(lane, step.t_end_ns) <= step.t_end_ns else None
        if step.phase in _PREFILL:
            self._ended.append(_Span(lane, step.t_start_ns, step.t_end_ns))
            if known is None:
                self._note_late(lane, step.t_start_ns, step.t_end_ns)
        elif step.phase == "decode":
            self._waiting.append(step)

    def advance(self, now_ns: int) -> None:
        """Judge the decode steps that have settled at `now_ns` (CLOCK_MONOTONIC)."""
        for lane, start in list(self._open.items()):
            if now_ns - start > STALE_NS:
                self._close(lane, now_ns)
        while self._waiting and self._waiting[0].t_end_ns + self._settle <= now_ns:
            self._judge(self._waiting.popleft())
        self._drop(self._ended, now_ns - _KEEP_NS)
        self._drop(self._judged, now_ns - _KEEP_NS)

    def flush(self) -> None:
        """Judge all that wait, settled or not: the feed has ended."""
        while self._waiting:
            self._judge(self._waiting.popleft())

    def _judge(self, step: Step) -> None:
        lane, start, end = (step.pid, step.stream), step.t_start_ns, step.t_end_ns
        opened = any(began < end and self._beside(lane, other) for other, began in self._open.items())
        disturbed = opened or self._overlaps(self._ended, lane, start, end)
        if not disturbed:
            self._judged.append(_Span(lane, start, end))
        self._on_decided(step, disturbed)

    def _overlaps(self, spans: deque[_Span], lane: Lane, start: int, end: int) -> bool:
        """Whether one of `spans`, roughly in the order of their ends, overlaps from another lane."""
        for span in reversed(spans):
            if span.end + _SLACK_NS < start:
                return False
            if span.start < end and span.end > start and self._beside(lane, span.lane):
                return True
        return False

    def _beside(self, lane: Lane, other: Lane) -> bool:
        if lane == other:
            return False
        a, b = self._device_of(lane[0]), self._device_of(other[0])
        return a is None or b is None or a == b

    def _note_late(self, lane: Lane, start: int, end: int) -> None:
        self.late += self._overlaps(self._judged, lane, start, max(end, start + 1))

    def _close(self, lane: Lane, at: int) -> None:
        start = self._open.pop(lane, None)
        if start is not None and at > start:
            self._ended.append(_Span(lane, start, at))

    @staticmethod
    def _drop(spans: deque[_Span], before: int) -> None:
        while spans and spans[0].end < before:
            spans.popleft()
