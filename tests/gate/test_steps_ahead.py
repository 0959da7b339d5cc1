"""Steps of a host that runs ahead of the device."""

from __future__ import annotations

from collections import deque

import pytest

from tests.gate.gates import _gate, bucket, drain, pair


class RunsAhead:
    """A decode lane whose host launches one step ahead of the device and never synchronises it, as
    asynchronous scheduling does; its device runs one operator at a time, each for `US`."""

    US, OPERATORS = 138, 20

    def __init__(self, gate: object, *, told: bool = True) -> None:
        self.gate, self.told, self.now, self.ticket = gate, told, 1000, 0
        self.running: deque[tuple[int, bool]] = deque()

    def launch_step(self) -> None:
        for i in range(self.OPERATORS):
            begins = self.told and i == 0
            self.gate.enqueue(  # type: ignore[attr-defined]
                self.now, 2, self.ticket, bucket=bucket(108), step_begin=begins
            )
            self.ticket += 1
        self.running += [(d.ticket, d.mark) for d in drain(self.gate, self.now) if d.lane == 2]

    def run(self, operators: int) -> None:
        for _ in range(operators):
            self.now += self.US * 1000
            ticket, mark = self.running.popleft()
            if mark:
                self.gate.completed(self.now, 2, ticket, self.US)  # type: ignore[attr-defined]

    def steps(self, n: int) -> None:
        for _ in range(n):
            self.launch_step()
            self.run(self.OPERATORS)


@pytest.mark.parametrize("protected", [True, False])
def test_a_step_that_the_host_begins_ends_the_one_before(protected: bool) -> None:
    gate = pair(decode_idle_us=1e9) if protected else _gate.Gate()
    gate.add_lane(2)
    lane = RunsAhead(gate)
    lane.launch_step()  # from here on the host is one step ahead
    lane.steps(30)
    stats = gate.stats(2)
    assert stats.steps >= 29
    assert stats.step_ops == lane.OPERATORS
    assert stats.step_solo_us == pytest.approx(lane.OPERATORS * lane.US, rel=0.06)


def test_a_host_that_runs_ahead_leaves_its_slack_to_prefill() -> None:
    """Of a target of 5 ms a step takes 2.8: a prefill operator goes at once, after however many steps."""
    held = {}
    for told in (True, False):
        gate = pair(target_us=5000, max_hold_us=1e9, decode_idle_us=1e9)
        lane = RunsAhead(gate, told=told)
        lane.launch_step()
        for step in range(50):
            lane.launch_step()
            lane.run(lane.OPERATORS // 4)
            gate.enqueue(lane.now, 1, step, bucket=bucket(108))
            gone = drain(gate, lane.now)
            for decision in gone:
                gate.completed(lane.now, 1, decision.ticket, lane.US)
            lane.run(lane.OPERATORS - lane.OPERATORS // 4)
        held[told] = gate.counters().held
    assert held[True] == 0
    assert held[False] > 0  # as one step that never ends
