"""Events while the gate holds operators back: a short run. `python -m benchmarks.events` makes a million."""

from __future__ import annotations

import pytest

from benchmarks import events


@pytest.mark.parametrize("direct", [False, True])
def test_no_event_is_seen_before_its_record(direct: bool) -> None:
    result = events.measure(20_000, direct=direct)
    assert {kind: result[kind] for kind in events.EARLY} == dict.fromkeys(events.EARLY, 0)
    assert result["counters_exact"]
    assert result["waits"] == result["events"] >= 20_000
    assert result["queries"] > result["complete"] > 0  # some were asked too early, and told so
    if not direct:
        assert result["gate_held"] > 20
        assert result["refused"] == result["vendor_errors"] == 0
