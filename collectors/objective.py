"""Which requests kept the TTFT objective: each is counted once, when that is known.

A request that waits for its first token is bad from the moment at which the objective is missed. The tracer
lists who waits (`OpenRequests`); what was counted then is not counted again when the request ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from collectors.metrics import requests
from collectors.metrics.metric import Metric
from collectors.sinks import Labels
from probes.feed.events import OpenRequests, RequestTiming

GENERATION: Final = ("chat", "text_completion")
"""Operations of which every request is to have a first token."""
KEEP_NS: Final = 120 * 10**9
"""A request that was counted while it waited, and of whose end nothing is heard, is forgotten after this
time, at the latest after twice of it. The time begins when no request is told of that is as old."""

Arrival = int
"""By which a request is known again, ns: its connection may be handed to another process or descriptor.
Requests that came in one piece share one."""


@dataclass(slots=True)
class _Missed:
    count: int = 0
    seen_ns: int = 0


class Objective:
    """Counts `requests.SLO_REQUESTS` and what it consists of, by `add`. `slo_ns`: the TTFT of a good one."""

    def __init__(self, add: Callable[[Metric, Labels, float], None], slo_ns: int) -> None:
        self._add = add
        self._slo_ns = slo_ns
        self._missed: dict[Arrival, _Missed] = {}
        self._oldest: dict[int, tuple[int, Arrival]] = {}
        """By process, when it was last told what runs in it, ns, and the oldest of that."""

    def __len__(self) -> int:
        """Requests that were counted and have not ended."""
        return len(self._missed)

    def sight(self, process: Labels) -> None:
        """Make the series at 0, so that a rate sees the first increment."""
        for metric in (requests.SLO_REQUESTS, requests.SLO_GOOD):
            self._add(metric, process, 0.0)
        for reason in requests.BAD_REASONS:
            self._add(requests.SLO_BAD, (*process, reason), 0.0)

    def open(self, event: OpenRequests, process: Labels) -> None:
        """Requests that wait: those that have waited too long are bad."""
        if event.oldest_ns is None:
            self._oldest.pop(event.pid, None)
        else:
            self._oldest[event.pid] = (event.t_ns, event.oldest_ns)
        inner = set(event.inner)
        clients = [arrival for at, (_, arrival) in enumerate(event.waiting) if at not in inner]
        late = Counter(arrival for arrival in clients if event.t_ns - arrival > self._slo_ns)
        for arrival, count in late.items():
            missed = self._missed.setdefault(arrival, _Missed())
            missed.seen_ns = event.t_ns
            for _ in range(count - missed.count):
                self._bad("waiting", process)
            missed.count = max(missed.count, count)

    def ended(self, request: RequestTiming, operation: str, process: Labels) -> None:
        """A request that has ended. One that came from another watched server is part of a request there, and
        counted with that."""
        if request.caller_pid is not None or self._was_counted(request):
            return
        if request.error is not None:
            # Told inside a response of status 200, perhaps after some content: it was not served.
            self._bad("error", process)
        elif request.t_first_ns is not None:
            if self._in_time(request):
                self._add(requests.SLO_REQUESTS, process, 1.0)
                self._add(requests.SLO_GOOD, process, 1.0)
            else:
                self._bad("late", process)
        elif operation in GENERATION:
            # Who got an error, or gave up before the first token, was not served in time.
            if request.status is not None and request.status >= 500:
                self._bad("status", process)
            elif not request.complete:
                self._bad("cut", process)

    def _in_time(self, request: RequestTiming) -> bool:
        first_ns = request.t_first_ns
        return first_ns is not None and first_ns - request.t_arrival_ns <= self._slo_ns

    def _was_counted(self, request: RequestTiming) -> bool:
        """Whether it was counted while it waited. One that was answered in time was not: another that came
        with it was."""
        missed = self._missed.get(request.t_arrival_ns)
        if missed is None or self._in_time(request):
            return False
        missed.count -= 1
        if missed.count <= 0:
            del self._missed[request.t_arrival_ns]
        return True

    def forget(self, now_ns: int) -> None:
        """Drop what nothing was heard of for `KEEP_NS`, unless a request that is as old still runs."""
        horizon = now_ns - KEEP_NS
        self._oldest = {pid: told for pid, told in self._oldest.items() if told[0] > horizon}
        oldest = min((arrival for _, arrival in self._oldest.values()), default=now_ns)
        self._missed = {
            at: missed for at, missed in self._missed.items() if missed.seen_ns > horizon or at >= oldest
        }

    def clear(self) -> None:
        """The tracer is gone: the next one knows none of these requests."""
        self._missed = {}
        self._oldest = {}

    def _bad(self, reason: str, process: Labels) -> None:
        self._add(requests.SLO_REQUESTS, process, 1.0)
        self._add(requests.SLO_BAD, (*process, reason), 1.0)
