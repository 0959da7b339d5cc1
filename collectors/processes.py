"""Which processes there are, and under which labels they are counted.

A process is counted under its service, which the tracer tells (`ProcessState`). Until it does, under its
number and the name that it had first: a process that renames itself makes no new series.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from collectors import metrics
from collectors.sinks import Labels, Sample
from probes.feed.events import OpenRequests, ProcessState

KEEP_NS: Final = 120 * 10**9
"""What is known of a process without events is dropped after this time, at the latest after twice of it."""


@dataclass(slots=True)
class _Known:
    labels: Labels
    at_ns: int
    """When it was last used."""
    ended: bool = False
    """Its process has ended: one of the same number is another."""


class Processes:
    """Feeds on `ProcessState`s and `OpenRequests`; `samples` may be called from any thread.

    `on_sight` gets labels when they are used for the first time, and again from time to time while their
    process is there.
    """

    def __init__(self, on_sight: Callable[[Labels], None]) -> None:
        self._on_sight = on_sight
        self._known: dict[int, _Known] = {}
        self._lock = threading.Lock()
        self._states: dict[int, ProcessState] = {}
        self._open: dict[int, OpenRequests] = {}
        self._first: dict[int, str] = {}
        """The name that each of `_states` and `_open` had first."""
        self._now_ns = 0

    def __len__(self) -> int:
        """Processes of which anything is known."""
        return len(self._known.keys() | self._states.keys() | self._open.keys())

    def labels(self, pid: int, comm: str) -> Labels:
        """Values of `metric.PROCESS` for what is counted of a process."""
        known = self._known.get(pid)
        if known is None:
            known = self._known[pid] = _Known(self._labels(pid, comm), 0)
            self._on_sight(known.labels)
        known.at_ns = self._now_ns
        return known.labels

    def labels_of_thread(self, pid: int, comm: str) -> Labels:
        """The same when `comm` may be a thread's name, which is not the process's."""
        return self.labels(pid, comm) if pid in self._known else self._labels(pid, comm)

    def _labels(self, pid: int, comm: str) -> Labels:
        state = self._states.get(pid)
        if state is not None and state.service:
            return (state.service, "", "")
        return ("", str(pid), comm)

    def take(self, state: ProcessState) -> None:
        """Take what the tracer says of a process."""
        with self._lock:
            known = self._known.get(state.pid)
            if state.ended:
                self._states.pop(state.pid, None)
                # Its last requests are told a moment later: they still belong to its service.
                self._open.pop(state.pid, None)
                self._first.pop(state.pid, None)
                if known is not None:
                    known.ended = True
                return
            self._states[state.pid] = state
            self._first.setdefault(state.pid, state.comm)
        if known is not None and (known.ended or known.labels[0] != (state.service or "")):
            del self._known[state.pid]
        if _serves(state):
            self.labels(state.pid, state.comm)

    def take_open(self, event: OpenRequests) -> None:
        """Take which requests run."""
        with self._lock:
            self._open[event.pid] = event
            self._first.setdefault(event.pid, event.comm)

    def advance(self, now_ns: int) -> None:
        """It is `now_ns`, CLOCK_MONOTONIC."""
        self._now_ns = now_ns

    def forget(self) -> None:
        """Drop what has not been used for `KEEP_NS`, and look again at who is there."""
        for pid, state in self._states.items():
            if _serves(state):
                self.labels(pid, state.comm)
                self._on_sight(self._known[pid].labels)
        horizon = self._now_ns - KEEP_NS
        self._known = {pid: known for pid, known in self._known.items() if known.at_ns > horizon}
        with self._lock:
            self._open = {pid: event for pid, event in self._open.items() if pid in self._known}
            present = self._states.keys() | self._open.keys()
            self._first = {pid: comm for pid, comm in self._first.items() if pid in present}

    def clear(self) -> None:
        """The tracer is gone: nobody tells of processes any more."""
        with self._lock:
            self._states = {}
            self._open = {}
            self._first = {}

    def samples(self) -> Iterator[Sample]:
        """The gauges of the processes that are there."""
        with self._lock:
            states, running, first = dict(self._states), dict(self._open), dict(self._first)
        for pid, state in states.items():
            if not _serves(state):
                continue
            yield Sample(metrics.process.INFO, (state.service or "", str(pid), state.comm), 1.0)
            labels = _of_gauge(pid, state, first[pid])
            values = [(metrics.process.PROBES, state.probes)]
            if state.wire:
                values += [
                    (metrics.process.LISTENING, state.listening),
                    (metrics.process.CONNECTIONS, state.connections),
                    (metrics.process.UNREAD, state.unread),
                ]
                running.setdefault(pid, OpenRequests(state.t_ns, pid, state.comm, 0, None, []))
            for metric, value in values:
                if value is not None:
                    yield Sample(metric, labels, float(value))
        for pid, event in running.items():
            yield from self._requests(event, _of_gauge(pid, states.get(pid), first.get(pid, event.comm)))

    def _requests(self, event: OpenRequests, labels: Labels) -> Iterator[Sample]:
        now_ns = max(self._now_ns, event.t_ns)
        waiting = len(event.waiting) + event.unlisted
        oldest = now_ns - event.oldest_ns if event.oldest_ns is not None else 0
        longest = now_ns - min(arrival for _, arrival in event.waiting) if event.waiting else 0
        yield Sample(metrics.requests.IN_FLIGHT, labels, float(event.in_flight))
        yield Sample(metrics.requests.OLDEST, labels, oldest / 1e9)
        yield Sample(metrics.requests.WAITING, labels, float(waiting))
        yield Sample(metrics.requests.OLDEST_WAITING, labels, longest / 1e9)


def _serves(state: ProcessState) -> bool:
    """Whether it uses an NPU or listens. The tracer also watches relatives of such processes, in case they
    will: nothing is told of those before."""
    return state.probes is not None or bool(state.listening)


def _of_gauge(pid: int, state: ProcessState | None, comm: str) -> Labels:
    service = state.service if state is not None else None
    return (service, str(pid), "") if service else ("", str(pid), comm)
