"""Unmodified torch.distributed with the hccl backend: on emulated devices, directly."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

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


@pytest.mark.parametrize("world", [1, 4])
def test_every_collective_directly(world: int, tmp_path: Path) -> None:
    if importlib.util.find_spec("torch_npu") is None:
        pytest.skip("torch_npu is not installed: pip install 'flexnpu[clients]'")
    environment = (
        os.environ
        | emulator.environment(devices=world, machine=f"collectives-{uuid.uuid4().hex[:8]}")
        | LIMITS
    )
    check(
        finish(
            [
                subprocess.Popen(
                    [
                        sys.executable,
                        str(PROGRAMS / "collectives.py"),
                        str(rank),
                        str(world),
                        str(tmp_path / "store"),
                    ],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                for rank in range(world)
            ]
        )
    )
