"""Unmodified transformers models on the emulated device: logits, greedy tokens, and the same bits twice."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flexnpu import emulator

pytestmark = pytest.mark.torch_npu
WORKER = Path(__file__).resolve().parent / "model_worker.py"


@functools.cache
def results(family: str, attention: str) -> dict[str, Any]:
    return run(family, attention, "float32", "float16", "bfloat16")


def run(*arguments: str) -> dict[str, Any]:
    result = subprocess.run(
        [sys.executable, str(WORKER), *arguments],
        env=os.environ | emulator.environment() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_model(family: str, attention: str, dtype: str) -> None:
    result = results(family, attention)[dtype]
    assert result["dtype"] == dtype
    # As close to the exact logits as the CPU in the same type is.
    assert result["npu_error"] <= 1.5 * result["cpu_error"] + 1e-6 * result["largest"]
    assert result["static_tokens"] == result["npu_tokens"]
    if dtype == "float32":
        assert result["npu_tokens"] == result["cpu_tokens"]
        assert len(result["npu_tokens"][0]) == 64
        # Something was generated, not one token over and over.
        assert len(set(result["npu_tokens"][1])) > 8


def test_two_processes_give_the_same_bits() -> None:
    first, second = results("llama", "sdpa")["bfloat16"], run("llama", "sdpa", "bfloat16")["bfloat16"]
    assert first["digest"] == second["digest"]
    assert first["npu_tokens"] == second["npu_tokens"]
