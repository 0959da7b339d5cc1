"""What the live table shows: the events of an interval, summed up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flexnpu.common.quantiles import nearest_rank
from probes.feed.events import (
    EngineMetrics,
    Event,
    HostDelay,
    Losses,
    OperatorMix,
    ProcessState,
    RequestTiming,
    Step,
)
from probes.feed.recording import Overhead
from probes.show.histogram import tpot_us, ttft_parts

Lane = tuple[int, int]
"""(pid, stream)."""

MAX_MIXES = 256
"""Lanes whose operator mix is kept."""


@dataclass
class Row:
    """The steps of one lane and phase."""

    pid: int
    stream: int
    phase: str
    comm: str = ""
    steps: int = 0
    tokens: int = 0
    with_tokens: int = 0
    launches: int = 0
    with_launches: int = 0
    durations_us: list[float] = field(default_factory=list)

    def add(self, step: Step) -> None:
        """Count a step of this lane and phase."""
        self.comm = step.comm
        self.steps += 1
        launches = step.launches_typical if step.launches is None else step.launches
        if launches is not None:
            self.launches += launches + step.graph_launches
            self.with_launches += 1
        self.durations_us.append(step.duration_us)
        if step.tokens is not None:
            self.tokens += step.tokens
            self.with_tokens += 1

    def quantile_ms(self, q: float) -> float:
        """Of the steps' durations, by nearest rank."""
        return nearest_rank(sorted(self.durations_us), q) / 1e3


@dataclass
class Requests:
    """The requests of one process that ended."""

    pid: int
    comm: str = ""
    count: int = 0
    ttft_us: list[float] = field(default_factory=list)
    tpot_us: list[float] = field(default_factory=list)
    parts_us: dict[str, list[float]] = field(default_factory=dict)
    """Parts of the TTFT, of the requests that were joined to steps."""

    def add(self, request: RequestTiming) -> None:
        """Count a request of this process."""
        self.comm = request.comm
        self.count += 1
        if request.t_first_ns is not None:
            self.ttft_us.append(max(0, request.t_first_ns - request.t_arrival_ns) / 1e3)
        for part, us in ttft_parts(request):
            self.parts_us.setdefault(part, []).append(us)
        tpot = tpot_us(request) if request.complete else None
        if tpot is not None:
            self.tpot_us.append(tpot)


@dataclass(frozen=True)
class Host:
    """Shares of an interval that launching threads of a process spent waiting for a CPU, and on one.

    Those of the thread that waited longest. Where no launching thread is known, those of all threads
    together, and `launcher` is False.
    """

    runqueue: float
    cpu: float
    launcher: bool


@dataclass
class Snapshot:
    """One interval, `seconds` long."""

    seconds: float
    rows: list[Row]
    requests: list[Requests]
    hosts: dict[int, Host]
    gated: dict[Lane, float]
    """Share of the interval for which the daemon's gate held the lane; lanes without a daemon are absent."""
    overhead: dict[int, Overhead]
    """What the probes cost, by process."""
    counts: dict[str, int]
    """Of all sources' `Losses`, so far."""
    engines: list[EngineMetrics] = field(default_factory=list)
    """What each engine last said of itself."""
    mixes: list[OperatorMix] = field(default_factory=list)
    """The last operator mix of each lane."""


class View:
    """Takes events, and gives a `Snapshot` an interval."""

    def __init__(self) -> None:
        self._rows: dict[tuple[int, int, str], Row] = {}
        self._requests: dict[int, Requests] = {}
        self._hosts: dict[int, Host] = {}
        self._mixes: dict[Lane, OperatorMix] = {}
        """The one that was told of longest ago first."""
        self._counts: dict[str, dict[str, int]] = {}
        self._engines: dict[str, EngineMetrics] = {}

    def add(self, event: Event) -> None:
        """Take an event into the interval that runs."""
        if isinstance(event, Step):
            if event.ended_by != "detach":  # cut short by us
                key = event.pid, event.stream, event.phase
                self._rows.setdefault(key, Row(*key)).add(event)
        elif isinstance(event, RequestTiming):
            self._requests.setdefault(event.pid, Requests(event.pid)).add(event)
        elif isinstance(event, HostDelay):
            self._host(event)
        elif isinstance(event, OperatorMix):
            self._mixes.pop((event.pid, event.stream), None)
            self._mixes[event.pid, event.stream] = event
            if len(self._mixes) > MAX_MIXES:
                del self._mixes[next(iter(self._mixes))]
        elif isinstance(event, ProcessState):
            if event.ended:
                gone = [lane for lane in self._mixes if lane[0] == event.pid]
                for lane in gone:
                    del self._mixes[lane]
        elif isinstance(event, EngineMetrics):
            self._engines[event.url] = event
        elif isinstance(event, Losses):
            self._counts[event.source] = event.counts

    def _host(self, delay: HostDelay) -> None:
        if delay.interval_us <= 0:
            return
        seen = Host(
            delay.runqueue_us / delay.interval_us, delay.cpu_us / delay.interval_us, delay.tid is not None
        )
        known = self._hosts.get(delay.pid)
        if known is None or (seen.launcher, seen.runqueue) > (known.launcher, known.runqueue):
            self._hosts[delay.pid] = seen

    def take(
        self,
        seconds: float,
        gated_us: Mapping[Lane, float],
        overhead: Mapping[int, Overhead] | None = None,
    ) -> Snapshot:
        """The interval that ends now, `seconds` long, which also begins a new one.

        `gated_us`: what the daemon's gate held each lane in the interval. `overhead`: what the probes cost.
        """
        rows, self._rows = self._rows, {}
        requests, self._requests = self._requests, {}
        hosts, self._hosts = self._hosts, {}
        return Snapshot(
            seconds,
            [rows[key] for key in sorted(rows)],
            [requests[pid] for pid in sorted(requests)],
            hosts,
            {lane: us / seconds / 1e6 for lane, us in gated_us.items()},
            dict(overhead or {}),
            {name: count for counts in self._counts.values() for name, count in counts.items()},
            list(self._engines.values()),
            [self._mixes[lane] for lane in sorted(self._mixes)],
        )
