"""FlexNPU's client, traced at its probe points alone: whole steps, exact counts, held time, nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.pairs import Daemon
from flexnpu.client import environment as client
from flexnpu.control import paths
from flexnpu.control.client import ControlClient
from flexnpu.control.messages import LaneStatus, SetGate
from probes.feed.events import Event, OperatorMix, Step, StepBegin
from probes.host import inventory
from probes.placing import symbols
from probes.steps.tracer import Tracer
from probes.steps.waiting import TABLE, Waiting

pytestmark = pytest.mark.ebpf

PROGRAM = Path(__file__).parent / "programs" / "lanes.py"
STEP, BEGIN, OPERATOR = (f"flexnpu_{point}_semaphore" for point in ("step", "step_begin", "operator"))


class Lanes:
    """`programs/lanes.py` under FlexNPU, on a device of its own whose time is modelled."""

    def __init__(self, directory: Path) -> None:
        self.daemon = Daemon(directory, f"lanes-{uuid.uuid4().hex[:8]}", "time")
        environment = client.environment(client.CLIENT_HOME, [paths.data_socket(0, directory)], os.environ)
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.pid = self.process.pid
        self.streams = [int(word) for word in self._line().split()]
        self.control = ControlClient(paths.control_socket(0, directory))

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the program ended: {self.process.wait()}"
        return line

    def run(self, *commands: str) -> None:
        for command in commands:
            assert self.process.stdin is not None
            self.process.stdin.write(command + "\n")
            assert self._line() == "ok\n"

    def lane(self, stream: int) -> LaneStatus:
        """What the daemon knows of it."""
        return next(lane for lane in self.control.status().lanes if lane.stream == self.streams[stream])

    def word(self, name: str) -> int:
        """A semaphore's value, read from the process's memory."""
        (definition,) = symbols.resolve(self.pid, [name])[name]
        word = inventory._word(self.pid, definition)
        assert word is not None, f"{name} is not in writable memory"
        return word

    def wait_for_word(self, name: str, value: int, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while self.word(name) != value:
            assert time.monotonic() < deadline, f"{name} is {self.word(name)}"
            time.sleep(0.02)

    def stop(self) -> None:
        self.control.close()
        self.process.kill()
        self.process.wait(120)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.daemon.stop()


@pytest.fixture(scope="module")
def lanes() -> Iterator[Lanes]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with tempfile.TemporaryDirectory(prefix="flexnpu-test-") as directory:
        program = Lanes(Path(directory))
        try:
            yield program
        finally:
            program.stop()


@pytest.mark.usefixtures("each_loader")
def test_steps_are_whole_and_every_launch_is_counted(lanes: Lanes, tracing: Callable[..., Any]) -> None:
    lanes.run("embed 0 1 5", "launch 0 20", "sync 0", "launch 1 3", "sync 1")  # before anybody listens
    before = [lanes.lane(stream).launched for stream in range(2)]
    run = tracing(lanes.pid, plan="default")
    assert [placed.symbol for placed in run.target.placed] == ["flexnpu_step"]
    assert run.target.kind == "client"
    lanes.run(
        "embed 0 1 37", "launch 0 9", "sync 0", "launch 0 200", "sync 0"
    )  # a look at the mask after nine
    for _ in range(13):
        lanes.run("launch 0 3", "embed 0 4 1", "launch 0 211", "sync 0")
    lanes.run("launch 1 7", "sync 1", "launch 1 11", "sync 1")
    run.poll(0.3)
    assert run.tracer.threads(lanes.pid) == [lanes.pid]
    steps: list[Step] = run.finish()
    model = [step for step in steps if step.stream == lanes.streams[0]]
    assert [(s.phase, s.tokens, s.batch, s.launches) for s in model] == [("prefill", 37, 1, 210)] + [
        ("decode", 4, 4, 215)
    ] * 13
    plain = [step for step in steps if step.stream == lanes.streams[1]]
    assert [(s.phase, s.launches) for s in plain] == [("other", 7), ("other", 11)]
    for stream, own in enumerate((model, plain)):
        assert sum(s.launches or 0 for s in own) == lanes.lane(stream).launched - before[stream]
    assert all(s.gated_us == 0 for s in steps)
    assert all(a.t_end_ns <= b.t_start_ns for a, b in zip(model, model[1:], strict=False))  # noqa: RUF007
    counts = run.losses.counts
    assert not any(counts[name] for name in ("steps_lost", "bad_reads", "unreadable", "reopened"))


def test_steps_of_two_threads_while_the_reader_comes_and_goes(lanes: Lanes) -> None:
    events: list[Event] = []
    with Tracer(events.append) as tracer:
        lanes.run("loop 0 1500 101", "loop 1 1500 53")
        for _ in range(3):
            tracer.attach(lanes.pid)  # in the middle of a step, most likely
            until = time.monotonic() + 0.15
            while time.monotonic() < until:
                tracer.poll(0.02)
            tracer.detach(lanes.pid)
        lanes.run("join")
    steps = [event for event in events if isinstance(event, Step) and event.ended_by == "sync"]
    assert {(s.phase, s.launches) for s in steps} == {("decode", 102), ("decode", 54)}
    assert len(steps) > 100


def test_openings_are_told_at_once_to_who_asks(lanes: Lanes, tracing: Callable[..., Any]) -> None:
    assert lanes.word(BEGIN) == 0
    run = tracing(lanes.pid, plan="default", begins=True)
    assert [placed.symbol for placed in run.target.placed] == ["flexnpu_step", "flexnpu_step_begin"]
    assert lanes.word(BEGIN) == 1
    lanes.run("embed 0 2 8", "launch 0 30")
    run.poll(0.1)
    begins = [event for event in run.events if isinstance(event, StepBegin)]
    assert [(b.phase, b.tokens, b.batch) for b in begins] == [("prefill", 16, 2)]
    lanes.run("sync 0")
    run.finish()
    lanes.wait_for_word(BEGIN, 0)


def test_the_kernel_lowers_the_semaphore_whichever_way_the_reader_ends(
    lanes: Lanes, tracing: Callable[..., Any]
) -> None:
    lanes.wait_for_word(STEP, 0)
    run = tracing(lanes.pid, plan="default")
    assert lanes.word(STEP) == 1
    run.finish()
    lanes.wait_for_word(STEP, 0)
    code = (
        "import sys, time\n"
        "from probes.steps.tracer import Tracer\n"
        "tracer = Tracer(print)\n"
        "tracer.attach(int(sys.argv[1]))\n"
        "print('attached', flush=True)\n"
        "while True: tracer.poll(0.1)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(lanes.pid)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == "attached\n"
        assert lanes.word(STEP) == 1
        again = tracing(lanes.pid, plan="default")
        lanes.run("embed 0 1 1", "launch 0 5", "sync 0")
        again.finish()
        time.sleep(0.3)
        assert lanes.word(STEP) == 1  # one reader is left
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait(30)
        other.stdout.close()
    lanes.wait_for_word(STEP, 0)
    lanes.run("embed 0 1 1", "launch 0 5", "sync 0")
    # And the next reader finds all as it should be.
    run = tracing(lanes.pid, plan="default")
    lanes.run("embed 0 1 1", "launch 0 6", "sync 0")
    run.poll(0.1)
    assert [s.launches for s in run.finish()] == [7]


def test_held_time_is_that_of_the_lane_which_the_gate_held(lanes: Lanes, tracing: Callable[..., Any]) -> None:
    lanes.run("embed 0 1 1", "launch 0 40", "sync 0", "embed 1 1 64", "launch 1 4 2048", "sync 1")
    decode, prefill = (lanes.lane(stream) for stream in range(2))
    run = tracing(lanes.pid, plan="default")
    lanes.control.set_gate(
        SetGate(
            policy="protect-decode",
            lease_s=20,
            decode_target_us=1.0,  # never met: a decode step under way holds prefill work back
            window_us=100,
            overlap_slowdown=2.0,
            lanes={decode.lane: "decode", prefill.lane: "prefill"},
        )
    )
    lanes.run("loop 0 60 40", "embed 1 1 64", "launch 1 60 2048", "sync 1", "join")
    lanes.run("embed 1 1 64", "launch 1 2 2048", "sync 1", "embed 0 1 1", "sync 0")
    lanes.control.set_gate(SetGate(policy="transparent", lease_s=1))
    run.poll(0.3)
    steps = run.finish()
    held = {stream: [s for s in steps if s.stream == lanes.streams[stream]] for stream in range(2)}
    assert all(s.gated_us == 0 for s in held[0])
    first = held[1][0]
    assert first.gated_us is not None
    assert first.gated_us > 100
    grown = lanes.lane(1).gated_us - prefill.gated_us
    assert sum(s.gated_us or 0 for s in held[1]) == pytest.approx(grown, abs=1.0)


def test_the_daemon_hears_what_each_step_does(lanes: Lanes) -> None:
    """With the operators themselves: nobody traces, and no controller has said anything of the lane."""
    before = lanes.lane(0)
    lanes.run("embed 0 1 37", "launch 0 9", "sync 0", "embed 0 2 20", "launch 0 9", "sync 0")
    for _ in range(13):
        lanes.run("embed 0 4 1", "launch 0 11", "sync 0")
    lanes.run("launch 0 5", "sync 0")
    after = lanes.lane(0)
    assert after.prefill_steps - before.prefill_steps == 2
    assert after.decode_steps - before.decode_steps == 13
    assert after.prefill_tokens - before.prefill_tokens == 37 + 40
    assert after.decode_tokens - before.decode_tokens == 13 * 4
    assert after.does == "prefill+decode"


def test_of_one_stream_the_gate_holds_the_prefill_steps_alone(lanes: Lanes) -> None:
    """It was told no lane's phase; both decode, and one prefills too."""
    lanes.run("embed 0 1 1", "launch 0 40", "sync 0", "embed 1 1 1", "launch 1 4 2048", "sync 1")
    for lane in (lanes.lane(0), lanes.lane(1)):
        assert lane.decode_steps
    lanes.control.set_gate(
        SetGate(
            policy="protect-decode",
            lease_s=20,
            decode_target_us=1.0,
            window_us=100,
            overlap_slowdown=2.0,
            lanes={lanes.lane(stream).lane: "unknown" for stream in range(2)},
        )
    )
    decodes, start = lanes.lane(0).gated_us, lanes.lane(1).gated_us
    lanes.run("loop 0 60 40", "embed 1 1 1", "launch 1 60 2048", "sync 1", "join")
    assert lanes.lane(1).gated_us == start, "a decode step, however large"
    lanes.run("loop 0 60 40", "embed 1 1 64", "launch 1 60 2048", "sync 1", "join")
    held = lanes.lane(1).gated_us
    assert held > start + 100
    lanes.run("loop 0 60 40", "embed 1 1 1", "launch 1 60 2048", "sync 1", "join")
    assert lanes.lane(1).gated_us == held
    assert lanes.lane(0).gated_us == decodes
    lanes.control.set_gate(SetGate(policy="transparent", lease_s=1))


