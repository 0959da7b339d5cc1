"""The dispatch gate against a modelled device: decode step times and device use, transparent and gated.

Two lanes share a device that runs one operator at a time, to its end. The decode lane's host launches 200
operators of 10 us, one every 30 us, waits for them, and spends 3 ms in Python; the prefill lane floods: 400
operators of 50 to 800 us a step, queued as deep as they come. Everything is simulated, so that the figures
depend on the gate alone. Prints one JSON object.

    python -m benchmarks.gate_sim [--scenario NAME] [--seconds S] [--order ready|fifo] [--window-us W]
    [--stretch X]

`--order` says which operator a free device takes: of the streams' heads the one that was ready first, as
hardware queues do (``ready``), or whatever was submitted first (``fifo``).
"""

from __future__ import annotations

import functools
import heapq
import itertools
import json
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import click

import flexnpu.gate._gate as _gate
from flexnpu.common.quantiles import quantile
from flexnpu.console.numbers import DAY_S, Duration, Number

PREFILL, DECODE = 1, 2
PHASES = {0: _gate.Phase.Unknown, PREFILL: _gate.Phase.Prefill, DECODE: _gate.Phase.Decode}
SHOWN = 9  # the operator of a step that shows its phase: a model's first attention operator
DISPATCH_US = 2.0  # of the dispatcher, an operator
ANSWER_US = 25.0  # from a step's end until the client's synchronise returns


@dataclass(frozen=True)
class Workload:
    """Steps of one lane: `costs(rng)` gives the device times (us) of a step's operators, in order."""

    costs: Callable[[random.Random], list[float]]
    launch_us: float
    gap_us: float
    jitter: float = 0.0
    """Spread of the launch interval: the sigma of a lognormal around `launch_us`."""
    contended: float = 1.0
    """Factor of the launch interval while another lane's host launches, too: they share cores."""
    tails: tuple[int, ...] = ()
    """Short synchronised runs of so many operators after each step, as sampling does."""
    between: tuple[Callable[[random.Random], list[float]], int] | None = None
    """Steps of the other phase between two, and how many: a stream that does both."""
    says: bool = False
    """Whether its steps say their phase, from the ninth operator on."""


@dataclass(frozen=True)
class Scenario:
    """A decode lane and a prefill lane that share one device."""

    about: str
    decode: Workload
    prefill: Workload
    completion_us: float = 40.0
    """From an operator's end until the dispatcher has heard of it."""
    wake_us: float = 0.0
    """How late the dispatcher wakes at most, where it sleeps until a time."""


def _even(n: int, cost: float) -> Callable[[random.Random], list[float]]:
    return lambda rng: [cost * rng.uniform(0.8, 1.2) for _ in range(n)]


def _spread(n: int, low: float, high: float) -> Callable[[random.Random], list[float]]:
    return lambda rng: [rng.choice([low, (low + high) / 4, (low + high) / 2, high]) for _ in range(n)]


SCENARIOS = {
    "host-bound": Scenario(
        "decode waits for its host: 200 x 10 us, launched every 30 us",
        Workload(_even(200, 10), 30, 3000),
        Workload(_spread(400, 50, 800), 20, 1000),
    ),
    "device-bound": Scenario(
        "decode keeps the device busy: 200 x 45 us, launched every 20 us",
        Workload(_even(200, 45), 20, 3000),
        Workload(_spread(400, 50, 800), 20, 1000),
    ),
    "tails": Scenario(
        "as host-bound, and each step is followed by two short synchronised runs",
        Workload(_even(200, 10), 30, 2000, tails=(3, 5)),
        Workload(_spread(400, 50, 800), 20, 1000),
    ),
    "large": Scenario(
        "prefill operators far beyond the window: 60 x 0.2 to 2 ms",
        Workload(_even(200, 10), 30, 3000),
        Workload(_spread(60, 200, 2000), 20, 1000),
    ),
    "noisy": Scenario(
        "a host that is often late, and prefill operators of up to 8 ms",
        Workload(_even(200, 12), 30, 3000, jitter=1.2),
        Workload(_spread(200, 50, 8000), 20, 1000),
    ),
    "small": Scenario(
        "prefill operators of 5 to 60 us",
        Workload(_even(200, 10), 30, 3000),
        Workload(_spread(2000, 5, 60), 8, 1000),
    ),
    "contended": Scenario(
        "decode's host is 1.4 times slower while prefill's works: its target is out of reach",
        Workload(_even(400, 40), 110, 3000, contended=1.4),
        Workload(_spread(200, 400, 4000), 20, 1000),
    ),
    "one-stream": Scenario(
        "prefill's stream also decodes, 8 steps of 150 x 10 us after each prefill; its steps say which",
        Workload(_even(200, 10), 30, 3000, says=True),
        Workload(_spread(150, 50, 800), 20, 1000, between=(_even(150, 10), 8), says=True),
    ),
    "late": Scenario(
        "a busy host: ends and wake-ups are up to 0.5 ms late, and prefill operators take 0.4 to 4 ms",
        Workload(_even(400, 40), 110, 3000),
        Workload(_spread(200, 400, 4000), 20, 1000),
        completion_us=500.0,
        wake_us=500.0,
    ),
}


