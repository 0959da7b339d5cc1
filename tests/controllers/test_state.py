"""What the controller's state keeps, forgets and counts, and how its cost grows."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.controller_turn import lane_status, load
from controllers.policies.protect_decode import ProtectDecode
from controllers.state import MAX_STEPS, MEMORY_S, ControllerState, Window
from flexnpu.common.quantiles import quantile
from probes.feed.events import Losses, StepBegin, from_json
from tests.collectors.scripted import MS, S, step


def instructions(work: Callable[[], object]) -> int:
    """Python instructions that `work` executes: a cost that no other load on the host changes."""
    count = 0

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)
    return count


def loaded(lanes: int, rate: float, seconds: float) -> ControllerState:
    """After `seconds` s of `benchmarks.controller_turn`'s load from 100 s on, with a turn amid it."""
    state = ControllerState()
    state.update(lane_status(number) for number in range(lanes))
    middle = int((100 + seconds / 2) * S)
    for at, line in load(lanes, rate, seconds):
        if at >= middle > 0:
            state.settle(middle)
            middle = 0
        state.take(from_json(line))
    return state


def turn_cost(lanes: int, rate: float) -> int:
    state, now = loaded(lanes, rate, 4), 104 * S
    policy = ProtectDecode(lease_s=2)

    def turn() -> None:
        state.settle(now)
        assert policy.decide(state, now).gate is not None

    return instructions(turn)


def test_a_turn_is_linear_in_lanes() -> None:
    """Twice as many lanes, each as fast as before, cost twice as much. Quadratic would be 4 times."""
    costs = [turn_cost(lanes, 10 * lanes) for lanes in (8, 16, 32)]
    assert costs[2] - costs[1] < 2.6 * (costs[1] - costs[0])


def test_a_step_costs_the_same_whatever_the_number_of_lanes() -> None:
    def cost(lanes: int) -> int:
        state = loaded(lanes, 100, 2)
        return instructions(lambda: state.add(step(103 * S, 103 * S + MS, "decode", pid=1000, stream=16)))

    assert cost(64) == pytest.approx(cost(4), abs=20)


def test_steps_and_lanes_that_are_gone_leave_nothing() -> None:
    state = loaded(16, 200, 4)
    assert sum(len(lane.decode) + len(lane.prefill) for lane in state.lanes.values()) == 800
    state.update([lane_status(3)])
    assert list(state.lanes) == [(1003, 16)]
    state.settle(int((104 + MEMORY_S + 1) * S))
    (lane,) = state.lanes.values()
    assert (len(lane.decode), len(lane.prefill), len(lane.mixed)) == (0, 0, 0)
    assert not lane.unsettled
    assert not state._prefills


def test_a_fast_lane_is_bounded() -> None:
    state = ControllerState()
    state.update([lane_status(0), lane_status(1)])
    state.begin(
        StepBegin(t_ns=0, pid=1001, comm="x", stream=16, phase="prefill", tokens=None, batch=None,
                  evidence="test", confidence=1.0)
    )  # fmt: skip
    for i in range(MAX_STEPS + 100):
        state.add(step(i, i + 1, "decode", pid=1000, stream=16))
    lane = state.lanes[1000, 16]
    assert len(lane.decode) == len(lane.unsettled) == MAX_STEPS
    assert state.unjudged == 100
    assert state.steps == MAX_STEPS + 100


def test_every_step_that_is_left_out_is_counted() -> None:
    state = ControllerState()
    state.update([lane_status(0)])
    state.add(step(0, 1, pid=1000, stream=16))
    state.add(step(0, 1, pid=5, stream=16))
    for dropped in (3, 7, 2):  # the last from another server, which counts from zero
        state.take(Losses(t_ns=1, source="feed", counts={"feed_dropped": dropped}))
    state.take(Losses(t_ns=1, source="steps", counts={"steps_lost": 50}))
    assert (state.steps, state.unmapped, state.feed_dropped) == (1, 1, 9)


Spans = st.lists(st.tuples(st.integers(0, 500), st.integers(1, 100), st.integers(0, 2)), max_size=25)


@given(decodes=Spans, prefills=Spans)
@settings(max_examples=200, deadline=None)
def test_steps_alone_against_brute_force(
    decodes: list[tuple[int, int, int]], prefills: list[tuple[int, int, int]]
) -> None:
    """However steps of three lanes lie: those alone are those that no prefill of another lane overlaps."""
    state = ControllerState()
    state.update(lane_status(number) for number in range(3))
    events = [
        step(start, start + length, phase, pid=1000 + number, stream=16)
        for phase, spans in (("decode", decodes), ("prefill", prefills))
        for start, length, number in spans
    ]
    for event in sorted(events, key=lambda one: one.t_end_ns):
        state.add(event)
    state.settle(10_000)
    for number in range(3):
        alone = sorted(
            length
            for start, length, lane in decodes
            if lane == number
            and not any(s < start + length and s + n > start for s, n, other in prefills if other != number)
        )
        assert list(state.lanes[1000 + number, 16].solo) == alone


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 1000)), max_size=60),
    st.integers(1, 20),
    st.integers(0, 60),
    st.floats(0, 1),
)
def test_a_window_against_a_list(added: list[tuple[int, int]], most: int, before: int, q: float) -> None:
    window, expected = Window(most), sorted(added)[-most:]
    for at, duration in sorted(added):
        window.add(at, duration)
    window.forget(before)
    expected = [duration for at, duration in expected if at >= before]
    assert list(window) == sorted(expected)
    assert window.total_ns == sum(expected)
    assert window.longest_ns() == max(expected, default=0)
    found = quantile(expected, q)
    assert window.quantile_us(q) == (found / 1e3 if found is not None else None)
