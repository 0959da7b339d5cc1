"""Every step of unmodified torch_npu and transformers is classified right: on CANN (emulated), and through
FlexNPU's client."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flexnpu import emulator
from flexnpu.control import paths
from probes.steps.tracer import find_processes

pytestmark = [pytest.mark.ebpf, pytest.mark.torch_npu]

PROGRAM = Path(__file__).parent / "programs" / "labelled.py"
Truth = list[tuple[str, int, int]]
"""(phase, tokens, batch) of each forward pass."""


class Labelled:
    """`programs/labelled.py`, running."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.until("ready")

    def until(self, word: str) -> Truth:
        assert self.process.stdout is not None
        truth: Truth = []
        for line in self.process.stdout:
            match line.split():
                case ["truth", batch, length, phase]:
                    truth.append((phase, int(batch) * int(length), int(batch)))
                case [first, *_] if first == word:
                    return truth
        raise AssertionError(f"the program ended: {self.process.wait()}")

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(120)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture(params=["cann", "client"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Labelled]]:
    """Starts the program on one of the two targets."""
    environment = os.environ | {"FLEXNPU_RUN_DIR": str(tmp_path), "TOKENIZERS_PARALLELISM": "false"}
    prefix: list[str] = []
    daemon = None
    if request.param == "cann":
        environment |= emulator.environment()
    else:
        tools = Path(sys.executable).parent
        daemon = subprocess.Popen(
            [str(tools / "flexnpud"), "--device", "0", "--emulated"],
            env=environment,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while not paths.control_socket(0, tmp_path).exists():
            assert daemon.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        prefix = [str(tools / "flexnpu"), "run", "--"]
    made: list[Labelled] = []

    def run(*arguments: str, **variables: str) -> Labelled:
        command = [*prefix, sys.executable, str(PROGRAM), *arguments]
        made.append(Labelled(command, environment | variables))
        return made[-1]

    yield run
    for one in made:
        one.stop()
    if daemon is not None:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(120)


@pytest.mark.parametrize("plan", ["default", "detail"])
@pytest.mark.parametrize(
    ("attention", "variables"),
    [("sdpa", {}), ("eager", {}), ("sdpa", {"TASK_QUEUE_ENABLE": "0"})],
    ids=["sdpa", "eager", "no-queue"],
)
def test_every_step_is_classified_right(
    start: Callable[..., Labelled],
    tracing: Callable[..., Any],
    attention: str,
    variables: dict[str, str],
    plan: str,
) -> None:
    program = start("--attention", attention, **variables)
    run = tracing(program.process.pid, plan=plan)
    program.go()
    truth = program.until("end")
    run.poll(0.5)
    steps = run.finish()
    model = [step for step in steps if step.phase != "other"]
    assert len(truth) > 60
    assert [(step.phase, step.tokens, step.batch) for step in model] == truth
    assert all(step.confidence == 1.0 for step in model)
    counted = [step.launches for step in model if step.launches is not None]
    assert all(launches > 20 for launches in counted)
    assert plan == "default" or len(counted) == len(model)
    # A step ends before the next begins, and with the wait for its result.
    assert all(a.t_end_ns <= b.t_start_ns for a, b in zip(model, model[1:], strict=False))  # noqa: RUF007
    counts = run.losses.counts
    assert not any(
        counts[name] for name in ("steps_lost", "unclassified", "reopened", "map_full", "no_first_call")
    )


def test_the_program_is_found_and_the_daemon_is_not_taken_for_one(start: Callable[..., Labelled]) -> None:
    program = start("--requests", "1")
    found = find_processes()
    assert program.process.pid in found
    for pid in found:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        assert not any(argument.endswith(b"/flexnpud") for argument in arguments)
