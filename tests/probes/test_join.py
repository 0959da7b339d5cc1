"""Requests joined to steps: by hand, by hypothesis, and on a server that says when each part happened."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.feed.events import EngineMetrics, Event, Phase, ProcessState, RequestTiming, Step, from_json
from probes.host.families import ProcessFamilies
from probes.requests.join import LANE_NS, Joiner, Other
from probes.requests.wire import WireTracer
from probes.steps.tracer import Tracer
from tests.collectors import scripted

MS = 1_000_000
SERVER = Path(__file__).parent / "programs" / "labelled_server.py"


class _SameProcess(ProcessFamilies):
    def closeness(self, front: int, engine: int) -> float:
        return 1.0 if front == engine else 0.0


def step(start: float, end: float, phase: Phase = "prefill", *, stream: int = 1, **more: object) -> Step:
    fields = {"stream": stream, "tokens": 10} | more
    return scripted.step(round(start * MS), round(end * MS), phase, **fields)


def request(
    arrival: float, write: float, *chunks: float, end: float | None = None, **more: object
) -> RequestTiming:
    times = [round(t * MS) for t in (chunks or (write,))]
    return RequestTiming(
        pid=1,
        comm="",
        fd=3,
        t_arrival_ns=round(arrival * MS),
        t_first_ns=times[0],
        t_end_ns=times[-1] if end is None else round(end * MS),
        chunk_ns=times,
        path="/",
        status=200,
        prompt_chars=None,
        complete=True,
        t_write_ns=round(write * MS),
        **more,  # type: ignore[arg-type]
    )


def joined(
    steps: list[Step], *requests: RequestTiming, others: tuple[Other, ...] = ()
) -> list[RequestTiming]:
    """The requests as published, in order."""
    got: list[RequestTiming] = []
    joiner = Joiner(got.append, families=_SameProcess(), open_requests=lambda: list(others))
    for one in steps:
        joiner.step(one)
    for each in requests:
        joiner.request(each)
    joiner.flush()
    return got


def parts(timing: RequestTiming) -> tuple[float | None, ...]:
    """(queue, prefill, gate, send) in ms."""
    return tuple(
        None if us is None else us / 1000
        for us in (timing.queue_us, timing.prefill_us, timing.gated_us, timing.send_us)
    )


def test_a_request_alone() -> None:
    steps = [step(0, 5), step(12, 20, gated_us=3000.0), step(21, 22, "decode", gated_us=500.0), step(30, 35)]
    (timing,) = joined(steps, request(10, 20.5, 21, 23))
    assert parts(timing) == (2, 5, 3, 1)
    assert (timing.first_step, timing.first_step_pid, timing.prefill_steps) == (12 * MS, 1, 1)
    assert timing.join_confidence == 1.0
    assert timing.tpot_gated_us == 500.0


def test_without_a_gate_its_share_is_absent() -> None:
    (timing,) = joined([step(12, 20)], request(10, 21))
    assert parts(timing) == (2, 8, None, 1)
    assert timing.tpot_gated_us is None


def test_a_request_without_a_step_has_no_parts() -> None:
    for steps in ([], [step(5, 9)], [step(21, 30)], [step(12, 13, "decode")]):
        (timing,) = joined(steps, request(10, 21))
        assert parts(timing) == (None,) * 4
        assert timing.join_confidence is None


def test_a_step_that_ends_behind_its_token_is_taken_up_to_it() -> None:
    (timing,) = joined([step(12, 24), step(25, 27)], request(10, 21, 22))
    assert parts(timing) == (2, 9, None, 1)
    assert timing.join_confidence == 0.5


def test_chunks_of_a_prompt_are_one_run_and_what_lies_between_is_queueing() -> None:
    steps = [step(12, 15), step(16, 17, "decode"), step(18, 20, "mixed"), step(21, 25)]
    (timing,) = joined(steps, request(10, 26))
    assert parts(timing) == (2 + 3 + 1, 3 + 2 + 4, None, 1)
    assert timing.prefill_steps == 3


def test_an_earlier_request_keeps_its_steps() -> None:
    steps = [step(12, 15), step(16, 20), step(21, 25)]
    first, second = joined(steps, request(10, 16, end=30), request(11, 26))
    assert (first.prefill_steps, parts(first)) == (1, (2, 3, None, 1))
    assert (second.prefill_steps, parts(second)) == (2, (5 + 1, 8, None, 1))
    # While the first's step ran the second was waiting too.
    assert first.join_confidence == pytest.approx(1 / 1.5, abs=1e-3)
    assert second.join_confidence == 1.0


def test_the_prompts_length_says_how_far_back_the_run_goes() -> None:
    steps = [step(12, 15), step(16, 20), step(21, 25)]
    (timing,) = joined(steps, request(10, 26, prompt_tokens=17))
    assert timing.prefill_steps == 2


def test_a_step_with_the_prompts_tokens_is_the_requests_own() -> None:
    steps = [step(12, 15, tokens=7), step(16, 20, tokens=9), step(21, 25, tokens=11)]
    others = (Other(1, 11 * MS, None),)
    (timing,) = joined(steps, request(10, 26, prompt_tokens=9), others=others)
    assert (timing.first_step, timing.prefill_steps, timing.join_confidence) == (16 * MS, 1, 1.0)
    assert parts(timing) == (6, 4, None, 6)
    # With a cached prefix no step has as many.
    (timing,) = joined(steps, request(10, 26, prompt_tokens=900), others=others)
    assert (timing.first_step, timing.join_confidence) == (21 * MS, pytest.approx(1 / 1.5, abs=1e-3))


def test_who_is_still_waiting_makes_it_less_sure() -> None:
    open_ones = (Other(1, 11 * MS, None), Other(2, 11 * MS, None), Other(1, 40 * MS, None))
    (timing,) = joined([step(12, 20)], request(10, 21), others=open_ones)
    assert timing.join_confidence == pytest.approx(1 / 1.5, abs=1e-3)


def test_a_request_waits_for_later_steps_but_not_for_ever() -> None:
    got: list[RequestTiming] = []
    joiner = Joiner(got.append, families=_SameProcess(), settle_ns=600 * MS)
    joiner.request(request(10, 21, 21, 25))
    joiner.advance(26 * MS)
    assert got == []
    joiner.step(step(12, 20))
    joiner.advance(27 * MS)
    assert got == []  # another step might still be told
    joiner.step(step(22, 23, "decode"))
    joiner.advance(28 * MS)
    assert parts(got.pop()) == (2, 8, None, 1)
    joiner.request(request(30, 40))
    joiner.advance(639 * MS)
    assert got == []
    joiner.advance(640 * MS)
    assert parts(got.pop()) == (None,) * 4


TIMES = st.integers(0, 200)


def test_lanes_that_are_silent_are_forgotten() -> None:
    joiner = Joiner(lambda timing: None, families=_SameProcess())
    for stream in range(100):
        joiner.step(step(stream, stream + 1, stream=stream))
    joiner.advance(LANE_NS)
    assert len(joiner._lanes) == 100
    joiner.step(step(50_000, 50_001, stream=3))
    joiner.advance(LANE_NS + 200 * MS + 20 * 10**9)
    assert len(joiner._lanes) == 1


@given(
    spans=st.lists(
        st.tuples(TIMES, st.integers(1, 30), st.sampled_from(["prefill", "mixed", "decode", "other"]))
    ),
    asked=st.lists(
        st.tuples(TIMES, st.integers(1, 100), st.integers(0, 9), st.none() | st.integers(0, 60)), max_size=6
    ),
    gated=st.none() | st.floats(0, 1e5),
)
def test_the_parts_sum_to_the_ttft(
    spans: list[tuple[int, int, str]], asked: list[tuple[int, int, int, int | None]], gated: float | None
) -> None:
    at, steps = 0, []
    for gap, length, phase in spans:
        steps.append(step(at + gap, at + gap + length, phase, gated_us=gated))
        at += gap + length
    requests = [request(a, a + d, a + d + held, prompt_tokens=n) for a, d, held, n in asked]
    for timing in joined(steps, *requests):
        if timing.join_confidence is None:
            assert parts(timing) == (None,) * 4
            continue
        shares = [
            us
            for us in (timing.queue_us, timing.prefill_us, timing.gated_us, timing.send_us)
            if us is not None
        ]
        assert all(us >= 0 for us in shares)
        assert timing.t_first_ns is not None
        assert sum(round(us * 1000) for us in shares) == timing.t_first_ns - timing.t_arrival_ns
        assert (timing.gated_us is None) == (gated is None)
        assert (
            RequestTiming(**{f.name: getattr(timing, f.name) for f in dataclasses.fields(timing)}) == timing
        )


# Processes.


def test_kin_are_parents_children_and_children_of_one_launcher() -> None:
    script = (
        "import subprocess, sys; both = [subprocess.Popen(['sleep', '30']) for _ in range(2)];"
        "print(both[0].pid, both[1].pid, flush=True); sys.stdin.read(); [one.kill() for one in both]"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        a, b = map(int, parent.stdout.readline().split())
        families = ProcessFamilies()
        assert families.closeness(a, a) == 1.0
        assert families.closeness(parent.pid, a) == families.closeness(a, parent.pid) == 1.0
        assert families.closeness(a, b) == 0.7
        assert families.closeness(a, 1) == 0.0
        assert {parent.pid, b} <= set(families.fronts(a))
        assert os.getpid() not in families.fronts(a)
        assert parent.stdin is not None
        parent.stdin.close()
        parent.wait(60)
        assert families.closeness(parent.pid, a) == 1.0  # remembered


# A server that knows.


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def ask(port: int, path: str) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(30)
        client.sendall(f"POST {path} HTTP/1.1\r\nContent-Length: 0\r\n\r\n".encode())
        seen = b""
        while not seen.endswith(b"0\r\n\r\n"):
            seen += client.recv(65536)


@contextlib.contextmanager
def serving(libraries: Path) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """(process, port, process id of the engine) of the labelled server."""
    process = subprocess.Popen(
        [sys.executable, str(SERVER), str(libraries)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        port, engine = map(int, process.stdout.readline().split())
        yield process, port, engine
    finally:
        process.kill()
        process.wait(120)
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.ebpf
def test_the_split_is_what_the_servers_own_clock_says(mock_driver: Path) -> None:
    got: dict[int, RequestTiming] = {}
    with serving(mock_driver.parent) as (process, port, engine):
        families = ProcessFamilies()

        def publish(timing: RequestTiming) -> None:
            got[int(timing.path.split("/")[2])] = timing

        def take(event: Event) -> None:
            if isinstance(event, Step):
                joiner.step(event)

        with Tracer(take) as tracer, WireTracer() as wire:
            joiner = Joiner(publish, families=families, open_requests=wire.open_requests)
            wire._on_request = joiner.request
            tracer.attach(engine)
            for front in families.fronts(engine):
                wire.add(front)
            assert process.pid in wire.pids

            # One after the other, then at once: the last ones wait for the others.
            clients = [threading.Thread(target=ask, args=(port, f"/{1 + n % 3}/{n}")) for n in range(9)]
            for n, client in enumerate(clients):
                client.start()
                while n < 4 and client.is_alive():
                    tracer.poll(0.01)
                    wire.poll(0)
            deadline = time.monotonic() + 120
            while len(got) < 9 and time.monotonic() < deadline:
                tracer.poll(0.01)
                wire.poll(0)
                joiner.advance(time.monotonic_ns())
            for client in clients:
                client.join(10)
        truths = [json.loads(_line(process)) for _ in range(9)]
    for truth in truths:
        timing = got[truth["number"]]
        assert timing.t_first_ns is not None
        assert timing.first_step_pid == engine
        assert timing.prefill_steps == len(truth["starts"]) == 1 + truth["number"] % 3
        assert (timing.tokens, timing.tokens_from, timing.prompt_tokens) == (
            4,
            "usage",
            32 * len(truth["starts"]),
        )
        busy = sum(truth["ends"]) - sum(truth["starts"])
        send = truth["write"] - truth["ends"][-1]
        queue = truth["write"] - timing.t_arrival_ns - busy - send
        # Steps take 30 ms, sending 15 ms, queueing 6 ms and up; a busy machine delays the program's own
        # reading of its clock.
        assert timing.first_step == pytest.approx(truth["starts"][-1], abs=4 * MS)
        assert timing.prefill_us == pytest.approx(busy / 1000, abs=4000)
        assert timing.send_us == pytest.approx(send / 1000, abs=4000)
        assert timing.queue_us == pytest.approx(queue / 1000, abs=4000)
        assert timing.gated_us is None
    # At least one had to wait for all that another one takes.
    assert max(timing.queue_us or 0 for timing in got.values()) > 60_000


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'vllm:num_requests_running{engine="0"} 2.0\n')

    def log_message(self, format: str, *args: object) -> None:
        pass


def streamed(events: list[Event]) -> list[RequestTiming]:
    """Requests with content: not those for the page, which this process, a parent of the engine's, serves."""
    return [event for event in events if isinstance(event, RequestTiming) and event.t_first_ns is not None]


