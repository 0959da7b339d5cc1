"""What the policy is for, on the modelled device: simulated, so that it depends on the gate alone."""

from __future__ import annotations

import pytest

pytest.importorskip("flexnpu.gate._gate", reason="run make build")

from benchmarks.gate_sim import SCENARIOS, measure
from flexnpu.control.messages import MAX_HOLD_US


@pytest.mark.parametrize("order", ["ready", "fifo"])
@pytest.mark.parametrize("name", ["host-bound", "device-bound", "tails", "large", "noisy"])
def test_decode_is_protected_and_the_device_stays_busy(name: str, order: str) -> None:
    scenario = SCENARIOS[name]
    alone = measure(scenario, order, 1.0, protect=False, alone=True)
    transparent = measure(scenario, order, 1.0, protect=False)
    gated = measure(scenario, order, 1.0, protect=True, target_us=1.3 * alone["decode_step_p50_us"])
    assert gated["decode_step_p99_us"] < 0.5 * transparent["decode_step_p99_us"]
    assert gated["decode_step_p99_us"] < 1.6 * alone["decode_step_p99_us"]
    assert gated["device_busy"] > 0.9
    assert gated["device_busy_prefill"] > 0.25


def test_alone_the_policy_costs_nothing() -> None:
    scenario = SCENARIOS["host-bound"]
    without = measure(scenario, "ready", 1.0, protect=False, alone=True)
    with_policy = measure(scenario, "ready", 1.0, protect=True, alone=True)
    assert with_policy["decode_step_p50_us"] == pytest.approx(without["decode_step_p50_us"], rel=0.001)


def test_a_target_that_the_host_cannot_meet_does_not_hold_prefill() -> None:
    """Decode's host is 1.4 times slower beside prefill's. A target of 1.1 is out of reach, and the gate must
    not pay for it with an idle device."""
    scenario = SCENARIOS["contended"]
    alone = measure(scenario, "ready", 1.0, protect=False, alone=True)
    gated = measure(scenario, "ready", 1.0, protect=True, target_us=1.1 * alone["decode_step_p50_us"])
    assert gated["device_busy"] > 0.9
    assert gated["decode_step_p99_us"] < 1.15 * 1.4 * alone["decode_step_p50_us"]


@pytest.mark.parametrize("name", sorted(set(SCENARIOS) - {"contended"}))
def test_a_hold_shows_what_steps_take_alone(name: str) -> None:
    """The setting with which a controller finds that out amid a flood (`controllers.alone`)."""
    scenario = SCENARIOS[name]
    alone = measure(scenario, "ready", 1.0, protect=False, alone=True)
    held = measure(
        scenario,
        "ready",
        1.0,
        protect=True,
        target_us=1.0,
        max_hold_us=MAX_HOLD_US,
        decode_idle_us=MAX_HOLD_US,
    )
    assert held["decode_step_p50_us"] == pytest.approx(alone["decode_step_p50_us"], rel=0.06)
