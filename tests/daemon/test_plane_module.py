"""What the native plane promises to Python: its errors, and a plane that has not been started."""

from __future__ import annotations

from pathlib import Path

import pytest

_plane = pytest.importorskip("flexnpu.daemon._plane")


def test_a_late_plane_raises_a_timeout() -> None:
    """The control server tells it from other failures by this."""
    assert issubclass(_plane.PlaneTimeout, TimeoutError)


def test_a_plane_that_has_not_been_started_knows_nothing_and_is_not_late(tmp_path: Path) -> None:
    plane = _plane.Plane(str(tmp_path), 0, str(tmp_path / "npu0.sock"))
    snapshot = plane.snapshot()
    assert snapshot == {"sessions": [], "lanes": [], "counters": {}, "age_s": 0.0}
    assert plane.set_gate({"enabled": True}, {7: "decode"}, 5.0) == []
    with pytest.raises(ValueError, match="phase is 'sideways'"):
        plane.set_gate({}, {7: "sideways"}, None)
    with pytest.raises(ValueError, match="no setting 'nonsense'"):
        plane.set_gate({"nonsense": 1}, {}, None)
