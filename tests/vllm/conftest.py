"""vLLM's tests run where `make vllm` has made its venv, or FLEXNPU_VLLM=1 makes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.conftest import Daemon, daemon
from workloads import vllm_ascend

__all__ = ["Daemon", "daemon"]

ROOT = Path(__file__).parents[2]
#: Whether all combinations run, or a few that stand for them.
EVERYTHING = os.environ.get("FLEXNPU_VLLM") == "1"


@pytest.fixture(scope="session")
def vllm() -> Path:
    """The venv."""
    if EVERYTHING:
        subprocess.run([sys.executable, str(ROOT / "scripts" / "vllm")], check=True)
    try:
        return vllm_ascend.find()
    except vllm_ascend.VllmError as error:
        pytest.skip(f"{error}, or FLEXNPU_VLLM=1")
