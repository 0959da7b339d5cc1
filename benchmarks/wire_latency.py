"""How exact and how dear the wire tracer is. Needs root. Prints one JSON object.

Accuracy: streamed requests at several concurrencies against an asyncio server; each request's TTFT on the
wire beside the client's own clock, from just before it sends to its first content line. The client's figure
holds the client's own scheduling, so the difference bounds the tracer's error from above.

Cost: system calls of a loop of 1-byte reads and writes on a socket pair, without a tracer, with a tracer on
another process, and with a tracer on the loop itself; and the same on an HTTP connection whose every write
is copied. The three are taken in turns within one run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.replay import quantile
from probes.events import RequestTiming
from probes.wire import WireTracer

SERVERS = Path(__file__).parent.parent / "tests" / "wire" / "servers.py"
BODY = json.dumps({"messages": [{"role": "user", "content": "x" * 400}], "stream": True}).encode()
REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY


@dataclass(frozen=True)
class _Seen:
    sent: int
    first: int


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


async def _client(port: int, requests: int) -> list[_Seen]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    seen = []
    for _ in range(requests):
        sent, first = time.monotonic_ns(), 0
        writer.write(REQUEST)
        while (line := await reader.readline()) != b"0\r\n":
            if not first and b'"content": "tok' in line:
                first = time.monotonic_ns()
        await reader.readline()
        seen.append(_Seen(sent, first))
    writer.close()
    return seen


def _load(port: int, connections: int, requests: int) -> list[_Seen]:
    async def run() -> list[_Seen]:
        every = await asyncio.gather(*(_client(port, requests // connections) for _ in range(connections)))
        return [seen for one in every for seen in one]

    return asyncio.run(asyncio.wait_for(run(), 600))


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def accuracy(kind: str, concurrencies: list[int], requests: int) -> dict[str, Any]:
    """Errors of the wire's TTFT in us, over all concurrencies and apart."""
    by_concurrency = {}
    every: list[float] = []
    with _serving(kind) as (pid, port):
        for concurrency in concurrencies:
            # The load runs in a process of its own: its figures must not wait for the tracer's Python.
            code = (
                "import sys, json; from benchmarks.wire_latency import _load;"
                f"print(json.dumps([[s.sent, s.first] for s in _load({port}, {concurrency}, {requests})]))"
            )
            got: list[RequestTiming] = []
            with WireTracer([pid], on_request=got.append) as tracer:
                arrival = tracer.arrival
                before = _cpu_s()
                load = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
                assert load.stdout is not None
                while load.poll() is None:
                    tracer.poll(50)
                tracer.poll(100)
                cpu = _cpu_s() - before
                losses = {name: n for name, n in tracer.losses.items() if n}
            seen = [_Seen(*pair) for pair in json.loads(load.stdout.read())]
            errors = []
            for request, truth in zip(
                sorted(got, key=lambda r: r.t_arrival_ns), sorted(seen, key=lambda s: s.sent), strict=True
            ):
                assert request.t_first_ns is not None
                wire = request.t_first_ns - request.t_arrival_ns
                errors.append((truth.first - truth.sent - wire) / 1e3)
            every += errors
            by_concurrency[str(concurrency)] = {
                "requests": len(got),
                "error_us": _spread(errors),
                "tracer_cpu_us_per_chunk": cpu * 1e6 / sum(len(r.chunk_ns) for r in got),
                "losses": losses,
            }
    return {
        "arrival": arrival,
        "requests": len(every),
        "error_us": _spread(every),
        "concurrency": by_concurrency,
    }


def _spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "p50": round(statistics.median(ordered), 1),
        "p99": round(quantile(ordered, 0.99) or 0.0, 1),
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
@click.option("--requests", default=1000, show_default=True, help="Requests at each concurrency.")
@click.option(
    "--concurrency", "concurrencies", multiple=True, type=int, default=(1, 8, 32), show_default=True
)
@click.option(
    "--rounds", default=5, show_default=True, help="Turns of the cost loops; the best of each counts."
)
@click.option("--calls", default=20_000, show_default=True, help="Calls a turn.")
def main(requests: int, concurrencies: tuple[int, ...], rounds: int, calls: int) -> None:
    """Measure the wire tracer."""
    result = {
        "benchmark": "wire_latency",
        "accuracy": accuracy("asyncio", list(concurrencies), requests),
        "cost": cost(rounds, calls),
    }
    click.echo(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
