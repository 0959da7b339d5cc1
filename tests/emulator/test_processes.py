"""Several processes on one emulated device: contention, memory, death. And what idling costs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from flexnpu import emulator

HERE = Path(__file__).resolve().parent
GIB = 1 << 30


class Child:
    """device.py in one role."""

    def __init__(self, environment: dict[str, str], *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "device.py"), *map(str, arguments)],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            text=True,
        )

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the child ended with {self.process.wait(10)}"
        value: dict[str, Any] = json.loads(line)
        return value

    def end(self) -> None:
        assert self.process.wait(60) == 0

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)


@pytest.fixture
def environment() -> dict[str, str]:
    try:
        return emulator.environment(
            "time", str(HERE / "unit.toml"), machine=f"processes-{uuid.uuid4().hex[:8]}"
        )
    except emulator.EmulatorError as error:
        pytest.fail(str(error))


@pytest.fixture
def children() -> Generator[list[Child], None, None]:
    started: list[Child] = []
    yield started
    for child in started:
        if child.process.poll() is None:
            child.kill()


def run_contenders(environment: dict[str, str], children: list[Child], count: int, us: float) -> list[int]:
    seconds = 1.5
    start = time.monotonic() + 2.0
    mine = [Child(environment, "contend", start, seconds, us) for _ in range(count)]
    children += mine
    for child in mine:
        assert child.read() == {"ready": True}
    assert time.monotonic() < start, "the children were too slow to start together"
    done = [int(child.read()["done"]) for child in mine]
    for child in mine:
        child.end()
    return done


def test_two_processes_each_get_about_half(environment: dict[str, str], children: list[Child]) -> None:
    (alone,) = run_contenders(environment, children, 1, 1000)
    both = run_contenders(environment, children, 2, 1000)
    assert 0.75 * 1500 <= alone <= 1.05 * 1500  # 1 ms each, for 1.5 s
    for one in both:
        assert 0.35 * alone <= one <= 0.65 * alone
    # The engine itself is never given out twice: together they do no more than one alone could.
    assert sum(both) <= 1.05 * 1500


def test_memory_is_counted_over_processes_and_comes_back_from_a_killed_one(
    environment: dict[str, str], children: list[Child]
) -> None:
    holder = Child(environment, "hold", 3 * GIB // 4, 0)
    children.append(holder)
    holder.read()
    second = Child(environment, "hold", GIB // 2, 0)  # the profile has 1 GiB
    children.append(second)
    assert second.process.wait(30) != 0
    holder.kill()
    third = Child(environment, "hold", GIB // 2, 0)
    children.append(third)
    assert third.read() == {"held": GIB // 2}


def test_a_killed_process_does_not_wedge_the_engine(
    environment: dict[str, str], children: list[Child]
) -> None:
    survivor = Child(environment, "hold", 1, 0)  # keeps the device's state alive
    children.append(survivor)
    survivor.read()
    for _ in range(3):
        victim = Child(environment, "hold", 1, 5000)
        children.append(victim)
        victim.read()
        victim.kill()
    (done,) = run_contenders(environment, children, 1, 1000)
    assert done >= 0.75 * 1500


def test_killed_processes_leave_nothing_in_shared_memory(
    environment: dict[str, str], children: list[Child]
) -> None:
    before = set(os.listdir("/dev/shm"))
    for _ in range(3):
        victim = Child(environment, "hold", GIB // 2, 1000)
        children.append(victim)
        victim.read()
        victim.kill()
    left = {name for name in set(os.listdir("/dev/shm")) - before if "flexnpu-emu" in name}
    assert not left
    fresh = Child(environment, "hold", GIB, 0)  # a new device, all of it free
    children.append(fresh)
    assert fresh.read() == {"held": GIB}


def test_an_idle_device_takes_no_processor_time(environment: dict[str, str], children: list[Child]) -> None:
    child = Child(environment, "idle", 2.0)
    children.append(child)
    assert child.read()["cpu_share"] < 0.005
    child.end()


def test_processes_that_disagree_about_the_device_are_told(
    environment: dict[str, str], children: list[Child]
) -> None:
    holder = Child(environment, "hold", 1, 0)
    children.append(holder)
    holder.read()
    other = emulator.environment("time", "demo", machine=environment["FLEXNPU_EMU_MACHINE"])
    result = subprocess.run(
        [sys.executable, str(HERE / "device.py"), "hold", "1", "0"],
        env=os.environ | other,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode != 0
    assert "FLEXNPU_EMU_PROFILE" in result.stderr
