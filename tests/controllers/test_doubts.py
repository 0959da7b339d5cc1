"""What a controller believes is checked before it acts: beliefs that do not add up, and those that do."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest

from controllers.doubts import doubt
from controllers.loop import Loop
from controllers.policies import Decision
from controllers.policies.protect_decode import ProtectDecode
from controllers.state import ControllerState
from flexnpu.control.messages import DOUBTS, GateOwner
from probes.feed.events import Step
from tests.collectors.scripted import MS, step
from tests.controllers.lanes import lane

D, P = (100, 0x10), (200, 0x20)


def decode(start_ms: float, ms: float, launches: int | None = 87, graphs: int = 0) -> Step:
    pid, stream = D
    return step(
        int(start_ms * MS),
        int((start_ms + ms) * MS),
        pid=pid,
        stream=stream,
        launches=launches,
        graph_launches=graphs,
    )


def flood(start_ms: float, count: int, ms: float = 80) -> list[Step]:
    pid, stream = P
    starts = [start_ms + i * (ms + 2) for i in range(count)]
    return [
        step(int(at * MS), int((at + ms) * MS), "prefill", pid=pid, stream=stream, tokens=1000, launches=87)
        for at in starts
    ]


def decided(
    steps: list[Step], device: Callable[[float], float] = lambda stepped_us: 0.7 * stepped_us, **policy: Any
) -> Decision:
    """What is decided when the daemon has been asked every 100 ms. `device`: its sum of the decode lane's
    device time, us, by that of its steps."""
    state, stepped_us, launched, turn_ms = ControllerState(), 0.0, 0, 0.0
    state.update([lane(1, D, 0, 0), lane(2, P, 0, 0)])
    for one in sorted(steps, key=lambda one: one.t_end_ns):
        state.add(one)
        if (one.pid, one.stream) == D:
            stepped_us += one.duration_us
            launched += (one.launches or 0) + one.graph_launches
        if one.t_end_ns >= turn_ms * MS:
            turn_ms = one.t_end_ns / MS + 100
            state.update([lane(1, D, device(stepped_us), launched), lane(2, P, 0, 0)])
    now = max(one.t_end_ns for one in steps)
    state.settle(now)
    return ProtectDecode(lease_s=2, **policy).decide(state, now)


def alone_and_flooded(
    alone: Callable[[float], list[Step]], flooded: Callable[[float], list[Step]]
) -> list[Step]:
    """Two seconds of decode steps alone, then four under a flood."""
    return (
        [one for i in range(40) for one in alone(i * 50)]
        + [one for i in range(40) for one in flooded(2000 + i * 100)]
        + flood(2000, 50)
    )


def test_steps_that_add_up_are_acted_on() -> None:
    decision = decided(alone_and_flooded(lambda at: [decode(at, 43)], lambda at: [decode(at, 90)]))
    assert decision.doubt is None
    assert decision.gate is not None
    assert decision.gate.decode_target_us == pytest.approx(43_000 * 1.1)


@pytest.mark.parametrize(
    ("launches", "ms"),
    [((5, 82), (4, 39)), ((7, 80), (3, 40)), ((18, 69), (9, 34))],
    ids=["after 5", "after 7", "after 18"],
)
def test_steps_that_another_thread_s_wait_has_cut(launches: tuple[int, int], ms: tuple[float, float]) -> None:
    def cut(at: float) -> list[Step]:
        return [decode(at, ms[0], launches[0]), decode(at + ms[0], ms[1], launches[1])]

    decision = decided(alone_and_flooded(cut, lambda at: [decode(at, 90)]))
    assert decision.gate is None
    assert decision.doubt == "launches"
    assert "not acted on" in decision.why
    assert decision.evidence == {"doubt": "launches"}


def test_two_steps_told_as_one() -> None:
    merged = [decode(i * 90, 86, 174 if i % 3 == 0 else 87) for i in range(30)]
    decision = decided([*merged, *flood(2700, 40), *[decode(2700 + i * 100, 90) for i in range(30)]])
    assert decision.doubt == "launches"
    assert decision.gate is None


def test_a_step_with_hardly_any_launches_is_no_model_s() -> None:
    decision = decided(alone_and_flooded(lambda at: [decode(at, 43, 3)], lambda at: [decode(at, 90, 3)]))
    assert decision.doubt == "launches"
    assert "too few" in decision.why


def test_graphs_and_eager_steps_are_looked_at_apart() -> None:
    steps = alone_and_flooded(
        lambda at: [decode(at, 43, 87) if at % 100 else decode(at, 43, 20, 29)], lambda at: [decode(at, 90)]
    )
    assert decided(steps).doubt is None


def test_steps_that_are_shorter_beside_a_prefill_than_alone() -> None:
    steps = alone_and_flooded(lambda at: [decode(at, 49, None)], lambda at: [decode(at, 20, None)])
    decision = decided(steps)
    assert decision.doubt == "contradiction"
    assert decision.gate is None


def test_more_device_time_than_the_steps_took() -> None:
    # One step in ten of the lane is a step's whole length; the others are what a wait has left of theirs.
    steps = alone_and_flooded(lambda at: [decode(at, 4, None)], lambda at: [decode(at, 4, None)])
    decision = decided(steps, lambda stepped_us: 10 * stepped_us)
    assert decision.doubt == "device-time"
    assert "cut short" in decision.why


def test_steps_that_overlap() -> None:
    steps = alone_and_flooded(lambda at: [decode(at, 90, None)], lambda at: [decode(at, 190, None)])
    decision = decided(steps)
    assert decision.doubt == "device-time"
    assert "overlap" in decision.why


def test_launches_that_are_in_no_step() -> None:
    state = ControllerState()
    for turn in range(30):
        state.update([lane(1, D, 30_000 * turn, 300 * turn), lane(2, P, 0, 0)])
        state.add(decode(turn * 50, 43))
    state.settle(1500 * MS)
    found = doubt(state.lanes.values())
    assert found is not None
    assert found.kind == "missing"


def test_a_given_target_is_the_user_s() -> None:
    steps = alone_and_flooded(lambda at: [decode(at, 43, 3)], lambda at: [decode(at, 90, 3)])
    decision = decided(steps, target_us=50_000.0)
    assert decision.gate is not None
    assert decision.gate.decode_target_us == 50_000


@pytest.mark.parametrize("kind", DOUBTS)
def test_a_doubt_is_told_counted_and_over_when_it_is(kind: Any) -> None:
    class Client:
        path = "npu0.ctl"

        def set_gate(self, _gate: object) -> None:
            return None

    out = io.StringIO()
    loop = Loop(ProtectDecode(lease_s=2), Client(), lambda: None, 2.0, out=out)  # type: ignore[arg-type]
    loop.holder.knows_owners = False
    doubtful = Decision(None, "not acted on: because", {"doubt": kind}, doubt=kind)
    loop.act(doubtful)
    loop.act(doubtful)
    counts = loop.exported()
    assert counts["doubtful"] == counts[f"doubt_{kind.replace('-', '_')}"] == 2
    owner = GateOwner(pid=1, uid=0, comm="c", instance="", lease_left_s=1, counts=counts)
    assert owner.doubt == kind
    [told] = [json.loads(line) for line in out.getvalue().splitlines()]
    assert (told["event"], told["what"], told["why"]) == ("decision", None, "not acted on: because")
    loop.act(Decision(None, "no decode lane with recent steps"))
    after = loop.exported()
    assert GateOwner(pid=1, uid=0, comm="c", instance="", lease_left_s=1, counts=after).doubt is None
    assert after["doubtful"] == 2
