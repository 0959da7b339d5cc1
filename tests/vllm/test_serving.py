"""Unmodified vLLM-Ascend serves the right tokens: directly on the emulated NPU, and through a daemon."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.vllm.conftest import EVERYTHING
from tests.vllm.engines import WAYS, host, model, prompts, reference
from workloads import vllm_ascend
from workloads.models import ARCHITECTURES

pytestmark = [pytest.mark.torch_npu, pytest.mark.timeout(1800)]

TOKENS = 24
#: Of unequal lengths, one longer than a block of the cache.
PROMPTS = prompts(5, 150, 33, 64)

#: (family, mode, way). The first ones run wherever vLLM is there, the others with FLEXNPU_VLLM=1.
SOME = [("qwen2", "eager", "interposed"), ("qwen2", "full", "interposed"), ("qwen2", "piecewise", "direct")]
ALL = [(family, mode, way) for family in ARCHITECTURES for mode in vllm_ascend.MODES for way in WAYS]


@pytest.mark.parametrize(("family", "mode", "way"), ALL if EVERYTHING else SOME)
def test_greedy_tokens_are_those_of_transformers(
    vllm: Path, tmp_path: Path, family: str, mode: str, way: str
) -> None:
    expected = reference(model(family), PROMPTS, TOKENS).tokens
    assert len({token for answer in expected for token in answer}) > 8
    # Prompts in pieces of 128 tokens: one of them takes two steps, beside others' decode steps.
    options = ("--max-num-batched-tokens", "128", "--no-enable-prefix-caching")
    with host(way, tmp_path) as machine:
        with machine.serve(vllm, model(family), mode, *options) as server:
            server.wait()
            alone = [server.complete(prompt, TOKENS) for prompt in PROMPTS[:2]]
            assert alone == expected[:2]
            with ThreadPoolExecutor(len(PROMPTS)) as pool:
                together = list(pool.map(lambda prompt: server.complete(prompt, TOKENS), PROMPTS))
            assert together == expected
        machine.check_used()
