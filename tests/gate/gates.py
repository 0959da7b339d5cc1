"""Gates for tests, through the Python binding."""

from __future__ import annotations

import pytest

_gate = pytest.importorskip("flexnpu.gate._gate", reason="run make build")
Phase = _gate.Phase

MS = 1_000_000
LONG = 10**15


def bucket(quarter_octaves: int, salt: int = 0) -> int:
    """A bucket whose guessed cost is 4 us + 2^(q/4) bytes over 1 TB/s: 40 is 4 us, 108 is 138 us, 114 is
    384 us.
    """
    return salt << 8 | quarter_octaves


def protecting(**changes: float) -> object:
    return _gate.Settings(**{"enabled": True, "lease_until_ns": LONG, **changes})


def drain(gate: object, now: int) -> list[object]:
    out = []
    while (decision := gate.next(now)) is not None:  # type: ignore[attr-defined]
        out.append(decision)
    return out


def pair(target_us: float = 0, **changes: float) -> object:
    """A gate with prefill lane 1 and decode lane 2, protecting."""
    gate = _gate.Gate()
    for lane in (1, 2):
        assert gate.add_lane(lane)
    gate.set_phase(1, Phase.Prefill)
    gate.set_phase(2, Phase.Decode, target_us)
    gate.set_settings(0, protecting(**changes))
    return gate