@pytest.mark.usefixtures("each_loader")
def test_operators_are_told_by_name_while_a_reader_wants_every_launch(
    lanes: Lanes, tracing: Callable[..., Any]
) -> None:
    lanes.wait_for_word(OPERATOR, 0)
    run = tracing(lanes.pid, plan="detail")
    assert [placed.symbol for placed in run.target.placed] == ["flexnpu_step", "flexnpu_operator"]
    assert lanes.word(OPERATOR) == 1
    lanes.run("embed 0 1 1", "launch 0 97", "sync 0", "embed 0 1 1", "launch 0 97", "sync 0", "launch 1 13")
    run.poll(0.1)
    steps = run.finish()
    assert [s.launches for s in steps if s.stream == lanes.streams[0]] == [98, 98]
    mixes = {event.stream: event.operators for event in run.events if isinstance(event, OperatorMix)}
    assert mixes == {
        lanes.streams[0]: {"aclnnMatmul": 194, "aclnnEmbedding": 2},
        lanes.streams[1]: {"aclnnMatmul": 13},
    }
    lanes.wait_for_word(OPERATOR, 0)
    lanes.run("sync 1")


def waiting_of(pid: int) -> Waiting:
    (table,) = symbols.resolve(pid, [TABLE])[TABLE]
    return Waiting(pid, table)