@dataclass
class _Op:
    lane: int
    ticket: int
    cost: float
    ready: float = 0.0
    start: float = 0.0
    last: bool = False
    mark: bool = False
    timed: bool = False


class Device:
    """Streams in order, one operator at a time."""

    def __init__(self, order: str, at: Callable[[float, Callable[[], None]], None]) -> None:
        self.order = order
        self.at = at
        self.streams: dict[int, deque[_Op]] = {PREFILL: deque(), DECODE: deque()}
        self.fifo: deque[_Op] = deque()
        self.running: _Op | None = None
        self.busy: dict[int, float] = {PREFILL: 0.0, DECODE: 0.0}

    def submit(self, now: float, op: _Op, done: Callable[[float, _Op], None]) -> None:
        """`op` arrives at `now`, us; `done` is called with the time of its end."""
        op.ready = now
        self.streams[op.lane].append(op)
        self.fifo.append(op)
        self.kick(now, done)

    def kick(self, now: float, done: Callable[[float, _Op], None]) -> None:
        """Start the next operator if the device is free."""
        if self.running is not None:
            return
        heads = [stream[0] for stream in self.streams.values() if stream]
        if not heads:
            return
        op = self.fifo[0] if self.order == "fifo" else min(heads, key=lambda head: head.ready)
        self.fifo.remove(op)
        self.streams[op.lane].popleft()
        self.running = op
        op.start = now
        self.busy[op.lane] += op.cost

        def end() -> None:
            self.running = None
            if self.streams[op.lane]:
                head = self.streams[op.lane][0]
                head.ready = max(head.ready, now + op.cost)
            self.kick(now + op.cost, done)
            done(now + op.cost, op)

        self.at(now + op.cost, end)


@dataclass
class _Host:
    lane: int
    workload: Workload
    rng: random.Random
    runs: Iterator[tuple[list[float], float, bool, int]] = field(init=False)
    phase: int = 0
    costs: list[float] = field(default_factory=list)
    gap: float = 0.0
    whole: bool = True
    issued: int = 0
    started: float = 0.0
    steps: list[float] = field(default_factory=list)
    token_us: list[float] = field(default_factory=list)
    token_start: float = -1.0

    def __post_init__(self) -> None:
        self.runs = self._runs()

    def _runs(self) -> Iterator[tuple[list[float], float, bool, int]]:
        """(costs, host time before it, is it the step itself, its phase) of each synchronised run."""
        other = PREFILL + DECODE - self.lane
        while True:
            yield self.workload.costs(self.rng), self.workload.gap_us, True, self.lane
            for n in self.workload.tails:
                yield [5.0] * n, 200.0, False, self.lane
            if self.workload.between is not None:
                costs, steps = self.workload.between
                for _ in range(steps):
                    yield costs(self.rng), self.workload.gap_us, False, other


