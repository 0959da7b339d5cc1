"""Unmodified torch_npu from PyPI directly on the emulated CANN."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flexnpu import emulator

PROGRAMS = Path(__file__).resolve().parent / "programs"

pytestmark = pytest.mark.torch_npu


def run(program: str, **how: Any) -> dict[str, Any]:
    pytest.importorskip("transformers")
    result = subprocess.run(
        [sys.executable, str(PROGRAMS / program)],
        env=os.environ | emulator.environment(**how),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    value: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return value


def test_compute_agrees_with_cpu_torch() -> None:
    result = run("direct_compute.py")
    assert result["device"].startswith("Ascend910")
    assert result["memory"][1] == 64 << 30
    assert result["matmul"]["torch.float32"] < 1e-5
    assert result["matmul"]["torch.float16"] < 2e-3
    assert result["matmul"]["torch.bfloat16"] < 1.6e-2
    assert result["llama"]["logits"] < 1e-4
    assert result["llama"]["tokens_equal"]
    assert result["streams"]["sum"] == 11 * 512 * 512
    assert result["streams"]["done"]
    assert result["streams"]["ms"] > 11 * 2e-3  # eleven operators of at least 2 us
    assert "out of memory" in result["out_of_memory"]
    assert result["after"] == 12  # the device works on after it


def test_time_follows_the_roofline_and_touches_no_memory() -> None:
    result = run("direct_time.py", mode="time")
    # static + max(flops / (peak * efficiency), bytes / (rate * efficiency)) of the profile.
    square = 5 + 2 * 4096**3 / (376e12 * 0.7) * 1e6
    assert statistics.median(result["square_us"]) == pytest.approx(square, rel=1e-3)
    thin = 5 + 2 * 4096 * (4096 + 2) / (1.6 * 2**40 * 0.6) * 1e6
    assert statistics.median(result["thin_us"]) == pytest.approx(thin, rel=1e-2)
    # A prefill of 2048 tokens takes at least its products' time: 2 flops for each weight and token.
    weights = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 32000 * 4096
    assert statistics.median(result["prefill_us"]) > 2 * weights * 2048 / (376e12 * 0.7) * 1e6
    assert statistics.median(result["prefill_us"]) < 4 * 2 * weights * 2048 / (376e12 * 0.7) * 1e6
    assert result["allocated_gib"] > 12
    assert result["grown_mib"] < 200


MISSING = """
import torch, torch_npu
x = torch.ones(2, 8, 8, device="npu:0")
try:
    print(torch.linalg.inv(x).shape)
except RuntimeError as error:
    print("ERROR", error)
x = torch.ones(2, 3, 8, 8, device="npu:0")
try:
    y = torch.nn.functional.grid_sample(x, torch.zeros(2, 4, 4, 2, device="npu:0"), align_corners=False)
    torch.npu.synchronize()
    print("SHAPE", tuple(y.shape))
except RuntimeError as error:
    print("ERROR", error)
"""


@pytest.mark.parametrize("missing", ["error", "time"])
def test_an_operator_without_a_body_is_named_or_takes_its_time(missing: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", MISSING],
        env=os.environ | emulator.environment(missing=missing),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    if missing == "error":
        assert "aclnnGridSampler2D" in result.stdout
    else:
        assert "SHAPE (2, 3, 4, 4)" in result.stdout
