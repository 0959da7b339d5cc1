"""Steps of unmodified vLLM-Ascend against its own log, by `benchmarks.vllm_iterations`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.vllm_iterations import CONFIGURATIONS, TARGETS, measure
from tests.vllm.conftest import EVERYTHING

pytestmark = [pytest.mark.ebpf, pytest.mark.torch_npu, pytest.mark.timeout(1800)]

#: (target, configuration). The first ones run wherever vLLM is there.
SOME = [("client", "eager"), ("client", "full"), ("cann", "pieces")]
ALL = [(kind, name) for kind in TARGETS for name in CONFIGURATIONS]


@pytest.mark.parametrize(("kind", "name"), ALL if EVERYTHING else SOME)
def test_steps_are_vllm_s_iterations(vllm: Path, public_folder: Path, kind: str, name: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    measured = measure(vllm, kind, CONFIGURATIONS[name], public_folder, 24, 0, 1.0)
    score = measured.fast
    assert not score.examples
    assert score.iterations > 100
    assert score.right == score.iterations == score.steps
    assert score.spurious == 0
