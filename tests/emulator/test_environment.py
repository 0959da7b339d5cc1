"""flexnpu.emulator: where the libraries lie and the environment that uses them."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from flexnpu import emulator
from flexnpu.emulator.clock import Clock

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
        ("FLEXNPU_EMU_SLOWDOWN", "0"),
        ("FLEXNPU_EMU_SLOWDOWN", "nan"),
        ("FLEXNPU_EMU_SLOWDOWN", "2x"),
        ("FLEXNPU_EMU_SLOWDOWN", "/nonexistent/clock"),
        ("FLEXNPU_EMU_SLOWDOWN", "/dev/null"),
        ("FLEXNPU_EMU_LOG", "/nonexistent"),
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


LINK_STEPS = """
import ctypes, sys
library = ctypes.CDLL("libacl_rt.so")
rate, step_ns = ctypes.c_double(), ctypes.c_double()
for _ in sys.stdin:
    library.flexnpu_emu_link(ctypes.byref(rate), ctypes.byref(step_ns))
    print(rate.value, step_ns.value, flush=True)
"""


def _link(slowdown: float | str, fds: tuple[int, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", LINK_STEPS],
        env=os.environ | emulator.environment(slowdown=slowdown),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=fds,
    )


def _ask(program: subprocess.Popen[str]) -> tuple[float, float]:
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdin.write("now\n")
    program.stdin.flush()
    rate, step_ns = program.stdout.readline().split()
    return float(rate), float(step_ns)


def test_a_slowdown_is_one_factor_on_the_modelled_times() -> None:
    with _link(4.0) as program:
        assert _ask(program) == (pytest.approx(196e9 / 4), pytest.approx(4 * 2000.0))
        program.communicate()


def test_a_clock_changes_the_speed_while_a_program_runs() -> None:
    with Clock() as clock, _link(clock.path, (clock.fd,)) as program:
        for slowdown in (1.0, 0.01, 8.0):
            clock.set(slowdown)
            assert _ask(program) == (pytest.approx(196e9 / slowdown), pytest.approx(slowdown * 2000.0))
        program.communicate()


@pytest.mark.parametrize("slowdown", [0.0, -1.0, float("nan"), float("inf"), 1e4])
def test_a_clock_refuses_what_is_no_speed(slowdown: float) -> None:
    with Clock(2.0) as clock:
        with pytest.raises(ValueError, match="slowdown"):
            clock.set(slowdown)
        assert os.pread(clock.fd, 16, 0) == struct.pack("=d", 2.0)
