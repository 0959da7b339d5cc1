"""CANN's host-side libraries, beside the emulated CANN and beside the client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flexnpu import emulator

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RUN = [str(Path(sys.executable).with_name("flexnpu")), "run", "--"]


def run(way: str, request: pytest.FixtureRequest, *command: str) -> subprocess.CompletedProcess[str]:
    """`command` straight on the emulated device or through a daemon."""
    if way == "direct":
        environment = os.environ | emulator.environment()
    else:
        environment, command = request.getfixturevalue("daemon").environment, (*RUN, *command)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("way", ["direct", "interposed"])
def test_they_answer_or_fail_by_name(way: str, request: pytest.FixtureRequest) -> None:
    done = run(way, request, sys.executable, str(HERE / "programs" / "libraries.py"))
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["loaded"] == sorted(
        [
            "c_sec",
            "mmpa",
            "register",
            "ascendalog",
            "ascend_dump",
            "ascend_protobuf",
            "runtime",
            "profapi",
            "platform",
            "atb",
            "metadef",
            "llm_datadist",
        ]
    )
    assert result["strcpy_s"] == [[0, "abc"], [0, "1234567"], [162, ""], [34, ""], [150, ""]]
    assert result["memcpy_s"] == [[0, "abcdefgh"], [0, "abcdefgh"], [162, "\0" * 8]]
    assert result["vsnprintf_s"] == [[5, "12345"], [-1, ""], [-1, "12"]]
    assert result["mmGetTid"] is True
    assert result["registered"] == [0] * 5
    assert result["handles differ"] is True
    assert 0 not in result["refused registrations"]
    for name, (code, message) in result["launches"].items():
        assert code != 0
        assert name in message
    first, second, again = result["MsprofStr2Id"]
    assert first == again != second
    assert result["cores"] == result["local memory"] == 0
    assert "fe::PlatFormInfos::GetCoreNum" in done.stderr
    assert "fe::PlatFormInfos::GetLocalMemSize" in done.stderr
    assert result["pyACL"] == [0, 0, 0, "sixteen bytes ..", 0]
    assert result["pyACL memory"] == [True, 0]
    assert "acl.rt.launch_kernel" in result["pyACL lacks"]


@pytest.mark.parametrize("way", ["direct", "interposed"])
def test_operations_of_atb_compute_what_they_are_defined_as(way: str, request: pytest.FixtureRequest) -> None:
    done = run(way, request, str(ROOT / "build" / "programs" / "atb"))
    assert done.returncode == 0, done.stderr[-3000:]
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names == ["Linear", "Rope", "ReshapeAndCache", "PagedAttention"]
    # What is not served says its name.
    for name in ("GroupTopk", "Rope", "PagedAttention"):
        assert f"FlexNPU: libatb: {name}" in done.stderr


@pytest.mark.torch_npu
@pytest.mark.parametrize("way", ["direct", "interposed"])
def test_operators_of_vllm_ascend_agree_with_torch(way: str, request: pytest.FixtureRequest) -> None:
    done = run(way, request, sys.executable, str(HERE / "programs" / "operators.py"))
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert len(result) == 3 * (2 + 6) + 2
    wrong = {name: error for name, error in result.items() if not (isinstance(error, float) and error <= 4)}
    assert not wrong
