"""Unmodified torch.distributed with the hccl backend: directly, and through a daemon for each device."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import Machine

PROGRAMS = Path(__file__).parent / "programs"

pytestmark = pytest.mark.torch_npu

LIMITS = {"HCCL_CONNECT_TIMEOUT": "150", "HCCL_EXEC_TIMEOUT": "150"}


def finish(ranks: list[subprocess.Popen[str]], timeout: float = 200) -> list[dict[str, Any]]:
    """What each rank prints last; fails, and ends all of them, when one does not end well."""
    deadline = time.monotonic() + timeout
    results = []
    try:
        for rank in ranks:
            out, errors = rank.communicate(timeout=max(deadline - time.monotonic(), 1))
            assert rank.returncode == 0, errors[-4000:]
            results.append(json.loads(out.strip().splitlines()[-1]))
    finally:
        for rank in ranks:
            rank.kill()
    return results


def check(results: list[dict[str, Any]]) -> None:
    world = len(results)
    for number, result in enumerate(results):
        assert result["rank"] == number
        done = result["done"]
        assert "data-parallel step" in done
        assert "all_to_all" in done
        assert "all_reduce torch.bfloat16" in done
        assert ("reduce" in done) == (number == 0)
        assert ("batch_isend_irecv" in done) == (world > 1)
        assert ("all_reduce of a group" in done) == (world > 1 and number < 2)


def start(
    program: str, world: int, store: Path, environment: Mapping[str, str], *prefix: str
) -> list[subprocess.Popen[str]]:
    """`program`, once for each rank."""
    command = [*prefix, sys.executable, str(PROGRAMS / program)]
    return [
        subprocess.Popen(
            [*command, str(rank), str(world), str(store)],
            env=dict(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def interposed(machine: Machine, program: str, world: int) -> list[subprocess.Popen[str]]:
    """The same through the daemons of `machine`."""
    return start(program, world, machine.directory / "store", machine.environment | LIMITS, *machine.prefix)


@pytest.mark.parametrize("world", [1, 4])
def test_every_collective_directly(world: int, tmp_path: Path) -> None:
    variables = Machine(tmp_path, world, LIMITS).variables
    check(finish(start("collectives.py", world, tmp_path / "store", os.environ | variables)))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_collective_through_a_daemon_a_device(world: int, tmp_path: Path) -> None:
    machine = Machine(tmp_path, world, LIMITS)
    with machine.daemons():
        check(finish(interposed(machine, "collectives.py", world)))


def test_a_lost_rank_is_an_error_and_no_hang(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 2, LIMITS)
    with machine.daemons():
        ranks = interposed(machine, "lost_rank.py", 2)
        ranks[1].communicate(timeout=120)
        assert ranks[1].returncode == -signal.SIGKILL
        told = finish(ranks[:1])[0]
    assert told["error"]
    assert told["seconds"] < 120  # before any limit is over


def test_two_ranks_on_one_device_are_told_so(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 1, LIMITS)
    with machine.daemons():
        for told in finish(interposed(machine, "same_device.py", 2)):
            assert told["error"]
            assert told["sum"] == 16
