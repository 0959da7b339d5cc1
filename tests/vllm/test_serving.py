"""Unmodified vLLM-Ascend serves the right tokens: directly on the emulated NPU, and through a daemon."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flexnpu import emulator
from flexnpu.common.ports import free_port
from tests.clients.conftest import Daemon
from tests.vllm.conftest import EVERYTHING
from workloads import vllm_ascend
from workloads.models import TinyModel, ensure

pytestmark = [pytest.mark.torch_npu, pytest.mark.timeout(1800)]

REFERENCE = Path(__file__).parent / "programs" / "reference.py"
RUN = [str(Path(sys.executable).with_name("flexnpu")), "run", "--"]
TOKENS = 24
#: Of unequal lengths, one longer than a block of the cache.
PROMPTS = [[(7 * i * (k + 3) + k) % 509 + 3 for i in range(n)] for k, n in enumerate((5, 150, 33, 64))]

#: (family, mode, way). The first ones run wherever vLLM is there, the others with FLEXNPU_VLLM=1.
SOME = [("qwen2", "eager", "interposed"), ("qwen2", "full", "interposed"), ("qwen2", "piecewise", "direct")]
ALL = [
    (family, mode, way)
    for family in ("qwen2", "qwen3", "llama")
    for mode in vllm_ascend.MODES
    for way in ("direct", "interposed")
]


@functools.cache
def model(family: str) -> Path:
    # Heads of 64: smaller ones the engine refuses.
    return ensure(TinyModel(family, hidden=256, heads=4, kv_heads=2, intermediate=512))


@functools.cache
def reference(family: str) -> list[list[int]]:
    done = subprocess.run(
        [sys.executable, str(REFERENCE), str(model(family)), str(TOKENS)],
        input=json.dumps(PROMPTS),
        # transformers loads torch_npu where it is installed; nothing is put on the device.
        env=os.environ | emulator.environment() | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers: list[list[int]] = json.loads(done.stdout)
    return answers


@pytest.mark.parametrize(("family", "mode", "way"), ALL if EVERYTHING else SOME)
def test_greedy_tokens_are_those_of_transformers(
    vllm: Path, request: pytest.FixtureRequest, tmp_path: Path, family: str, mode: str, way: str
) -> None:
    expected = reference(family)
    assert len({token for answer in expected for token in answer}) > 8
    port = free_port()
    # Prompts in pieces of 128 tokens: one of them takes two steps, beside others' decode steps.
    arguments = vllm_ascend.command(
        vllm, model(family), port, mode, "--max-num-batched-tokens", "128", "--no-enable-prefix-caching"
    )
    daemon: Daemon | None = request.getfixturevalue("daemon") if way == "interposed" else None
    prefix = RUN if daemon else []
    environment = daemon.environment if daemon else os.environ | emulator.environment()
    with vllm_ascend.Server(arguments, port, environment, tmp_path / "vllm.log", prefix) as server:
        server.wait()
        alone = [server.complete(prompt, TOKENS) for prompt in PROMPTS[:2]]
        assert alone == expected[:2]
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            together = list(pool.map(lambda prompt: server.complete(prompt, TOKENS), PROMPTS))
        assert together == expected
    if daemon:
        status = daemon.wait_for(lambda s: not s.sessions)
        assert status.counters["launches"] > 1000
