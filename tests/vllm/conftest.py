"""vLLM's tests run where `make vllm` has made its venv. `FLEXNPU_VLLM=1 make test` makes it before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workloads import vllm_ascend

#: Whether all combinations run, or a few that stand for them.
EVERYTHING = os.environ.get("FLEXNPU_VLLM") == "1"
#: For tests of which nothing stands for the rest.
only_with_everything = pytest.mark.skipif(
    not EVERYTHING, reason="no vLLM test of this kind without FLEXNPU_VLLM=1"
)


@pytest.fixture(scope="session")
def vllm() -> Path:
    """The venv."""
    try:
        return vllm_ascend.find()
    except vllm_ascend.VllmError as error:
        if EVERYTHING:
            raise
        # Four gigabytes are nobody's duty: tests/conftest.py excuses a skip with these first words.
        pytest.skip(f"no vLLM: {error}, or FLEXNPU_VLLM=1 make test")
