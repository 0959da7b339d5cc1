"""Steps that say their phase: the gate acts on the step, not on what its lane did before."""

from __future__ import annotations

import pytest

from benchmarks.gate_sim import SCENARIOS, measure
from tests.gate.gates import MS, Phase, _gate, bucket, drain, protecting

LARGE = bucket(108)  # 138 us


def lanes(*numbers: int, **changes: float) -> object:
    """A gate with lanes of which nobody has said anything, protecting."""
    gate = _gate.Gate()
    for lane in numbers:
        assert gate.add_lane(lane)
    gate.set_settings(0, protecting(**changes))
    return gate


def step(gate: object, now: int, lane: int, phase: object, tickets: range, *, begins: bool = True) -> None:
    """A step whose phase is known from its second operator on, as an attention operator shows it."""
    for i, ticket in enumerate(tickets):
        says = phase if i == 1 else Phase.Unknown
        gate.enqueue(now, lane, ticket, bucket=LARGE, step_begin=begins and i == 0, phase=says)  # type: ignore[attr-defined]


def test_the_first_prefill_step_of_an_unknown_lane_is_held_for_decode() -> None:
    gate = lanes(1, 2, max_hold_us=1e6)
    gate.set_phase(2, Phase.Unknown, 1.0)
    step(gate, 1000, 2, Phase.Decode, range(3))
    assert len(drain(gate, 1000)) == 3
    step(gate, 2000, 1, Phase.Prefill, range(4))
    went = drain(gate, 2000)
    assert [d.ticket for d in went] == [0], "the embedding goes, for nobody knows yet; the rest is held"
    assert gate.stats(1).prefill_steps == 1
    assert gate.stats(2).decode_steps == 1
    assert gate.stats(2).decodes
    assert not gate.stats(1).decodes


def test_a_lane_is_what_its_step_is() -> None:
    """Its prefill step is held, its next decode step is not, however it was set."""
    for voted in (Phase.Unknown, Phase.Prefill, Phase.Decode):
        gate = lanes(1, 2, max_hold_us=1e6)
        gate.set_phase(2, Phase.Decode, 1.0)
        gate.set_phase(1, voted)
        gate.enqueue(1000, 2, 0)
        gate.enqueue(1000, 1, 0, bucket=LARGE, step_begin=True, phase=Phase.Prefill)
        assert [d.lane for d in drain(gate, 1000)] == [2]
        gate.enqueue(1000, 1, 1, bucket=LARGE, step_begin=True, phase=Phase.Decode)
        assert drain(gate, 2000) == [], "behind the prefill step, in its lane's order"
        gate.step_end(3000, 2)
        assert [d.ticket for d in drain(gate, 4000)] == [0, 1]


def test_a_lanes_own_decode_step_does_not_hold_its_prefill() -> None:
    gate = lanes(1)
    gate.set_phase(1, Phase.Unknown, 1.0)
    step(gate, 1000, 1, Phase.Decode, range(5))
    step(gate, 1000, 1, Phase.Prefill, range(5, 10))
    assert len(drain(gate, 1000)) == 10
    assert gate.counters().held == 0


def test_two_lanes_that_do_both_do_not_hold_each_other_up() -> None:
    """Each has ended a decode step, of which the tail was not marked, and comes with a prefill step."""
    gate = lanes(1, 2, max_hold_us=1e6)
    for lane in (1, 2):
        gate.set_phase(lane, Phase.Unknown, 1.0)
        step(gate, 1000, lane, Phase.Decode, range(4))
    marked = [(d.lane, d.ticket) for d in drain(gate, 1000) if d.mark]
    now = 3 * MS
    for lane, ticket in marked:
        gate.completed(now, lane, ticket)
    for lane in (1, 2):
        gate.enqueue(now, lane, 10, bucket=LARGE, step_begin=True, phase=Phase.Prefill)
    went = drain(gate, now)
    for _ in range(20):
        if len(went) == 2:
            break
        wake = gate.wake_at(now)
        assert wake < now + 10 * MS, "long before the bound of a second"
        now = wake
        went += drain(gate, now)
        for d in went:
            gate.completed(now, d.lane, d.ticket)
    assert len(went) == 2
    assert gate.counters().forced == 0


def test_prefill_steps_teach_nothing_about_decode() -> None:
    """They have as many operators, and take far longer."""
    gate = lanes(1)
    now, ticket = 1000, 0
    for i in range(40):
        phase = Phase.Prefill if i % 2 else Phase.Decode
        for n in range(50):
            says = phase if n == 0 else Phase.Unknown
            gate.enqueue(now, 1, ticket, step_begin=n == 0, phase=says)
            drain(gate, now)
            now += 400_000 if phase == Phase.Prefill else 20_000
            ticket += 1
        gate.step_end(now, 1)
    assert gate.stats(1).step_solo_us == pytest.approx(1000, rel=0.02)


@pytest.mark.parametrize("order", ["ready", "fifo"])
def test_one_stream_of_both_phases_does_not_hurt_anothers_decode(order: str) -> None:
    """The gate knows no lane's phase but from the steps."""
    scenario = SCENARIOS["one-stream"]
    alone = measure(scenario, order, 1.0, protect=False, alone=True)
    transparent = measure(scenario, order, 1.0, protect=False)
    gated = measure(
        scenario, order, 1.0, protect=True, voted=False, target_us=1.3 * alone["decode_step_p50_us"]
    )
    assert transparent["decode_step_p99_us"] > 3 * alone["decode_step_p99_us"]
    assert gated["decode_step_p99_us"] < 1.6 * alone["decode_step_p99_us"]
    assert gated["device_busy"] > 0.98 * transparent["device_busy"]