class Simulation:
    """One scenario under one setting of the gate."""

    def __init__(self, scenario: Scenario, order: str, seed: int = 7) -> None:
        self.now = 0.0
        self.completion_us = scenario.completion_us
        self.wake_us = scenario.wake_us
        self.rng = random.Random(seed + 2)
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.serial = itertools.count()
        self.tickets = itertools.count(1)
        self.gate = _gate.Gate()
        self.device = Device(order, self.at)
        self.ops: dict[int, _Op] = {}
        self.wake = float("inf")
        self.hosts = {
            DECODE: _Host(DECODE, scenario.decode, random.Random(seed)),
            PREFILL: _Host(PREFILL, scenario.prefill, random.Random(seed + 1)),
        }
        for lane in self.hosts:
            self.gate.add_lane(lane)
        self.dispatcher_free = 0.0
        self.begun = 0

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Call `what` at `when`, us of simulated time."""
        heapq.heappush(self.events, (when, next(self.serial), what))

    def _ns(self) -> int:
        return int(self.now * 1e3) + 1

    def begin(self, lane: int) -> None:
        """A host prepares its lane's next step."""
        host = self.hosts[lane]
        host.costs, host.gap, host.whole, host.phase = next(host.runs)
        host.issued = 0
        self.at(self.now + host.gap, lambda: self.issue(lane))

    def issue(self, lane: int) -> None:
        """A host launches the next operator of its lane's step."""
        host = self.hosts[lane]
        if host.issued == 0:
            host.started = self.now
            if host.whole:
                if host.token_start >= 0:
                    host.token_us.append(self.now - host.token_start)
                host.token_start = self.now
        cost = host.costs[host.issued]
        host.issued += 1
        last = host.issued == len(host.costs)
        ticket = next(self.tickets)
        self.ops[ticket] = _Op(lane, ticket, cost, last=last)
        # Decode operators of like cost share a shape; prefill's shapes are their costs.
        begins = host.workload.says and host.issued == 1
        said = PHASES[host.phase if host.workload.says and host.issued == SHOWN else 0]
        bucket = round(cost) << 8 | 40
        self.gate.enqueue(self._ns(), lane, ticket, op=lane, bucket=bucket, step_begin=begins, phase=said)
        if last:
            self.gate.enqueue(self._ns(), lane, next(self.tickets), costed=False, step_end=True)
        else:
            spread = host.rng.lognormvariate(0, host.workload.jitter) if host.workload.jitter else 1.0
            if self.begun > 1:
                spread *= host.workload.contended
            self.at(self.now + host.workload.launch_us * spread, lambda: self.issue(lane))
        self.pump()

    def pump(self) -> None:
        """The dispatcher takes all that the gate lets go now."""
        while (decision := self.gate.next(self._ns())) is not None:
            op = self.ops.pop(decision.ticket, None)
            if op is None:
                continue  # the synchronise
            op.mark, op.timed = decision.mark, decision.timed
            self.dispatcher_free = max(self.dispatcher_free, self.now) + DISPATCH_US
            submit_at = self.dispatcher_free
            self.at(submit_at, functools.partial(self.submit, op))
        wake = self.gate.wake_at(self._ns())
        if wake != _gate.NEVER and wake / 1e3 < self.wake:
            self.wake = wake / 1e3
            self.at(self.wake + self.rng.uniform(0, self.wake_us), self.woken)

    def submit(self, op: _Op) -> None:
        """The dispatcher's call has reached the device."""
        self.device.submit(self.now, op, self.done)

    def woken(self) -> None:
        """The time at which the gate wished to be asked again."""
        if self.now >= self.wake:
            self.wake = float("inf")
            self.pump()

    def done(self, now: float, op: _Op) -> None:
        """An operator has ended on the device."""
        if op.mark:
            # What two events around it see: whatever another stream ran before it is in there too.
            measured = now - op.ready if op.timed else -1.0
            self.at(now + self.completion_us, lambda: self.complete(op, measured))
        if op.last:
            self.at(now + ANSWER_US, lambda: self.answer(op.lane))

    def complete(self, op: _Op, measured: float) -> None:
        """The gate hears of an end; `measured` is in us, -1 if it was not measured."""
        self.gate.completed(self._ns(), op.lane, op.ticket, measured)
        self.pump()

    def answer(self, lane: int) -> None:
        """A host's synchronise returns: its step is over."""
        host = self.hosts[lane]
        self.gate.step_end(self._ns(), lane)
        if host.whole:
            host.steps.append(self.now - host.started)
        self.begin(lane)
        self.pump()

    def run(self, until: float) -> None:
        """Simulate up to `until`, us."""
        while self.events and self.events[0][0] <= until:
            self.now, _, what = heapq.heappop(self.events)
            what()
        self.now = until


