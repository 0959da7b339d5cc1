"""The unmodified onnxruntime-cann wheel: interposed it gets as far as directly, errors included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flexnpu import emulator

PROGRAM = Path(__file__).parent / "programs" / "onnx_add.py"
#: It needs NumPy 1, so it has a folder of its own beside the other programs' packages.
PACKAGES = Path(sys.prefix) / "onnxruntime-cann"


def run(command: list[str], env: Mapping[str, str], graph: str) -> dict[str, Any]:
    done = subprocess.run(
        [*command, sys.executable, str(PROGRAM), graph],
        env={**env, "PYTHONPATH": str(PACKAGES)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(result, dict)
    return result


@pytest.mark.skipif(not (PACKAGES / "onnxruntime").is_dir(), reason="make setup installs onnxruntime-cann")
@pytest.mark.parametrize("graph", ["0", "1"])
def test_it_gets_as_far_as_directly(daemon: Any, graph: str) -> None:
    direct = run([], os.environ | emulator.environment(), graph)
    interposed = run([str(Path(sys.executable).with_name("flexnpu")), "run", "--"], daemon.environment, graph)
    assert interposed == direct
    assert "CANNExecutionProvider" in direct["providers"]
    assert direct["session"][0] == "CANNExecutionProvider"
    if graph == "0":
        assert direct["right"], direct
    else:
        assert "aclgrphParseONNXFromMem" in direct["error"]
