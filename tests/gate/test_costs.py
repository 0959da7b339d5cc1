"""Costs follow the chip: after a change of its clock every operator's estimate is right again, and soon."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

_gate = pytest.importorskip("flexnpu.gate._gate", reason="run make build")

RAREST, SETTLE = 1024, 5 * 16
"""Uses of an operator until it is measured again at the latest, and until a change is believed (gate.hpp)."""
FACTORS = st.floats(0.25, 0.75) | st.floats(1.35, 4.0)


class Device:
    """Runs operators by name through a transparent gate. `beside` says what share other work adds."""

    def __init__(self, costs_us: dict[int, float], beside: Callable[[], float] = lambda: 0.0) -> None:
        self.gate = _gate.Gate()
        self.gate.add_lane(1)
        self.costs_us = costs_us
        self.beside = beside
        self.factor = 1.0
        self._tickets = count()
        self._now = 1000

    def run(self, op: int) -> None:
        self._now += 1000
        self.gate.enqueue(self._now, 1, next(self._tickets), op=op, bucket=40)
        while (decision := self.gate.next(self._now)) is not None:
            if decision.timed:
                us = self.costs_us[op] * self.factor * (1 + self.beside())
                self.gate.completed(self._now, 1, decision.ticket, us)

    def error(self, op: int) -> float:
        """How far the estimate is from the truth, as a share of the truth."""
        truth = self.costs_us[op] * self.factor
        return abs(float(self.gate.estimate(op, 40)) / truth - 1)


def often(times: int, share: float) -> Callable[[], float]:
    """Every `times`-th measurement contains `share` more of somebody else's."""
    numbers = count(1)
    return lambda: share if next(numbers) % times == 0 else 0.0


@given(
    cost=st.floats(500, 5000),
    factors=st.lists(FACTORS, min_size=1, max_size=3),
    uses=st.integers(50, 12_000),
    beside=st.sampled_from([(2, 0.0), (2, 0.15), (3, 2.0)]),
)
@example(cost=500.0, factors=[0.5, 0.75], uses=50, beside=(2, 0.15))
@settings(max_examples=25, deadline=None)
def test_an_operator_is_right_again_after_a_change_of_the_clock(
    cost: float, factors: list[float], uses: int, beside: tuple[int, float]
) -> None:
    device = Device({1: cost}, often(*beside))
    for factor in (1.0, *factors):
        device.factor *= factor
        # A measurement beside other work may look as if nothing had changed; the one after it does not.
        measured = 2 * RAREST if beside[1] else RAREST
        for _ in range(uses if factor == 1.0 else measured + SETTLE):
            device.run(1)
        assert device.error(1) < 0.01


def _step(layers: int, ops: int) -> Iterator[int]:
    """A step's operators: most of them in every layer, the last one once."""
    for _ in range(layers):
        yield from range(ops - 1)
    yield ops - 1


@given(factor=FACTORS, layers=st.integers(8, 40), ops=st.integers(2, 8), steps=st.integers(100, 160))
@settings(max_examples=10, deadline=None)
def test_operators_that_are_rare_are_right_as_soon(factor: float, layers: int, ops: int, steps: int) -> None:
    """An operator of one use a step does not wait for a thousand steps: the others' estimates tell it."""
    device = Device({op: 20.0 * (op + 1) for op in range(ops)})
    for _ in range(steps):
        for op in _step(layers, ops):
            device.run(op)
    device.factor = factor
    for _ in range(RAREST // layers + 1 + SETTLE):
        for op in _step(layers, ops):
            device.run(op)
    assert {op: device.error(op) for op in range(ops) if device.error(op) >= 0.01} == {}


def test_what_is_measured_is_rare_while_nothing_changes() -> None:
    """Noise, and work beside an operator, are no change of the clock."""
    noise = iter([0.0, 0.04, 0.9, 0.02, 0.0, 1.5, 0.06, 0.01, 0.03, 2.0] * 10_000)
    device = Device({1: 100.0}, lambda: next(noise))
    for _ in range(50_000):
        device.run(1)
    assert device.error(1) < 0.07
    assert device.gate.counters().cost_samples < 50_000 / 256
