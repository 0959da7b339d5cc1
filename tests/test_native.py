"""Runs each C++ unit-test executable that the build made."""

from __future__ import annotations

import os
import subprocess
import uuid
from pathlib import Path

import pytest

UNIT = Path(__file__).resolve().parent.parent / "build" / "unit"
BINARIES = sorted(path for path in UNIT.glob("*") if path.is_file() and path.stat().st_mode & 0o100)


def test_the_build_made_unit_tests() -> None:
    assert BINARIES, f"no test executable under {UNIT}: run make build"


@pytest.mark.parametrize("binary", BINARIES, ids=lambda path: path.name)
def test_native(binary: Path) -> None:
    # Each has devices of its own: their sizes differ from test to test.
    environment = {**os.environ, "FLEXNPU_EMU_MACHINE": f"native-{uuid.uuid4().hex[:12]}"}
    result = subprocess.run(
        [str(binary)], capture_output=True, text=True, timeout=240, check=False, env=environment
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
