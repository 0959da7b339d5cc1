"""flexnpu.emulator: where the libraries lie and the environment that uses them."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from flexnpu import emulator

LIBRARIES = [
    "libacl_rt.so",
    "libascendcl.so",
    "libnnopbase.so",
    "libopapi.so",
    "libacl_op_compiler.so",
    "libhccl.so",
    "libge_runner.so",
    "libgraph.so",
    "libacl_tdt_channel.so",
]


@pytest.mark.parametrize("name", LIBRARIES)
def test_library_loads_by_itself(name: str) -> None:
    code = f"import ctypes; ctypes.CDLL({name!r}, mode=2)"  # RTLD_NOW
    subprocess.run(
        [sys.executable, "-c", code], env=os.environ | emulator.environment(), check=True, timeout=60
    )


def test_environment_names_existing_places() -> None:
    variables = emulator.environment()
    home = Path(variables["ASCEND_HOME_PATH"])
    assert (home / "lib64" / "libopapi.so").exists()
    assert Path(variables["ASCEND_OPP_PATH"]).is_dir()
    assert variables["LD_LIBRARY_PATH"].split(":")[0] == str(emulator.lib_dir())


def test_environment_refuses_what_the_libraries_would() -> None:
    with pytest.raises(emulator.EmulatorError, match="mode 'fast'"):
        emulator.environment("fast")
    with pytest.raises(emulator.EmulatorError, match="ascend910c-die"):
        emulator.environment(profile="no-such-chip")
    with pytest.raises(emulator.EmulatorError, match="missing"):
        emulator.environment(missing="maybe")
    with pytest.raises(emulator.EmulatorError, match="devices"):
        emulator.environment(devices=0)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FLEXNPU_EMU_MODE", "fast"),
        ("FLEXNPU_EMU_MISSING", "maybe"),
        ("FLEXNPU_EMU_DEVICES", "none"),
        ("FLEXNPU_EMU_PROFILE", "no-such-chip"),
        ("FLEXNPU_EMU_MACHINE", "a/b"),
    ],
)
def test_a_wrong_variable_is_named_on_stderr_and_no_call_works(variable: str, value: str) -> None:
    code = (
        "import ctypes; r = ctypes.CDLL('libacl_rt.so'); "
        "raise SystemExit(0 if r.aclInit(None) != 0 and r.aclrtSetDevice(0) != 0 else 1)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | emulator.environment() | {variable: value},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0
    assert value in result.stderr


def test_profile_of_the_die_has_the_calibrated_figures() -> None:
    profile = tomllib.loads(emulator.profile_path("ascend910c-die").read_text())
    assert profile["compute"]["fp16_tflops"] == 376
    assert profile["compute"]["bf16_tflops"] == 353.9
    assert profile["compute"]["efficiency"] == 0.7
    assert profile["memory"] == {"size_gib": 64.0, "rate_tibps": 1.6, "efficiency": 0.6, "l2_mib": 192.0}
    assert profile["static_us"] == {"mma": 5.0, "vector": 2.0}
