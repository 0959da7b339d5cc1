"""A recording as a trace for Perfetto (https://ui.perfetto.dev): Chrome trace-event JSON.

On one time line (CLOCK_MONOTONIC, us): each process with a track a stream, on which its steps are slices;
under it a track of the stream's gate time; the process's requests, a row each, from arrival to end, with
the parts of the TTFT below and a mark a content chunk; counters of run-queue wait; and what was lost.

What is drawn and was not measured where it stands says so in its arguments: of gate time within a step and of
the parts of a TTFT only the lengths are known.

Format: "Trace Event Format" (Google, 2016): X complete slices, b/e/n nestable asynchronous slices, C
counters, i instants, M names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TextIO

from probes.feed.events import HostDelay, Losses, RequestTiming, Step, is_loss
from probes.feed.recording import Recording, Tick
from probes.show.histogram import measure_of, ttft_parts

_TRACER = 0  # a process id that no process has


def _us(t_ns: int) -> float:
    return t_ns / 1e3


class Converter:
    """Events to trace events, a dict each."""

    def __init__(self) -> None:
        self._processes: set[int] = set()
        self._tracks: dict[tuple[int, int, str], int] = {}
        self._requests = 0
        self._lost: dict[tuple[str, str], int] = {}

    def convert(self, item: object) -> Iterator[dict[str, Any]]:
        """The trace events of one event or interval; none for what has no place in a trace."""
        if isinstance(item, Step):
            yield from self._step(item)
        elif isinstance(item, RequestTiming):
            yield from self._request(item)
        elif isinstance(item, HostDelay):
            yield from self._host(item)
        elif isinstance(item, Losses):
            yield from self._losses(item)
        elif isinstance(item, Tick):
            yield from self._tick(item)

    def _process(self, pid: int, comm: str) -> Iterator[dict[str, Any]]:
        if pid not in self._processes:
            self._processes.add(pid)
            yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": comm}}

    def _track(self, pid: int, stream: int, kind: str) -> tuple[int, Iterator[dict[str, Any]]]:
        """The track's number, and what names it when it is new."""
        known = self._tracks.get((pid, stream, kind))
        if known is not None:
            return known, iter(())
        number = len(self._tracks) + 1
        self._tracks[pid, stream, kind] = number
        name = f"stream {stream:#x}" + (f" {kind}" if kind else "")
        of = {"ph": "M", "pid": pid, "tid": number}
        return number, iter(
            (
                {**of, "name": "thread_name", "args": {"name": name}},
                {**of, "name": "thread_sort_index", "args": {"sort_index": number}},
            )
        )

    def _step(self, step: Step) -> Iterator[dict[str, Any]]:
        yield from self._process(step.pid, step.comm)
        track, naming = self._track(step.pid, step.stream, "")
        yield from naming
        yield {
            "ph": "X",
            "cat": "step",
            "name": step.phase,
            "pid": step.pid,
            "tid": track,
            "ts": _us(step.t_start_ns),
            "dur": _us(step.t_end_ns - step.t_start_ns),
            "args": {
                "tokens": step.tokens,
                "batch": step.batch,
                "kv_len": step.kv_len,
                "launches": step.launches,
                "graph_launches": step.graph_launches,
                "h2d_bytes": step.h2d_bytes,
                "d2h_bytes": step.d2h_bytes,
                "gated_us": step.gated_us,
                "evidence": step.evidence,
                "confidence": step.confidence,
                "ended_by": step.ended_by,
            },
        }
        if step.gated_us:
            yield from self._gate(step.pid, step.stream, step.t_start_ns, step.gated_us, "of the step")

    def _gate(self, pid: int, stream: int, t_ns: int, us: float, of: str) -> Iterator[dict[str, Any]]:
        track, naming = self._track(pid, stream, "gate")
        yield from naming
        yield {
            "ph": "X",
            "cat": "gate",
            "name": "gated",
            "pid": pid,
            "tid": track,
            "ts": _us(t_ns),
            "dur": us,
            "args": {"placed": f"at the beginning {of}: only the sum is known"},
        }

    def _tick(self, tick: Tick) -> Iterator[dict[str, Any]]:
        for pid, stream, us in tick.gated:
            if (pid, stream, "") in self._tracks and tick.seconds > 0:
                yield {
                    "ph": "C",
                    "name": f"gated % stream {stream:#x}",
                    "pid": pid,
                    "ts": _us(tick.t_ns) - tick.seconds * 1e6,
                    "args": {"percent": round(us / tick.seconds / 1e4, 3)},
                }

    def _request(self, request: RequestTiming) -> Iterator[dict[str, Any]]:
        yield from self._process(request.pid, request.comm)
        self._requests += 1
        end = request.t_end_ns or max([request.t_arrival_ns, *request.chunk_ns])
        of = {"cat": "request", "id": self._requests, "pid": request.pid, "tid": 0}

        def span(name: str, start: float, stop: float, **args: object) -> Iterator[dict[str, Any]]:
            yield {"ph": "b", "name": name, "ts": start, "args": args, **of}
            yield {"ph": "e", "name": name, "ts": stop, **of}

        whole, ended = span(
            f"{request.path} {request.status or ''}".strip(),
            _us(request.t_arrival_ns),
            _us(end),
            status=request.status,
            complete=request.complete,
            chunks=len(request.chunk_ns),
            tokens=request.tokens,
            prompt_tokens=request.prompt_tokens,
            first_step_pid=request.first_step_pid,
            first_step_us=None if request.first_step is None else _us(request.first_step),
            join_confidence=request.join_confidence,
        )
        yield whole
        if request.t_first_ns is not None:
            first = _us(request.t_first_ns)
            yield from span("TTFT", _us(request.t_arrival_ns), first)
            at = _us(request.t_arrival_ns)
            for part, length in ttft_parts(request):
                if length:
                    name = measure_of(part)
                    placed = "one after the other: only the lengths are known"
                    yield from span(name, at, min(at + length, first), us=length, placed=placed)
                    at += length
            if end > request.t_first_ns:
                yield from span("decode", first, _us(end))
        for number, t_ns in enumerate(request.chunk_ns):
            yield {"ph": "n", "name": "chunk", "ts": _us(t_ns), "args": {"number": number}, **of}
        yield ended

    def _host(self, delay: HostDelay) -> Iterator[dict[str, Any]]:
        if delay.tid is None:
            yield from self._process(delay.pid, delay.comm)
        if delay.interval_us <= 0:
            return
        who = "all threads" if delay.tid is None else f"thread {delay.tid} {delay.comm}"
        for name, us in (("run queue", delay.runqueue_us), ("CPU", delay.cpu_us)):
            yield {
                "ph": "C",
                "name": f"{name} % {who}",
                "pid": delay.pid,
                "ts": _us(delay.t_ns) - delay.interval_us,
                "args": {"percent": round(100 * us / delay.interval_us, 3)},
            }

    def _losses(self, losses: Losses) -> Iterator[dict[str, Any]]:
        for kind, count in losses.counts.items():
            before = self._lost.get((losses.source, kind), 0)
            self._lost[losses.source, kind] = count
            if count > before and is_loss(kind):
                yield from self._process(_TRACER, "flexnpu-probe")
                yield {
                    "ph": "i",
                    "s": "g",
                    "cat": "loss",
                    "name": f"{losses.source}: {kind} +{count - before}",
                    "pid": _TRACER,
                    "tid": 0,
                    "ts": _us(losses.t_ns),
                }


def export(recording: Recording, output: TextIO) -> int:
    """Write `recording` to `output`, event by event; how many trace events were written."""
    header = recording.header
    about = {
        "recorded by": f"flexnpu-probe {header.version}",
        "host": header.host,
        "kernel": header.kernel,
        "clock": "CLOCK_MONOTONIC",
        "realtime minus monotonic ns": header.realtime_ns - header.t_ns,
        "boottime minus monotonic ns": header.boottime_ns - header.t_ns,
    }
    output.write(f'{{"displayTimeUnit": "ms", "otherData": {json.dumps(about)}, "traceEvents": [')
    converter = Converter()
    count = 0
    for item in recording:
        for event in converter.convert(item):
            output.write((",\n" if count else "\n") + json.dumps(event, separators=(",", ":")))
            count += 1
    output.write("\n]}\n")
    return count
