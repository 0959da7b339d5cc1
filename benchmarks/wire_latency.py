"""How exact and how dear the wire tracer is. Needs root. Prints one JSON object.

Accuracy: streamed requests at several concurrencies, in turn, against an event-loop server; each request's
TTFT and TPOT on the wire beside a client's own clock. The client (native/stream_client.cpp) is a process
of its own without an interpreter: one thread with a real-time priority, which reads the clock just before
each send and just after each recv. What its clock still holds beyond the wire is the way to the server's
socket, the server's write up to the socket, and the client's own wake-up; `error_us` holds all of that, so
it bounds the tracer's error from above. `error_without_wakeup_us` takes the receive time that the client's
kernel stamped on the data instead of the clock after recv. A positive error is a TTFT that the client saw
longer than the wire. TTFT runs from the send to the first chunk with content; TPOT is (last chunk - first
chunk) / (chunks - 1).

Cost: system calls of a loop of 1-byte reads and writes on a socket pair, without a tracer, with a tracer on
another process, and with a tracer on the loop itself; and the same on an HTTP connection whose every write
is copied. The three are taken in turns within one run."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from benchmarks.pairs import NATIVE, BenchmarkError
from flexnpu.common.quantiles import nearest_rank
from flexnpu.console.numbers import COUNT, Whole
from probes.feed.events import RequestTiming
from probes.requests.wire import WireTracer

SERVERS = Path(__file__).parent.parent / "tests" / "wire" / "servers.py"
BODY = json.dumps({"messages": [{"role": "user", "content": "x" * 400}], "stream": True}).encode()
REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
_CONTENT = '"content": "tok'


@dataclass(frozen=True)
class Seen:
    """A request by the client's clock, ns of CLOCK_MONOTONIC; the last two as its kernel stamped them."""

    request: int
    sent: int
    first: int
    last: int
    end: int
    contents: int
    kernel_first: int
    kernel_last: int


@dataclass
class Errors:
    """Client minus wire, in us."""

    ttft: list[float] = field(default_factory=list)
    tpot: list[float] = field(default_factory=list)
    ttft_kernel: list[float] = field(default_factory=list)

    def add(self, wire: RequestTiming, truth: Seen) -> None:
        """Compare one request on the wire with what its client saw."""
        assert wire.t_first_ns is not None
        on_wire = wire.t_first_ns - wire.t_arrival_ns
        self.ttft.append((truth.first - truth.sent - on_wire) / 1e3)
        if truth.kernel_first:
            self.ttft_kernel.append((truth.kernel_first - truth.sent - on_wire) / 1e3)
        if truth.contents > 1:
            between = wire.chunk_ns[-1] - wire.chunk_ns[0]
            self.tpot.append((truth.last - truth.first - between) / (truth.contents - 1) / 1e3)

    def extend(self, other: Errors) -> None:
        """Add the errors of another run."""
        self.ttft += other.ttft
        self.tpot += other.tpot
        self.ttft_kernel += other.ttft_kernel

    def report(self) -> dict[str, Any]:
        """The spreads, us, for the benchmark's JSON."""
        return {
            "requests": len(self.ttft),
            "ttft_error_us": _spread(self.ttft),
            "tpot_error_us": _spread(self.tpot),
            "ttft_error_without_wakeup_us": _spread(self.ttft_kernel),
        }


