"""Several processes on one emulated device: contention, memory, death. And what idling costs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Generator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from flexnpu import emulator
from tests.common.exit_thread import wait_for_zombie

HERE = Path(__file__).resolve().parent
GIB = 1 << 30


class Child:
    """device.py in one role."""

    def __init__(self, environment: dict[str, str], *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "device.py"), *map(str, arguments)],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def write(self, value: float) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{value}\n")
        self.process.stdin.flush()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the child ended with {self.process.wait(120)}"
        value: dict[str, Any] = json.loads(line)
        return value

    def end(self) -> None:
        assert self.process.wait(120) == 0

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(120)


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


class Contest(NamedTuple):
    """Operators that each contender got done, and the seconds from their start to the last one's end."""

    done: list[int]
    seconds: float


def run_contenders(environment: dict[str, str], children: list[Child], count: int, us: float) -> Contest:
    seconds = 1.5
    mine = [Child(environment, "contend", seconds, us) for _ in range(count)]
    children += mine
    for child in mine:
        assert child.read() == {"ready": True}
    start = time.monotonic() + 0.2
    for child in mine:
        child.write(start)
    told = [child.read() for child in mine]
    for child in mine:
        child.end()
    return Contest([int(one["done"]) for one in told], max(float(one["ended"]) for one in told) - start)


def test_two_processes_share_one_engine(environment: dict[str, str], children: list[Child]) -> None:
    """How much each gets depends on how soon the host runs it: half, on a quiet one."""
    both = run_contenders(environment, children, 2, 1000)
    assert min(both.done) >= 0.1 * max(both.done)  # neither is shut out
    # The engine itself is never given out twice: 1 ms each, one after the other.
    assert sum(both.done) * 1e-3 <= both.seconds + 0.01


@pytest.mark.parametrize("role", ["hold", "leave"])  # with its first thread, and without
def test_memory_is_counted_over_processes_and_comes_back_from_a_killed_one(
    environment: dict[str, str], children: list[Child], role: str
) -> None:
    holder = Child(environment, role, 3 * GIB // 4, 0)
    children.append(holder)
    holder.read()
    if role == "leave":
        wait_for_zombie(holder.process.pid)
    second = Child(environment, "hold", GIB // 2, 0)  # the profile has 1 GiB
    children.append(second)
    assert second.process.wait(120) != 0
    holder.kill()
    third = Child(environment, "hold", GIB // 2, 0)
    children.append(third)
    assert third.read() == {"held": GIB // 2}


def test_the_log_has_what_the_device_did(
    environment: dict[str, str], children: list[Child], tmp_path: Path
) -> None:
    child = Child(environment | {"FLEXNPU_EMU_LOG": str(tmp_path)}, "launch", 6, 300)
    children.append(child)
    child.end()
    (log,) = tmp_path.iterdir()
    assert log.name == f"{child.process.pid}.log"
    rows = sorted(line.split() for line in log.read_text().splitlines())
    operators = [row for row in rows if row[4] == "aclnnTest"]
    assert [row[4] for row in rows if row not in operators] == ["copy-to-device"]
    assert [int(row[1]) - int(row[0]) for row in operators] == [300_000] * 6
    assert {row[2] for row in rows} == {"0"}
    assert sorted(Counter(row[3] for row in operators).values()) == [3, 3]
    # One engine: none begins before the last one's end.
    assert all(int(a[1]) <= int(b[0]) for a, b in pairwise(operators))


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
    assert run_contenders(environment, children, 1, 1000).done[0] > 0


def test_killed_processes_leave_nothing_in_shared_memory(
    environment: dict[str, str], children: list[Child]
) -> None:
    for _ in range(3):
        victim = Child(environment, "hold", GIB // 2, 1000)
        children.append(victim)
        victim.read()
        victim.kill()
    left = [name for name in os.listdir("/dev/shm") if environment["FLEXNPU_EMU_MACHINE"] in name]
    assert not left
    fresh = Child(environment, "hold", GIB, 0)  # a new device, all of it free
    children.append(fresh)
    assert fresh.read() == {"held": GIB}


def test_an_idle_device_neither_spins_nor_polls(environment: dict[str, str], children: list[Child]) -> None:
    child = Child(environment, "idle", 2.0)
    children.append(child)
    seen = child.read()
    assert seen["threads"] > 0
    assert seen["busy"] < 0.5
    assert seen["wakeups"] < 50  # in two seconds
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
        timeout=120,
        check=False,
    )
    assert result.returncode != 0
    assert "FLEXNPU_EMU_PROFILE" in result.stderr
