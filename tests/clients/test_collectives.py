"""Unmodified torch.distributed with the hccl backend: directly, and through a daemon for each device."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Daemon

from flexnpu import emulator

PROGRAMS = Path(__file__).parent / "programs"

pytestmark = pytest.mark.torch_npu

LIMITS = {"HCCL_CONNECT_TIMEOUT": "60", "HCCL_EXEC_TIMEOUT": "60"}


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


def machine(world: int) -> dict[str, str]:
    """An emulated machine of `world` devices that no other test uses."""
    return emulator.environment(devices=world, machine=f"collectives-{uuid.uuid4().hex[:8]}") | LIMITS


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


@contextmanager
def daemons(world: int, directory: Path) -> Iterator[list[str]]:
    """One daemon for each device of a machine; the command that gives a program all of them."""
    variables = {k: v for k, v in machine(world).items() if k.startswith(("FLEXNPU_EMU", "HCCL"))}
    with ExitStack() as stack:
        for device in range(world):
            stack.callback(Daemon(directory, device=device, variables=variables).stop)
        flexnpu = str(Path(sys.executable).with_name("flexnpu"))
        yield [flexnpu, "run", "--devices", ",".join(map(str, range(world))), "--"]


@pytest.mark.parametrize("world", [1, 4])
def test_every_collective_directly(world: int, tmp_path: Path) -> None:
    check(finish(start("collectives.py", world, tmp_path / "store", os.environ | machine(world))))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_collective_through_a_daemon_a_device(world: int, tmp_path: Path) -> None:
    environment = os.environ | {"FLEXNPU_RUN_DIR": str(tmp_path)} | LIMITS
    with daemons(world, tmp_path) as prefix:
        check(finish(start("collectives.py", world, tmp_path / "store", environment, *prefix)))


def test_a_lost_rank_is_an_error_and_no_hang(tmp_path: Path) -> None:
    environment = os.environ | {"FLEXNPU_RUN_DIR": str(tmp_path)} | LIMITS
    with daemons(2, tmp_path) as prefix:
        ranks = start("lost_rank.py", 2, tmp_path / "store", environment, *prefix)
        ranks[1].communicate(timeout=120)
        assert ranks[1].returncode == -signal.SIGKILL
        told = finish(ranks[:1])[0]
    assert told["error"]
    assert told["seconds"] < 30


def test_two_ranks_on_one_device_are_told_so(tmp_path: Path) -> None:
    environment = os.environ | {"FLEXNPU_RUN_DIR": str(tmp_path)} | LIMITS
    with daemons(1, tmp_path) as prefix:
        for told in finish(start("same_device.py", 2, tmp_path / "store", environment, *prefix)):
            assert told["error"]
            assert told["sum"] == 16