@pytest.mark.ebpf
def test_attach_tells_of_joined_requests_and_of_what_the_engine_says(mock_driver: Path) -> None:
    page = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    threading.Thread(target=page.serve_forever, daemon=True).start()
    command = [sys.executable, "-m", "probes.cli", "attach", "--wire", "--json", "--duration", "60"]
    command += ["--engine-metrics", f"http://127.0.0.1:{page.server_port}"]
    with serving(mock_driver.parent) as (process, port, engine):
        probe = subprocess.Popen(
            [*command, "--pid", str(engine)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert probe.stdout is not None
            assert probe.stderr is not None
            while "attached to" not in (line := probe.stderr.readline()):
                assert line, "the probe ended"
            for n in range(2):
                ask(port, f"/2/{n}")
            events: list[Event] = []
            for line in probe.stdout:
                events.append(from_json(line))
                if len(streamed(events)) == 2 and any(isinstance(event, EngineMetrics) for event in events):
                    break
            probe.send_signal(signal.SIGINT)
            rest, _ = probe.communicate(timeout=120)
            events += [from_json(line) for line in rest.splitlines()]
        finally:
            probe.kill()
            probe.wait(60)
            page.shutdown()
            page.server_close()
    requests = streamed(events)
    assert [request.prefill_steps for request in requests] == [2, 2]
    assert all(request.join_confidence and request.first_step_pid == engine for request in requests)
    # Engine and server are told of, each with its service, before their first request.
    states = [event for event in events if isinstance(event, ProcessState)]
    (first_request,) = [i for i, event in enumerate(events) if event is requests[0]]
    named = {event.pid: event.service for event in events[:first_request] if isinstance(event, ProcessState)}
    assert named[engine] is not None
    assert named[engine] == named[process.pid]
    assert {one.probes for one in states if one.pid == process.pid} == {None}
    assert all(one.probes for one in states if one.pid == engine)
    assert any(one.listening for one in states if one.pid == process.pid)
    said = [event for event in events if isinstance(event, EngineMetrics)]
    assert {(one.engine, one.running, one.error) for one in said} == {("vllm", 2.0, None)}
