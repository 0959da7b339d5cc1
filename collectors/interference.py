"""Which decode steps had a prefill beside them.

Method. A decode step is *disturbed* when a prefill or mixed step of another lane (process and stream) on
the same device was in flight at any moment of it, from the prefill's first call to the synchronise that
ended it, waits at the gate included. Steps of processes whose device is unknown count as of one device.

A prefill step becomes known when it begins (`StepBegin`) and again when it has ended, both a little late:
the tracer publishes a step when the next one begins on its lane, or after a quarter of a second of silence.
So a decode step is judged `settle_ns` after its end. A prefill that becomes known later than that is
counted in `late`. The end of a step may be lost; then the next sign of life on its lane ends it, or
`STALE_NS`.

A step costs a binary search and the few spans around it, whatever the number of lanes.

No clock and no thread: the caller says what time it is.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from probes.feed.events import Step, StepBegin

STALE_NS: Final = 120 * 10**9
_KEEP_NS: Final = 30 * 10**9
_SWEEP_NS: Final = 10**9
"""Between looks for what is stale."""
_PREFILL: Final = ("prefill", "mixed")

Lane = tuple[int, int]


@dataclass(slots=True)
class _Span:
    lane: Lane
    start: int
    end: int


def _end(span: _Span) -> int:
    return span.end


class _Spans:
    """Spans in the order of their ends."""

    def __init__(self) -> None:
        self._spans: list[_Span] = []
        self._longest = 0

    def add(self, span: _Span) -> None:
        self._longest = max(self._longest, span.end - span.start)
        insort(self._spans, span, key=_end)

    def overlapping(self, start: int, end: int) -> Iterator[_Span]:
        """Those that overlap, in the order of their ends."""
        for i in range(bisect_right(self._spans, start, key=_end), len(self._spans)):
            span = self._spans[i]
            if span.end >= end + self._longest:
                return  # it began at `end` or later, and so did all that follow
            if span.start < end:
                yield span

    def drop(self, before: int) -> None:
        """Forget what ended before `before`."""
        del self._spans[: bisect_left(self._spans, before, key=_end)]
        self._longest = max((span.end - span.start for span in self._spans), default=0)


class _Open:
    """Prefills that run, by the device that their process had when they began."""

    def __init__(self) -> None:
        self._by_lane: dict[Lane, tuple[int, int | None]] = {}
        self._by_device: dict[int | None, list[tuple[int, Lane]]] = {}

    def __len__(self) -> int:
        return len(self._by_lane)

    def began(self, lane: Lane) -> int | None:
        known = self._by_lane.get(lane)
        return None if known is None else known[0]

    def add(self, lane: Lane, start: int, device: int | None) -> None:
        self.pop(lane)
        self._by_lane[lane] = (start, device)
        insort(self._by_device.setdefault(device, []), (start, lane))

    def pop(self, lane: Lane) -> int | None:
        """When it began; None when it was not open."""
        known = self._by_lane.pop(lane, None)
        if known is None:
            return None
        start, device = known
        found = self._by_device[device]
        del found[bisect_left(found, (start, lane))]
        if not found:
            del self._by_device[device]
        return start

    def beside(self, lane: Lane, device: int | None, end: int) -> bool:
        """Whether another lane's on the same device began before `end`."""
        devices = self._by_device if device is None else (device, None)
        for one in devices:
            first = self._by_device.get(one, ())[:2]
            if any(start < end and other != lane for start, other in first):
                return True
        return False

    def before(self, start: int) -> list[Lane]:
        """Lanes whose prefill began before `start`."""
        return [lane for lane, (began, _) in self._by_lane.items() if began < start]


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
        self._sweep_at_ns = 0
        self._open = _Open()
        self._ended = _Spans()
        self._judged = _Spans()
        """Undisturbed decode steps, kept to notice a prefill that comes too late."""
        self.late = 0

    def begin(self, event: StepBegin) -> None:
        """A step has begun; a prefill disturbs from now on."""
        lane = (event.pid, event.stream)
        self._close(lane, event.t_ns)
        if event.phase in _PREFILL:
            self._open.add(lane, event.t_ns, self._device_of(event.pid))
            self._note_late(lane, event.t_ns, event.t_ns)

    def step(self, step: Step) -> None:
        """A step has ended. A decode step is decided on once it has settled (`advance`)."""
        lane = (step.pid, step.stream)
        began = self._open.began(lane)
        known = self._open.pop(lane) if began is not None and began <= step.t_end_ns else None
        if step.phase in _PREFILL:
            self._ended.add(_Span(lane, step.t_start_ns, step.t_end_ns))
            if known is None:
                self._note_late(lane, step.t_start_ns, step.t_end_ns)
        elif step.phase == "decode":
            self._waiting.append(step)

    def advance(self, now_ns: int) -> None:
        """Judge the decode steps that have settled at `now_ns` (CLOCK_MONOTONIC)."""
        sweeps = now_ns >= self._sweep_at_ns
        if sweeps:
            self._sweep_at_ns = now_ns + _SWEEP_NS
            for lane in self._open.before(now_ns - STALE_NS):
                self._close(lane, now_ns)
        while self._waiting and self._waiting[0].t_end_ns + self._settle <= now_ns:
            self._judge(self._waiting.popleft())
        if sweeps:
            self._ended.drop(now_ns - _KEEP_NS)
            self._judged.drop(now_ns - _KEEP_NS)

    def flush(self) -> None:
        """Judge all that wait, settled or not: the feed has ended."""
        while self._waiting:
            self._judge(self._waiting.popleft())

    def _judge(self, step: Step) -> None:
        lane, start, end = (step.pid, step.stream), step.t_start_ns, step.t_end_ns
        opened = self._open.beside(lane, self._device_of(step.pid), end)
        disturbed = opened or self._overlaps(self._ended, lane, start, end)
        if not disturbed:
            self._judged.add(_Span(lane, start, end))
        self._on_decided(step, disturbed)

    def _overlaps(self, spans: _Spans, lane: Lane, start: int, end: int) -> bool:
        """Whether one of `spans` overlaps from another lane."""
        return any(self._beside(lane, span.lane) for span in spans.overlapping(start, end))

    def _beside(self, lane: Lane, other: Lane) -> bool:
        if lane == other:
            return False
        a, b = self._device_of(lane[0]), self._device_of(other[0])
        return a is None or b is None or a == b

    def _note_late(self, lane: Lane, start: int, end: int) -> None:
        self.late += self._overlaps(self._judged, lane, start, max(end, start + 1))

    def _close(self, lane: Lane, at: int) -> None:
        start = self._open.pop(lane)
        if start is not None and at > start:
            self._ended.add(_Span(lane, start, at))
