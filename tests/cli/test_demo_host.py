"""How the demo chooses the chip's speed: measurements of hosts in, factors and plans out."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from flexnpu.cli.demo.host import (
    STEPS,
    DeviceCosts,
    HostCosts,
    Rules,
    TooSlowError,
    alike,
    choose,
    needs,
    objective_ms,
)
from flexnpu.cli.demo.plan import Plan

#: The demo's profile: what the emulated device says of the tiny models.
DEVICE = DeviceCosts(decode_ms=3.4, first_token_ms=8.0, prompt_ms=179.0)

QUIET_16_CORES = HostCosts(token_ms=3.2, slow_token_ms=6.0, first_token_ms=12.0, prompt_ms=20.0)
SLOW_2_CORES = HostCosts(token_ms=9.0, slow_token_ms=30.0, first_token_ms=25.0, prompt_ms=40.0)
BUSY_2_CORES = HostCosts(token_ms=15.4, slow_token_ms=37.0, first_token_ms=39.0, prompt_ms=62.0)


def _factor(host: HostCosts, most: float = Plan().most_slowdown) -> float:
    return choose(needs(host, DEVICE), most)


def test_a_fast_host_runs_the_chip_at_its_own_speed() -> None:
    assert _factor(QUIET_16_CORES) == 1.0


def test_a_slower_host_gets_a_slower_chip() -> None:
    factors = [_factor(host) for host in (QUIET_16_CORES, SLOW_2_CORES, BUSY_2_CORES)]
    assert factors == sorted(set(factors))


@pytest.mark.parametrize("host", [QUIET_16_CORES, SLOW_2_CORES, BUSY_2_CORES])
def test_with_the_factor_the_device_outweighs_the_host_in_every_way(host: HostCosts) -> None:
    factor, rules = _factor(host), Rules()
    assert factor * DEVICE.decode_ms >= rules.decode * host.token_ms
    assert factor * DEVICE.prompt_ms >= rules.tail * host.slow_token_ms
    assert factor * DEVICE.prompt_ms >= rules.prompt * host.prompt_ms


@pytest.mark.parametrize("cost", ["token_ms", "slow_token_ms", "prompt_ms"])
def test_each_cost_of_the_host_can_be_what_decides(cost: str) -> None:
    dear = dataclasses.replace(QUIET_16_CORES, **{cost: 30 * getattr(QUIET_16_CORES, cost)})
    assert _factor(dear, most=STEPS[-1]) > 1.0


def test_the_smallest_step_that_is_enough_is_taken() -> None:
    assert choose({"a": 0.3, "b": 1.0}, 8.0) == 1.0
    assert choose({"a": 1.01}, 8.0) == STEPS[1]
    for before, step in itertools.pairwise(STEPS):
        assert choose({"a": step}, STEPS[-1]) == step
        assert choose({"a": (before + step) / 2}, STEPS[-1]) == step


def test_a_host_that_is_too_slow_is_told_why() -> None:
    with pytest.raises(TooSlowError, match=r"a decode step .* 20\.0 times slower.* 12\.5 times is the most"):
        choose({"a decode step": 40.0, "a long prompt": 3.0}, 12.5)


def test_a_host_that_is_nearly_too_slow_gets_the_slowest_chip() -> None:
    assert choose({"a": 10.5}, 11.0) == 10.0
    assert choose({"a": 20.0}, 11.0) == 10.0
    with pytest.raises(TooSlowError):
        choose({"a": 20.1}, 11.0)


@pytest.mark.parametrize(
    ("waiting", "later", "same"),
    [
        (0.29, 1.16, False),
        (1.2, 0.3, False),
        (0.5, 0.6, True),
        (0.05, 0.3, True),
        (1.0, 1.9, True),
        (0, 0, True),
    ],
)
def test_phases_are_compared_on_a_host_that_stayed_as_it_was(
    waiting: float, later: float, same: bool
) -> None:
    assert alike(waiting, later) is same


def test_a_wait_that_was_not_measured_is_no_change() -> None:
    assert alike(None, 1.0)
    assert alike(1.0, None)


def test_a_longer_phase_allows_a_slower_chip() -> None:
    assert Plan(phase_s=100.0).most_slowdown == 2 * Plan(phase_s=50.0).most_slowdown


@pytest.mark.parametrize("factor", [1.0, 1.5, 4.0, 12.0])
def test_everything_of_the_plan_follows_the_chip(factor: float) -> None:
    plan, slowed = Plan(), Plan().slowed(factor)
    assert slowed.slowdown == factor
    for before, after in zip(plan.servers, slowed.servers, strict=True):
        assert after.scaling.keep == pytest.approx(before.scaling.keep / factor)
        assert dataclasses.replace(after.scaling, keep=before.scaling.keep) == before.scaling
    for name in ("window_us", "max_hold_ms", "idle_ms", "alert_scale"):
        assert getattr(slowed, name) == pytest.approx(factor * getattr(plan, name))
    assert slowed.targets.wire_ttft_ms == pytest.approx(factor * plan.targets.wire_ttft_ms)
    # What the run must show of the gate and the device does not depend on the host.
    for name in ("accuracy", "decode_ratio", "device_busy"):
        assert getattr(slowed.targets, name) == getattr(plan.targets, name)


def test_a_chat_alone_keeps_the_objective_at_every_speed() -> None:
    for factor in STEPS:
        for host in (QUIET_16_CORES, BUSY_2_CORES):
            alone_ms = host.first_token_ms + factor * DEVICE.first_token_ms
            assert objective_ms(host, DEVICE, factor) == pytest.approx(2 * alone_ms)


def test_a_slow_chip_does_not_make_an_endless_demo() -> None:
    plan = Plan().slowed(12.0)
    assert plan.calm_s + 2 * plan.phase_s <= 170.0
    assert plan.lead_s < plan.phase_s / 4


def test_an_unslowed_plan_is_the_plan() -> None:
    plan = Plan()
    assert plan.slowed(1.0) == plan