@contextlib.contextmanager
def _serving(kind: str) -> Iterator[tuple[int, int]]:
    """(pid, port) of a test server."""
    process = subprocess.Popen([sys.executable, str(SERVERS), kind], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
    finally:
        process.kill()
        process.wait(10)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _load(
    tracer: WireTracer, port: int, connections: int, requests: int, first: int, scheduling: str
) -> tuple[str, list[Seen]]:
    """Runs the client while the tracer is polled. Returns the client's scheduling class and what it saw."""
    program = NATIVE.with_name("stream_client")
    if not program.exists():
        raise BenchmarkError(f"{program} is missing: build the project first")
    command = [str(program), *map(str, (port, connections, requests, first)), _CONTENT, scheduling]
    client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write(BODY)
    client.stdin.close()
    while client.poll() is None:
        tracer.poll(50)
    lines = client.stdout.read().decode().splitlines()
    if client.returncode != 0:
        raise BenchmarkError(f"the client ended with status {client.returncode}")
    return lines[0].split()[1], [Seen(*map(int, line.split())) for line in lines[1:]]


def accuracy(kind: str, concurrencies: list[int], requests: int, scheduling: str) -> dict[str, Any]:
    """Errors of the wire's TTFT and TPOT in us, of `requests` in all, in equal parts at each concurrency."""
    by_concurrency = {}
    every = Errors()
    first = 1
    with _serving(kind) as (pid, port):
        for concurrency in concurrencies:
            part = -(-requests // len(concurrencies))
            got: list[RequestTiming] = []
            with WireTracer([pid], on_request=got.append) as tracer:
                dating = tracer.dating
                before = _cpu_s()
                scheduling, seen = _load(tracer, port, concurrency, part, first, scheduling)
                deadline = time.monotonic() + 5
                while len(got) < len(seen) and time.monotonic() < deadline:
                    tracer.poll(50)
                cpu = _cpu_s() - before
                losses = {name: n for name, n in tracer.losses.items() if n}
            first += part
            wire = {int(request.path.split("/")[1]): request for request in got}
            missing = [truth.request for truth in seen if truth.request not in wire]
            errors = Errors()
            for truth in seen:
                if truth.request in wire:
                    request = wire[truth.request]
                    assert len(request.chunk_ns) == truth.contents, (
                        "the wire has other chunks than the client"
                    )
                    errors.add(request, truth)
            every.extend(errors)
            by_concurrency[str(concurrency)] = errors.report() | {
                "missing": len(missing),
                "tracer_cpu_us_per_chunk": round(cpu * 1e6 / sum(len(r.chunk_ns) for r in got), 1),
                "losses": losses,
            }
    return {
        "server": kind,
        "dating": dating,
        "client_scheduling": scheduling,
        "load_average": round(os.getloadavg()[0], 1),
        "cores": os.cpu_count(),
        **every.report(),
        "concurrency": by_concurrency,
    }


def _spread(values: list[float]) -> dict[str, float]:
    """Quantiles of the error, and of its size (`p99_abs`)."""
    if not values:
        return {}
    ordered = sorted(values)
    sizes = sorted(map(abs, values))
    return {
        "p50": round(nearest_rank(ordered, 0.5), 1),
        "p99": round(nearest_rank(ordered, 0.99), 1),
        "p99_abs": round(nearest_rank(sizes, 0.99), 1),
        "min": round(ordered[0], 1),
        "max": round(ordered[-1], 1),
    }


def _pair_loop(http: bool, calls: int) -> float:
    """us a write and read of a socket pair, in this process."""
    a, b = socket.socketpair()
    with a, b:
        if http:
            # A read that begins like HTTP makes the descriptor a connection; its writes are copied from
            # then on.
            a.sendall(REQUEST)
            b.recv(65536)
            b.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            a.recv(65536)
        out, back = b.fileno(), a.fileno()
        data = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n' if http else b"x"
        start = time.perf_counter()
        for _ in range(calls):
            os.write(out, data)
            os.read(back, 4096)
        return (time.perf_counter() - start) / calls * 1e6


def cost(rounds: int, calls: int) -> dict[str, Any]:
    """us a write and read of a socket pair, without a tracer, beside one, and under one."""
    code = (
        "import sys; from benchmarks.wire_latency import _pair_loop\n"
        "for line in sys.stdin:\n"
        f" print(_pair_loop(line.strip() == 'http', {calls}), flush=True)"
    )
    loop = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert loop.stdin is not None
    assert loop.stdout is not None
    times: dict[str, list[float]] = {}

    def take(name: str, kind: str, poll: Callable[[], object]) -> None:
        assert loop.stdin is not None
        assert loop.stdout is not None
        loop.stdin.write(f"{kind}\n")
        loop.stdin.flush()
        poll()
        times.setdefault(name, []).append(float(loop.stdout.readline()))

    def nothing() -> None:
        pass

    try:
        for _ in range(rounds):
            take("untraced", "plain", nothing)
            with WireTracer([os.getpid()]):
                take("another_process_traced", "plain", nothing)
            with WireTracer([loop.pid]):
                take("traced", "plain", nothing)
            take("untraced_http", "http", nothing)
            with WireTracer([loop.pid]) as tracer:
                take("traced_http", "http", lambda tracer=tracer: tracer.poll(0))  # type: ignore[misc]
    finally:
        loop.stdin.close()
        loop.wait(30)
    best = {name: round(min(values), 3) for name, values in times.items()}
    return {
        "us_a_write_and_read": best,
        "added_us": {
            "another_process_traced": round(best["another_process_traced"] - best["untraced"], 3),
            "traced": round(best["traced"] - best["untraced"], 3),
            "traced_http": round(best["traced_http"] - best["untraced_http"], 3),
        },
    }


@click.command()
@click.option(
    "--requests",
    type=COUNT,
    default=1000,
    show_default=True,
    help="Requests in all, for each server.",
)
@click.option(
    "--concurrency",
    "concurrencies",
    multiple=True,
    type=COUNT,
    default=(1, 4, 16, 64),
    show_default=True,
)
@click.option(
    "--server",
    "servers",
    type=click.Choice(["asyncio", "uvicorn"]),
    multiple=True,
    default=("asyncio", "uvicorn"),
    show_default=True,
    help="Test servers (tests/wire/servers.py).",
)
@click.option(
    "--client-scheduling",
    "scheduling",
    type=click.Choice(["fifo", "other"]),
    default="fifo",
    show_default=True,
    help="The client's scheduling class; with `other` the error holds its waits for a core.",
)
@click.option(
    "--rounds",
    type=Whole(0, 1_000_000),
    default=5,
    show_default=True,
    help="Turns of the cost loops; the best of each counts. 0: none.",
)
@click.option("--calls", type=COUNT, default=20_000, show_default=True, help="Calls a turn.")
def main(
    requests: int,
    concurrencies: tuple[int, ...],
    servers: tuple[str, ...],
    scheduling: str,
    rounds: int,
    calls: int,
) -> None:
    """Measure the wire tracer."""
    try:
        result: dict[str, Any] = {
            "benchmark": "wire_latency",
            "accuracy": [accuracy(kind, list(concurrencies), requests, scheduling) for kind in servers],
        }
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from None
    if rounds:
        result["cost"] = cost(rounds, calls)
    click.echo(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
