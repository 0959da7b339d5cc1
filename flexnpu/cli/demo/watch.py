"""What the probes publish, collected while the demo runs, and one line of it every few seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flexnpu.common.quantiles import quantile
from flexnpu.control.messages import DaemonStatus
from probes.feed.events import Event, HostDelay, Losses, RequestTiming, Step
from probes.feed.socket import FeedClient

_LINE_EVERY_S = 3.0


@dataclass(frozen=True)
class Window:
    """An interval of CLOCK_MONOTONIC, ns."""

    start_ns: int
    end_ns: int

    @property
    def seconds(self) -> float:
        """Its length."""
        return (self.end_ns - self.start_ns) / 1e9

    def holds(self, t_ns: int) -> bool:
        """Whether `t_ns` lies in it; its end does not."""
        return self.start_ns <= t_ns < self.end_ns


class Watch:
    """Reads the feed in a thread, keeps every event, and writes each as a line of JSON to ``log``."""

    def __init__(self, feed: Path, log: Path) -> None:
        self._client = FeedClient(feed)
        self._log = log.open("w", encoding="utf-8")
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._steps: list[Step] = []
        self._requests: list[RequestTiming] = []
        self._delays: list[HostDelay] = []
        self._losses: dict[str, dict[str, int]] = {}
        self._thread = threading.Thread(target=self._read, name="feed", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not (self._stop.is_set() or self._client.ended):
            event = self._client.read(0.5)
            if event is not None:
                self._take(event)

    def _take(self, event: Event) -> None:
        with self._lock:
            if not self._log.closed:
                self._log.write(event.to_json() + "\n")
            match event:
                case Step():
                    self._steps.append(event)
                case RequestTiming():
                    self._requests.append(event)
                case HostDelay():
                    self._delays.append(event)
                case Losses():
                    self._losses[event.source] = dict(event.counts)
                case _:
                    pass

    def steps(self, pid: int, window: Window | None = None, phase: str | None = None) -> list[Step]:
        """The steps of a process that ended inside the window, in order of their start."""
        with self._lock:
            found = [
                step
                for step in self._steps
                if step.pid == pid
                and (window is None or window.holds(step.t_end_ns))
                and (phase is None or step.phase == phase)
            ]
        return sorted(found, key=lambda step: step.t_start_ns)

    def requests(self, pid: int, window: Window | None = None) -> list[RequestTiming]:
        """The requests of a process that arrived inside the window, in order of arrival."""
        with self._lock:
            found = [
                request
                for request in self._requests
                if request.pid == pid and (window is None or window.holds(request.t_arrival_ns))
            ]
        return sorted(found, key=lambda request: request.t_arrival_ns)

    def ended_requests(self, pid: int, window: Window) -> list[RequestTiming]:
        """The requests of a process whose answer ended inside the window."""
        with self._lock:
            return [
                request
                for request in self._requests
                if request.pid == pid and request.t_end_ns is not None and window.holds(request.t_end_ns)
            ]

    def waiting(self, pid: int, window: Window) -> float | None:
        """How many threads of a process waited for a CPU, on average; None when nothing was said."""
        with self._lock:
            found = [
                delay
                for delay in self._delays
                if delay.pid == pid and delay.tid is None and window.holds(delay.t_ns)
            ]
        interval_us = sum(delay.interval_us for delay in found)
        return sum(delay.runqueue_us for delay in found) / interval_us if interval_us else None

    @property
    def losses(self) -> dict[str, dict[str, int]]:
        """The last published loss counters by source (``steps``, ``wire``, ``feed``)."""
        with self._lock:
            return {source: dict(counts) for source, counts in self._losses.items()}

    def close(self) -> None:
        """Stop reading, and close the log."""
        self._stop.set()
        self._thread.join(timeout=5.0)
        self._client.close()
        with self._lock:
            self._log.close()


class Ticker:
    """Prints a line about the last seconds, every few seconds, while it is entered."""

    def __init__(
        self,
        watch: Watch,
        pids: Sequence[tuple[str, int]],
        status: Callable[[], DaemonStatus | None],
        write: Callable[[str], None],
    ) -> None:
        self._watch = watch
        self._pids = pids
        self._status = status
        self._write = write
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ticker", daemon=True)

    def __enter__(self) -> Ticker:
        self._start = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10.0)

    def _run(self) -> None:
        last, before = time.monotonic_ns(), self._status()
        while not self._stop.wait(_LINE_EVERY_S):
            window = Window(last, time.monotonic_ns())
            parts = [self._describe(name, pid, window) for name, pid in self._pids]
            now = self._status()
            if before is not None and now is not None:
                parts.append(_device(before, now, window))
            self._write(f"  {time.monotonic() - self._start:3.0f} s  " + " | ".join(parts))
            last, before = window.end_ns, now

    def _describe(self, name: str, pid: int, window: Window) -> str:
        parts = []
        for phase in ("prefill", "decode"):
            times = [step.duration_us / 1e3 for step in self._watch.steps(pid, window, phase)]
            if times:
                parts.append(f"{len(times)} {phase} {quantile(times, 0.5) or 0.0:.0f}/{max(times):.0f}")
        first = [
            (request.t_first_ns - request.t_arrival_ns) / 1e6
            for request in self._watch.ended_requests(pid, window)
            if request.t_first_ns is not None
        ]
        if first:
            parts.append(f"TTFT {quantile(first, 0.5) or 0.0:.0f}")
        return f"{name}: " + (", ".join(parts) or "idle")


def _device(before: DaemonStatus, now: DaemonStatus, window: Window) -> str:
    text = ""
    if before.device_busy_us is not None and now.device_busy_us is not None:
        text = f"busy {(now.device_busy_us - before.device_busy_us) / window.seconds / 1e4:.0f} %"
    if now.gate.policy != "transparent":
        held = sum(lane.gated_us for lane in now.lanes) - sum(lane.gated_us for lane in before.lanes)
        text += f", held {held / window.seconds / 1e4:.0f} %"
    return text
