"""Events as a tracer would publish them, by a script."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flexnpu.control.messages import DaemonStatus, GateOwner, GateStatus, LaneStatus, SessionStatus
from probes.feed.events import (
    EngineMetrics,
    Event,
    HostDelay,
    Losses,
    OpenRequests,
    Phase,
    ProcessState,
    RequestTiming,
    Step,
    StepBegin,
)

MS = 1_000_000
S = 1_000 * MS
ENGINE = "http://127.0.0.1:8000/metrics"


def step(start: int, end: int, phase: Phase = "decode", **more: Any) -> Step:
    """Times in ns. Tests say of it what they are about, as fields of `Step`."""
    fields: dict[str, Any] = {
        "pid": 1,
        "comm": "chat",
        "stream": 1,
        "tokens": 1,
        "batch": None if more.get("tokens", 1) is None else 1,
        "launches": 214,
        "graph_launches": 0,
        "h2d_bytes": 8,
        "d2h_bytes": 8,
        "evidence": "scripted",
        "confidence": 1.0,
    }
    return Step(t_start_ns=start, t_end_ns=end, phase=phase, **(fields | more))


def begin(
    at: int, phase: Phase = "prefill", *, pid: int = 2, comm: str = "flood", stream: int = 1
) -> StepBegin:
    return StepBegin(
        t_ns=at,
        pid=pid,
        comm=comm,
        stream=stream,
        phase=phase,
        tokens=37,
        batch=1,
        evidence="scripted",
        confidence=1.0,
    )


def request(
    arrival: int,
    chunks: list[int],
    end: int | None,
    *,
    pid: int = 1,
    comm: str = "chat",
    path: str = "/v1/chat/completions",
    status: int | None = 200,
    complete: bool = True,
    **more: Any,
) -> RequestTiming:
    return RequestTiming(
        pid=pid,
        comm=comm,
        fd=more.pop("fd", 7),
        t_arrival_ns=arrival,
        t_first_ns=chunks[0] if chunks else None,
        t_end_ns=end,
        chunk_ns=chunks,
        path=path,
        status=status,
        prompt_chars=100,
        complete=complete,
        **more,
    )


def process(
    at: int, pid: int = 1, comm: str = "chat", service: str | None = None, **more: Any
) -> ProcessState:
    fields: dict[str, Any] = {"probes": 11, "wire": True, "listening": 1, "connections": 2, "unread": 0}
    source = None if service is None else "environment"
    return ProcessState(at, pid, comm, service, source, **(fields | more))


def waiting(at: int, arrivals: list[int], *, pid: int = 1, comm: str = "chat", fd: int = 9) -> OpenRequests:
    """Requests that have no token yet at `at`."""
    return OpenRequests(
        at, pid, comm, len(arrivals), min(arrivals, default=None), [(fd, arrival) for arrival in arrivals]
    )


def second(now: int, *, ttft_ms: int = 50, flood: bool = True) -> Iterator[Event]:
    """What one second up to `now` brings: a chat server that decodes, and one that prefills."""
    for i in range(20):
        end = now - S + (i + 1) * 50 * MS
        if flood and i % 4 == 0:
            yield begin(end - 45 * MS)
            yield step(end - 45 * MS, end - 25 * MS, "prefill", pid=2, comm="flood", tokens=512, launches=218)
            yield step(end - 24 * MS, end - 20 * MS, "other", pid=2, comm="flood", tokens=None, launches=3)
        yield step(end - 12 * MS, end, tokens=1)
        yield step(end - 40 * MS, end - 15 * MS, tokens=1, graph_launches=1, stream=2)
    first = now - 500 * MS
    share = ttft_ms * 1000 / 4
    yield request(
        first - ttft_ms * MS,
        [first + i * 20 * MS for i in range(16)],
        now - 100 * MS,
        t_read_ns=first - ttft_ms * MS + MS,
        t_write_ns=first - MS,
        tokens=16,
        tokens_from="usage",
        prompt_tokens=100,
        queue_us=share,
        prefill_us=share,
        gated_us=share,
        send_us=share,
        first_step=first - 10 * MS,
        prefill_steps=1,
        join_confidence=1.0,
    )
    yield request(first - 300 * MS, [first, first + 30 * MS], first + 40 * MS, pid=2, comm="flood")
    yield request(first, [], first + MS, pid=2, comm="flood", caller_pid=1, role="prefill")
    yield EngineMetrics(
        now, ENGINE, "vllm", 3.0, 5.0, 0.42, prompt_tokens=1e3, generation_tokens=2e3, preemptions=0.0
    )
    yield process(now)
    yield waiting(now, [now - 300 * MS])
    yield HostDelay(now, 1, "chat", None, 1e6, 800e3, 300e3, 20e3, 0.0)
    yield HostDelay(now, 1, "launcher", 7, 1e6, 600e3, 200e3, 10e3, 0.0)
    yield Losses(t_ns=now, source="steps", counts={"steps_sent": 40, "steps_lost": 0, "unclassified": 1})
    yield Losses(t_ns=now, source="wire", counts={"wire_lost": 0, "wire_truncated_bytes": 5})


def status(t: float = 1.0, *, policy: str = "protect-decode") -> DaemonStatus:
    """A daemon `t` seconds after its start, with the two servers as clients."""
    clients = ((1, 1, "chat", "decode"), (2, 2, "flood", "prefill"))
    return DaemonStatus(
        version="0.1.0",
        pid=99,
        device=0,
        soc="Ascend910C",
        uptime_s=t,
        sessions=[
            SessionStatus(
                session=n,
                pid=pid,
                comm=comm,
                uid=0,
                memory_bytes=1 << 30,
                rings=2,
                lanes=1,
                calls=int(100 * t),
                refused=0,
                ring_full=0,
            )
            for n, pid, comm, _ in clients
        ],
        lanes=[
            LaneStatus(
                lane=n,
                session=n,
                pid=pid,
                comm=comm,
                stream=1,
                phase=phase,
                queued=n,
                in_flight=n,
                in_flight_us=100.0,
                launched=int(1000 * t),
                completed=int(1000 * t) - 1,
                device_us=2e5 * t,
                gated_us=1e5 * t,
                held_now=False,
            )
            for n, pid, comm, phase in clients
        ],
        gate=GateStatus(
            policy=policy,
            window_us=300,
            decode_target_us=15_000.0,
            overlap_slowdown=1.5,
            lease_left_s=1.5,
            expired_leases=0,
            owner=GateOwner(
                pid=77,
                uid=0,
                comm="flexnpu-control",
                instance="a",
                lease_left_s=1.5,
                counts={"steps": int(40 * t), "unmapped": 0, "doubting": 1},
            ),
        ),
        device_busy_us=4e5 * t,
        counters={"dispatched": int(2000 * t)},
    )
