"""The client says a step's phase to the gate, the tracer says it to people: they must not contradict."""

from __future__ import annotations

import ctypes
import struct
import subprocess
from pathlib import Path

import pytest

from probes.steps.client_steps import RawStep, step_of
from probes.steps.phases import classify

PROGRAM = Path(__file__).resolve().parents[2] / "build" / "programs" / "step_phases"
COUNT = 4001
_VERDICT = struct.Struct("=3I")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_the_client_says_is_what_the_tracer_says(seed: int) -> None:
    told = subprocess.run([PROGRAM, str(seed), str(COUNT)], capture_output=True, check=True).stdout
    size = ctypes.sizeof(RawStep) + _VERDICT.size
    assert len(told) == COUNT * size
    said = 0
    for at in range(0, len(told), size):
        raw = RawStep.from_buffer_copy(told, at)
        prefills, decodes, tokens = _VERDICT.unpack_from(told, at + ctypes.sizeof(RawStep))
        verdict = classify(step_of(1, raw).evidence)
        phase = {(1, 0): "prefill", (0, 1): "decode", (1, 1): "mixed", (0, 0): None}[prefills, decodes]
        if phase is None:
            continue
        said += 1
        assert phase == verdict.phase, verdict
        # Tokens of padding sequences are left out where the tracer sees them.
        assert tokens == verdict.tokens or (verdict.padded and tokens > (verdict.tokens or 0)), verdict
    assert said > COUNT // 2
