"""A load through the simulated engines, under a policy of `controllers`.

The policy is the one that runs live: it reads the same `ControllerState`, made of steps as the tracer tells
them and of lanes as the daemon does, and answers with the same `SetGate`, which is applied as the daemon
applies it. It decides every `period_s` of virtual time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from controllers.policies import Options, Policy, make
from controllers.state import ControllerState
from flexnpu.control.messages import LaneStatus, SetGate
from probes.feed.events import Step
from simulation.arrivals import Load
from simulation.setting import Setting

_PID = 1000
_DEFAULT_HOLD_US, _DEFAULT_IDLE_US = 10_000.0, 20_000.0  # gate::Settings


@dataclass
class Outcome:
    """What a run left behind; times of requests in us."""

    requests: list[Any]
    end_us: float
    core: Any
    decisions: int
    """Settings of the gate that were changed or renewed."""
    wall_s: float
    """Of this machine, which may have had other work."""
    cpu_s: float


class _Controller:
    """Feeds a policy and applies what it decides."""

    def __init__(self, core: Any, policy: Policy, engines: int) -> None:
        self.core, self.policy, self.engines = core, policy, engines
        self.state = ControllerState()
        self.decisions = 0
        self._set = False
        self._last_end_ns = [0] * engines

    def turn(self) -> float | None:
        """One turn, as the live controller's (`controllers.loop`); when it wants the next one, s."""
        now_ns = self.core.now_ns()
        self.state.update(self._lanes())
        for record in self.core.take_steps():
            self.state.add(self._step(record))
        self.state.settle(now_ns)
        decision = self.policy.decide(self.state, now_ns)
        if decision.gate is not None:
            self._apply(decision.gate, now_ns)
        elif self._set:
            self._apply(SetGate(policy="transparent", lease_s=1.0), now_ns)
        self._set = decision.gate is not None
        if decision.holds and decision.gate is not None:
            self.state.hold(now_ns, decision.gate.lease_s)
        else:
            self.state.release(now_ns)
        return decision.again_s

    def _lanes(self) -> list[LaneStatus]:
        return [
            LaneStatus(
                lane=lane,
                session=lane,
                pid=_PID + lane,
                comm="engine",
                stream=lane,
                phase=self.core.phase(lane),
                completed=self.core.counts(lane).completed,
                **self.core.lane(lane),
            )
            for lane in range(self.engines)
        ]

    def _step(self, record: Any) -> Step:
        lane = record.engine
        end_ns = int(record.end_us * 1e3)
        start_ns = min(max(int(record.start_us * 1e3), self._last_end_ns[lane]), end_ns)
        self._last_end_ns[lane] = end_ns
        both = record.prefill_tokens > 0 and record.decode_tokens > 0
        return Step(
            t_start_ns=start_ns,
            t_end_ns=end_ns,
            pid=_PID + lane,
            comm="engine",
            stream=lane,
            phase="mixed" if both else "prefill" if record.prefill_tokens else "decode",
            tokens=record.prefill_tokens + record.decode_tokens,
            batch=record.sequences,
            launches=record.operators,
            graph_launches=0,
            h2d_bytes=0,
            d2h_bytes=0,
            evidence="simulated",
            confidence=1.0,
        )

    def _apply(self, gate: SetGate, now_ns: int) -> None:
        self.decisions += 1
        targets_us = gate.targets_us or {}
        for lane in range(self.engines):
            phase = gate.lanes.get(lane) or self.core.phase(lane)
            decodes = phase == "decode" or self.core.decodes(lane)
            target_us = targets_us.get(lane, gate.decode_target_us or 0.0) if decodes else 0.0
            self.core.set_phase(lane, phase, target_us)
        self.core.set_gate(
            enabled=gate.policy != "transparent",
            window_us=gate.window_us,
            overlap_slowdown=gate.overlap_slowdown or 0.0,
            lease_until_ns=now_ns + int(gate.lease_s * 1e9),
            decode_idle_us=gate.decode_idle_us or _DEFAULT_IDLE_US,
            max_hold_us=gate.max_hold_us or _DEFAULT_HOLD_US,
        )


def simulate(
    setting: Setting,
    load: Load,
    policy: str = "fifo",
    *,
    period_s: float = 0.5,
    options: Options | None = None,
) -> Outcome:
    """Serve all of `load`, to the last token. Raises ValueError for a setting or a policy that cannot be.

    `options`: the policy's; by default its own, with a lease of four periods.
    """
    began, cpu_began = time.perf_counter(), time.process_time()
    core = setting.core()
    for arrival in load.arrivals:
        core.add(arrival.at_s * 1e6, arrival.prompt_tokens, arrival.output_tokens)
    engines = 2 if setting.engines.layout == "pd" else 1
    controller = _Controller(core, make(policy, options or Options(lease_s=4 * period_s)), engines)
    until_us, soon_s = 0.0, period_s
    while True:
        until_us += soon_s * 1e6
        if not core.run(until_us):
            break
        if policy == "fifo":
            core.take_steps()
        else:
            again_s = controller.turn()
            soon_s = period_s if again_s is None else min(period_s, again_s)
    cpu_s = time.process_time() - cpu_began
    wall_s = time.perf_counter() - began
    return Outcome(core.requests(), core.now_us(), core, controller.decisions, wall_s, cpu_s)
