"""A proxy, a prefill and a decode instance under the real tracer, held against what they say themselves."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from probes.feed.events import Event, Losses, ProcessState, RequestTiming, from_json

PROGRAM = Path(__file__).parent / "programs" / "disaggregated.py"
MODES = ("answer", "id", "trace", "prompt")
TRACE = "00-{:032x}-00f067aa0ba902b7-01"


class Program:
    """One of the three, with what it says line by line."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, str(PROGRAM), *map(str, arguments)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port, self.engine = map(int, self.process.stdout.readline().split())

    @property
    def pid(self) -> int:
        return self.process.pid

    def told(self, count: int) -> dict[int, dict[str, Any]]:
        """What it says of `count` requests, by their number."""
        assert self.process.stdout is not None
        lines = [json.loads(self.process.stdout.readline()) for _ in range(count)]
        return {line["number"]: line for line in lines}

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


@dataclass
class Client:
    """What a client saw of its request."""

    sent: int = 0
    first: int = 0

    def ask(self, port: int, number: int, mode: str) -> None:
        body = {"prompt": f"prompt {number} " * 8, "number": number, "chunks": 1 + number % 3, "stream": True}
        headers = {"mode": mode, "Content-Type": "application/json", "X-Request-Id": f"client-{number}"}
        if mode == "trace":
            headers["traceparent"] = TRACE.format(number + 1)
        url = f"http://127.0.0.1:{port}/v1/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        self.sent = time.monotonic_ns()
        with urllib.request.urlopen(request, timeout=120) as answer:
            answer.read(1)
            self.first = time.monotonic_ns()
            answer.read()


@pytest.fixture
def trio(mock_driver: Path, tmp_path: Path) -> Iterator[tuple[Program, Program, Program]]:
    moves = tmp_path / "libllm_datadist.so"
    source = Path(__file__).parent / "mock" / "datadist.c"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", moves, source], check=True, timeout=120)
    with contextlib.ExitStack() as stack:
        made: list[Program] = []
        for arguments in (("prefill", mock_driver.parent), ("decode", mock_driver.parent, moves)):
            made.append(Program(*arguments))
            stack.callback(made[-1].stop)
        proxy = Program("proxy", made[0].port, made[1].port)
        stack.callback(proxy.stop)
        yield made[0], made[1], proxy


class Probe:
    """`flexnpu-probe attach` on the engines alone, with the events that it has told."""

    def __init__(self, *engines: int) -> None:
        command = [sys.executable, "-m", "probes.cli", "attach", "--wire", "--json"]
        command += [word for pid in engines for word in ("--pid", str(pid))]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.events: list[Event] = []
        assert self.process.stderr is not None
        for _ in engines:
            while "attached to" not in (line := self.process.stderr.readline()):
                assert line, "the probe ended"
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(from_json(line))

    def requests(self, pid: int) -> list[RequestTiming]:
        return [one for one in list(self.events) if isinstance(one, RequestTiming) and one.pid == pid]

    def wait_for(self, done: Any) -> None:
        deadline = time.monotonic() + 120
        while not done():
            assert time.monotonic() < deadline, self.events[-20:]
            time.sleep(0.05)

    def stop(self) -> None:
        """End it, and take what it says last."""
        self.process.send_signal(signal.SIGINT)
        self._reader.join(120)
        self.process.communicate(timeout=120)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def ask(proxy: Program, wanted: list[tuple[int, str]], together: bool) -> dict[int, Client]:
    clients = {number: Client() for number, _ in wanted}
    threads = [
        threading.Thread(target=clients[number].ask, args=(proxy.port, number, mode))
        for number, mode in wanted
    ]
    for thread in threads:
        thread.start()
        if not together:
            thread.join(120)
    for thread in threads:
        thread.join(120)
    return clients


def within(value: float, low: float, high: float) -> None:
    assert low <= value <= high, (low, value, high)


