"""Operators without a body, as a torch_npu program meets them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from flexnpu import emulator

pytestmark = pytest.mark.torch_npu

PROGRAM = """
import torch, torch_npu
a = torch.ones(3, 4).npu()
torch.nn.functional.avg_pool2d(a.reshape(1, 1, 3, 4), 2)
torch.npu.synchronize()
print("still computing", (a + 1).sum().item())
"""


def run(missing: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | emulator.environment(missing=missing),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_error_names_the_operator() -> None:
    result = run("error")
    assert result.returncode != 0
    assert "aclnnAvgPool2d has no body in the emulated CANN" in result.stderr
    assert "100024" in result.stderr


def test_missing_time_runs_it_for_its_time() -> None:
    result = run("time")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "still computing 24.0" in result.stdout
