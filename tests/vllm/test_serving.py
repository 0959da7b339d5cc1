"""Unmodified vLLM-Ascend serves the right tokens: directly on the emulated NPU, and through a daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vllm.conftest import EVERYTHING
from tests.vllm.engines import WAYS, Answers, host, model
from workloads import vllm_ascend
from workloads.models import ARCHITECTURES

pytestmark = [pytest.mark.torch_npu, pytest.mark.timeout(1800)]

#: (family, mode, way). The first ones run wherever vLLM is there, the others with FLEXNPU_VLLM=1.
SOME = [("qwen2", "eager", "interposed"), ("qwen2", "full", "interposed"), ("qwen2", "piecewise", "direct")]
ALL = [(family, mode, way) for family in ARCHITECTURES for mode in vllm_ascend.MODES for way in WAYS]


@pytest.mark.parametrize(("family", "mode", "way"), ALL if EVERYTHING else SOME)
def test_greedy_tokens_are_those_of_transformers(
    vllm: Path, tmp_path: Path, family: str, mode: str, way: str
) -> None:
    answers = Answers.of(family)
    # Prompts in pieces of 128 tokens: one of them takes two steps, beside others' decode steps.
    options = ("--max-num-batched-tokens", "128", "--no-enable-prefix-caching")
    with host(way, tmp_path) as machine:
        with machine.serve(vllm, model(family), mode, *options) as server:
            server.wait()
            answers.check(server.complete)
        machine.check_used()
