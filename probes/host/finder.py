"""Finds the processes to trace as they come, and notices at once that they end.

The kernel tells when a process forks, becomes another program, or ends (`procevents`). It does not tell when
one loads a library, which a Python program does seconds after it began. So each process is looked at (its
memory map: does a library there define a function through which operators are launched?) at intervals that
grow with its age, by `GROWTH`, from `FIRST_S` up to `LAST_S`: what is loaded t seconds after the start is
found at most about 0.3 t later, and never later than `LAST_S`. A process that loads nothing costs one read of
its size in `LAST_S`.

Without the kernel's events, /proc is listed every `SCAN_S` instead.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flexnpu.common.closeable import Closeable
from flexnpu.common.processes import folder_of, thread_of
from probes.host.process_events import EventsUnavailable, ProcessEvent, ProcessEvents
from probes.host.selection import Selection
from probes.placing import symbols

FIRST_S = 0.05
GROWTH = 1.3
LAST_S = 10.0
SCAN_S = 1.0

_DYING_S = 2.0
_UNREAD = 3
"""A map is read again after so many looks, even if the address space has the size that it had."""


@dataclass
class _Candidate:
    """A process that may load AscendCL later."""

    interval: float
    due: float
    size: int = -1
    """Pages of its address space when its map was last read: a library more is a greater space."""
    unread: int = 0
    """Looks since then."""
    paths: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Changes:
    """What `Finder.poll` found: `appeared` use an NPU and are meant; `ended` do not run any more, or
    became another program."""

    appeared: tuple[int, ...] = ()
    ended: tuple[int, ...] = ()


class Finder(Closeable):
    """Watches all processes of the machine that `selection` may mean.

    `uses_npu` says of a process id whether to attach to it. `why_scanning` is None when the kernel's events
    are there, else the reason for which they are not.
    """

    def __init__(
        self,
        selection: Selection,
        uses_npu: Callable[[int], bool],
        *,
        source: Callable[[], ProcessEvents] | None = ProcessEvents,
    ) -> None:
        self._selection = selection
        self._uses_npu = uses_npu
        self._candidates: dict[int, _Candidate] = {}
        self._due: list[tuple[float, int]] = []
        self._next_scan = 0.0
        self._ending: dict[int, float] = {}
        self._lost = 0
        self._events: ProcessEvents | None = None
        self.why_scanning: str | None = "switched off"
        if source is not None:
            try:
                self._events = source()
                self.why_scanning = None
            except EventsUnavailable as error:
                self.why_scanning = str(error)

    @property
    def events_lost(self) -> int:
        """How often the kernel dropped events that were not read in time; /proc was read again then."""
        return self._lost

    def poll(self, attached: Mapping[int, int]) -> Changes:
        """What changed since the last call. `attached`: the processes that are traced at present,
        each with when that began, ns of CLOCK_MONOTONIC: what it did before does not end it.

        Does not wait; call it every few tens of milliseconds.
        """
        now = time.monotonic()
        ended: list[int] = []
        if self._events is not None:
            for event in self._events.read():
                self._take(event, attached, ended, now)
            if self._events.lost != self._lost:
                self._lost = self._events.lost
                self._next_scan = now
        for pid, until in list(self._ending.items()):
            if thread_of(pid) is None:
                ended.append(pid)
            elif now < until:
                continue
            del self._ending[pid]
        if self._selection.follows and now >= self._next_scan:
            # With events there is only the first scan, and one after each loss.
            self._next_scan = now + SCAN_S if self._events is None else float("inf")
            self._scan(attached, now)
        appeared = [pid for pid in self._look(attached, now) if pid not in ended]
        return Changes(tuple(appeared), tuple(dict.fromkeys(ended)))

    def forget(self, pid: int) -> None:
        """`pid` is attached no longer, or could not be: look at it again later, if it still runs."""
        self._watch(pid, time.monotonic(), LAST_S)

    def _take(self, event: ProcessEvent, attached: Mapping[int, int], ended: list[int], now: float) -> None:
        if event.kind in ("exit", "exec"):
            if event.kind == "exec" or thread_of(event.pid) is None:
                self._candidates.pop(event.pid, None)
            if event.t_ns < attached.get(event.pid, event.t_ns + 1):
                pass
            elif event.kind == "exec":
                ended.append(event.pid)
            else:
                # The first thread may end before the others, which die a little later or live on.
                self._ending[event.pid] = now + _DYING_S
        if event.kind in ("fork", "exec") and self._selection.follows:
            # What the child of a traced process inherits, it has at once.
            first = 0.0 if event.parent in attached else FIRST_S
            self._watch(event.pid, now, FIRST_S, first)

    def _watch(self, pid: int, now: float, interval: float, first: float | None = None) -> None:
        candidate = _Candidate(interval, now + (interval if first is None else first))
        self._candidates[pid] = candidate
        heapq.heappush(self._due, (candidate.due, pid))

    def _scan(self, attached: Mapping[int, int], now: float) -> None:
        present = symbols.processes()
        for pid in self._candidates.keys() - set(present):
            del self._candidates[pid]
        fresh = [pid for pid in present if pid not in self._candidates and pid not in attached]
        for pid in fresh:
            self._watch(pid, now, FIRST_S, 0.0)

    def _look(self, attached: Mapping[int, int], now: float) -> list[int]:
        found = []
        while self._due and self._due[0][0] <= now:
            due, pid = heapq.heappop(self._due)
            candidate = self._candidates.get(pid)
            if candidate is None or candidate.due != due:
                continue  # it ended, or began anew since
            if pid in attached:
                del self._candidates[pid]
                continue
            try:
                size = _size(pid)
                if size == 0 and _is_kernel_thread(pid):
                    # It stays known, so that no scan takes it for new, and is never due again.
                    continue
                if (size != candidate.size or candidate.unread >= _UNREAD) and self._selection.matches(pid):
                    candidate.size, candidate.unread = size, 0
                    paths = symbols.mapped_paths(pid)
                    if paths != candidate.paths and self._uses_npu(pid):
                        del self._candidates[pid]
                        found.append(pid)
                        continue
                    candidate.paths = paths
                else:
                    candidate.unread += 1
            except symbols.ProcessGone:
                self._candidates.pop(pid, None)
                continue
            except OSError:
                pass  # may not be read now: later, perhaps
            candidate.interval = min(LAST_S, candidate.interval * GROWTH)
            candidate.due = now + candidate.interval
            heapq.heappush(self._due, (candidate.due, pid))
        return found

    def close(self) -> None:
        """Close the source of process events."""
        if self._events is not None:
            self._events.close()


def _size(pid: int) -> int:
    """Pages of the address space; 0 for kernel threads and zombies. Raises `ProcessGone`."""
    try:
        size = _pages(f"/proc/{pid}")
        return size or _pages(folder_of(pid))  # its first thread may have ended
    except (FileNotFoundError, ProcessLookupError, IndexError):
        raise symbols.ProcessGone(f"no process {pid}") from None


def _pages(folder: str) -> int:
    with open(f"{folder}/statm", "rb") as file:
        return int(file.read().split()[0])


def _is_kernel_thread(pid: int) -> bool:
    try:
        with open(f"{folder_of(pid)}/cmdline", "rb") as file:
            if file.read(1):
                return False
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return int(stat.read().rpartition(b")")[2].split()[6]) & 0x00200000 != 0  # PF_KTHREAD
    except (OSError, ValueError, IndexError):
        return False