def test_what_only_a_next_step_would_end_is_told_when_the_lane_is_silent(
    lanes: Lanes, tracing: Callable[..., Any]
) -> None:
    lanes.run("embed 0 1 1", "launch 0 5", "sync 0")
    lanes.wait_for_word(STEP, 0)
    run = tracing(lanes.pid, plan="default")
    table = waiting_of(lanes.pid)
    before = {step.stream: step.t_end for step in table.read()}
    lanes.run("embed 0 1 1", "launch 0 41", "sync 0")
    seen = {step.stream: step for step in table.read()}[lanes.streams[0]]
    assert seen.kind == "maybe"
    assert seen.launches == 42
    assert seen.t_end > before.get(lanes.streams[0], 0)
    until = time.monotonic() + 60
    while not run.events and time.monotonic() < until:
        run.poll(0.1)
    assert [(s.launches, s.ended_by) for s in run.events if isinstance(s, Step)] == [(42, "sync")]
    lanes.run("embed 0 1 1", "sync 0")  # now it is told, and not published again
    assert [s.launches for s in run.finish()] == [42, 1]


@pytest.mark.parametrize("killed", [False, True], ids=["ends", "killed"])
def test_the_last_step_of_a_process_that_is_gone(
    killed: bool, tracing: Callable[..., Any], tmp_path: Path
) -> None:
    lanes = Lanes(tmp_path)
    try:
        run = tracing(lanes.pid, plan="default")
        lanes.run("embed 0 1 37", "launch 0 12", "sync 0")
        if killed:
            run.poll(0.3)  # it is seen in the table, and may go on
            assert not [event for event in run.events if isinstance(event, Step)]
            lanes.process.kill()
        else:
            assert lanes.process.stdin is not None
            lanes.process.stdin.close()
        lanes.process.wait(120)
        run.poll(0.3)
        assert [(s.phase, s.launches) for s in run.finish()] == [("prefill", 13)]
    finally:
        lanes.stop()