def measure(
    scenario: Scenario,
    order: str,
    seconds: float,
    *,
    protect: bool,
    alone: bool = False,
    voted: bool = True,
    target_us: float = 0.0,
    **settings: float,
) -> dict[str, Any]:
    """One run: 0.5 s of warm-up, then `seconds` that count. Not `voted`: the gate knows of phases only what
    steps say."""
    sim = Simulation(scenario, order)
    if protect:
        for lane in (DECODE, PREFILL):
            target = target_us if lane == DECODE else 0.0
            sim.gate.set_phase(lane, PHASES[lane if voted else 0], target)
        sim.gate.set_settings(0, _gate.Settings(enabled=True, lease_until_ns=int(1e15), **settings))
    for lane in (DECODE,) if alone else (DECODE, PREFILL):
        sim.begun += 1
        sim.begin(lane)
    sim.run(5e5)
    for host in sim.hosts.values():
        host.steps.clear()
        host.token_us.clear()
    before = dict(sim.device.busy)
    sim.run(5e5 + seconds * 1e6)
    busy = {lane: (sim.device.busy[lane] - before[lane]) / (seconds * 1e6) for lane in before}
    decode, counters = sim.hosts[DECODE], sim.gate.counters()
    return {
        "decode_steps": len(decode.steps),
        "decode_step_p50_us": quantile(decode.steps, 0.5),
        "decode_step_p99_us": quantile(decode.steps, 0.99),
        "token_interval_p50_us": quantile(decode.token_us, 0.5),
        "prefill_steps_per_s": len(sim.hosts[PREFILL].steps) / seconds,
        "device_busy": round(sum(busy.values()), 4),
        "device_busy_prefill": round(busy[PREFILL], 4),
        "forced": counters.forced,
        "oversize": counters.oversize,
    }


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.option("--scenario", "names", type=click.Choice(list(SCENARIOS)), multiple=True, help="default: all")
@click.option("--seconds", default=5.0, show_default=True, type=Duration(0.1, DAY_S))
@click.option("--order", "orders", type=click.Choice(["ready", "fifo"]), multiple=True, help="default: both")
@click.option("--window-us", default=300.0, show_default=True, type=Number(1, 1e6, unit="us"))
@click.option(
    "--stretch",
    type=Number(1, 100, unit="a factor"),
    default=1.3,
    show_default=True,
    help="decode target: this times the step time alone",
)
def main(
    names: tuple[str, ...], seconds: float, orders: tuple[str, ...], window_us: float, stretch: float
) -> None:
    """Simulates the gate on each scenario, with and without protection."""
    result: dict[str, Any] = {"benchmark": "gate_sim", "seconds": seconds, "window_us": window_us, "runs": []}
    for name in names or tuple(SCENARIOS):
        scenario = SCENARIOS[name]
        for order in orders or ("ready", "fifo"):
            alone = measure(scenario, order, seconds, protect=False, alone=True)
            target = stretch * alone["decode_step_p50_us"]
            transparent = measure(scenario, order, seconds, protect=False)
            gated = measure(scenario, order, seconds, protect=True, target_us=target, window_us=window_us)
            result["runs"].append(
                {
                    "scenario": name,
                    "about": scenario.about,
                    "device_order": order,
                    "target_us": target,
                    "alone": alone,
                    "transparent": transparent,
                    "protect": gated,
                    "p99_ratio": (gated["decode_step_p99_us"] or 0)
                    / (transparent["decode_step_p99_us"] or 1),
                }
            )
    click.echo(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