@pytest.mark.ebpf
@pytest.mark.timeout(600)
def test_the_parts_are_what_the_three_say(trio: tuple[Program, Program, Program]) -> None:
    prefill, decode, proxy = trio
    probe = Probe(prefill.engine, decode.engine)
    try:
        # The proxy is found by its connections.
        ask(proxy, [(1000, "answer")], False)
        for one in trio:
            one.told(1)
        probe.wait_for(
            lambda: any(isinstance(e, ProcessState) and e.pid == proxy.pid for e in list(probe.events))
        )
        wanted = [(4 * turn + at, mode) for turn in range(3) for at, mode in enumerate(MODES)]
        seen = ask(proxy, wanted[:4], False) | ask(proxy, wanted[4:], True)
        told = {one: one.told(len(wanted)) for one in trio}
        probe.wait_for(lambda: len(probe.requests(proxy.pid)) >= len(wanted))
        probe.stop()
    finally:
        probe.kill()
    outers = {one.request_id: one for one in probe.requests(proxy.pid)}
    inner = {(one.pid, one.t_arrival_ns): one for p in (prefill, decode) for one in probe.requests(p.pid)}
    for number, mode in wanted:
        outer = outers[f"client-{number}"]
        assert outer.caller_pid is None
        assert outer.join_confidence is None
        by = {
            "answer": ("sibling", "answer"),
            "id": ("id",) * 2,
            "trace": ("trace",) * 2,
            "prompt": ("prompt",) * 2,
        }
        assert outer.hops is not None, (number, mode)
        assert [(pid, role, how) for pid, _, role, how in outer.hops] == [
            (prefill.pid, "prefill", by[mode][0]),
            (decode.pid, "decode", by[mode][1]),
        ]
        first, last = (inner[pid, arrival] for pid, arrival, _, _ in outer.hops)
        assert first.caller_pid == last.caller_pid == proxy.pid
        check(outer, first, last, seen[number], *(told[one][number] for one in (prefill, decode, proxy)))
        if number < 4:
            # It was alone.
            assert last.transfer_us is not None
    losses = next(e.counts for e in reversed(probe.events) if isinstance(e, Losses) and e.source == "wire")
    # The first one: when it came, the proxy was not watched.
    assert losses["hops_ambiguous"] == losses["hops_contradicting"] == losses["hops_late"] == 0


def check(
    outer: RequestTiming,
    first: RequestTiming,
    last: RequestTiming,
    client: Client,
    prefill: dict[str, Any],
    decode: dict[str, Any],
    proxy: dict[str, Any],
) -> None:
    """Each event lies between two that a program read from the same clock; the parts are of these events."""
    within(outer.t_arrival_ns, client.sent, proxy["read"])
    within(first.t_arrival_ns, proxy["asks_prefill"], prefill["read"])
    assert first.t_end_ns is not None
    within(first.t_end_ns, prefill["answered"][0], proxy["has_prefill"])
    within(last.t_arrival_ns, proxy["asks_decode"], decode["read"])
    assert last.t_first_ns is not None
    assert outer.t_first_ns is not None
    within(last.t_first_ns, decode["first"][0], proxy["has_first"])
    within(outer.t_first_ns, proxy["has_first"], client.first)
    assert first.prefill_steps == len(prefill["steps"])
    assert last.prefill_steps == 0
    assert first.prefill_us is not None
    assert last.prefill_us is not None
    assert last.first_step is not None
    for timing, steps in ((first, prefill["steps"]), (last, decode["steps"])):
        assert timing.prefill_us is not None
        low = sum(ended[0] - begun[1] for begun, ended in steps)
        high = sum(ended[1] - begun[0] for begun, ended in steps)
        within(timing.prefill_us * 1e3, low, high)
        assert timing.first_step is not None
        within(timing.first_step, *steps[-1][0])
    parts = outer.parts_us
    assert parts is not None
    # Where another request waited at the same time, the transfer may have been for that one.
    split = ["decode_wait"] if last.transfer_us is None else ["transfer", "decode_queue"]
    assert list(parts) == ["proxy", "prefill_queue", "prefill", *split, "first_step", "send"]
    assert last.queue_us is not None
    if last.transfer_us is not None:
        (begin, _), (_, end) = decode["transfer"]
        (_, begun), (over, _) = decode["transfer"]
        within(last.transfer_us * 1e3, over - begun, end - begin)
        within(last.transfer_us * 1e3, 0.0, last.queue_us * 1e3)
        assert parts["transfer"] == last.transfer_us
    assert parts["prefill"] == first.prefill_us
    assert parts["first_step"] == last.prefill_us
    wait = sum(parts[part] for part in split)
    assert wait * 1e3 == pytest.approx(last.first_step - last.t_arrival_ns, abs=1)
    between = first.t_arrival_ns - outer.t_arrival_ns + last.t_arrival_ns - first.t_end_ns
    assert parts["proxy"] * 1e3 == pytest.approx(between + outer.t_first_ns - last.t_first_ns, abs=1)
    # What none of the others is.
    assert sum(parts.values()) * 1e3 == pytest.approx(outer.t_first_ns - outer.t_arrival_ns, abs=10)
    ends = prefill["steps"][-1][1], decode["steps"][0][1]
    low = prefill["answered"][0] - ends[0][1] + decode["first"][0] - ends[1][1]
    high = proxy["has_prefill"] - ends[0][0] + proxy["has_first"] - ends[1][0]
    within(parts["send"] * 1e3, low, high)
