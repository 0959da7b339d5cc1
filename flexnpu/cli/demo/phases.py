"""One run of the demo: bring the chain up, measure the host, load the device in three phases."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from flexnpu.cli.demo import report
from flexnpu.cli.demo.chain import Chain
from flexnpu.cli.demo.host import DeviceCosts, HostCosts, TooSlowError, alike, choose, needs, objective_ms
from flexnpu.cli.demo.loads import Loads
from flexnpu.cli.demo.measure import load_average, measure_device, measure_host
from flexnpu.cli.demo.plan import Plan, ServerPlan
from flexnpu.cli.demo.processes import Supervisor
from flexnpu.cli.demo.profile import operator_times
from flexnpu.cli.demo.report import Check, Phase
from flexnpu.cli.demo.watch import Ticker, Watch, Window
from flexnpu.console.tables import Console, cell
from flexnpu.control.client import ControlError
from flexnpu.control.messages import DaemonStatus


class Demo:
    """Brings the chain up, measures, and loads it in three phases; `judge` says what of it held.

    ``slowdown``: the factor on the modelled chip's times; None: the one that the host needs.
    """

    def __init__(
        self,
        plan: Plan,
        console: Console,
        directory: Path,
        supervisor: Supervisor,
        stack: contextlib.ExitStack,
        slowdown: float | None = None,
    ) -> None:
        self.console = console
        self.directory = directory
        self.supervisor = supervisor
        self.chain = Chain(plan, directory, supervisor, stack)
        self.loads = Loads(self.chain)
        self.checks: list[Check] = []
        self.phases: list[Phase] = []
        self.watch: Watch | None = None
        self.choice: dict[str, Any] = {}
        self._slowdown = slowdown
        self._started = time.monotonic()

    @property
    def plan(self) -> Plan:
        """What is run; from `scale` on, made for this host."""
        return self.chain.plan

    @property
    def pids(self) -> dict[str, int]:
        """Process id of each server, by name."""
        return {name: server.pid for name, server in self.chain.servers.items()}

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    # --- telling -----------------------------------------------------------------------------------------

    def section(self, text: str) -> None:
        """Print a heading with the seconds since the start."""
        self.console.rule(cell(text, "bold").append(f"  [{self.seconds:.0f} s]", "not bold"), align="left")

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text)

    def check(self, name: str, passed: bool, detail: str) -> None:
        """Note a verdict on one link of the chain."""
        self.checks.append(Check(name, passed, detail))

    # --- the chain ---------------------------------------------------------------------------------------

    def scale(self) -> None:
        """Measure what the models cost this host, on a chain of its own, and choose the chip's speed.

        What the daemon learns of operators while the chip's clock is turned must not serve the gate later, so
        the chain is ended again. Raises TooSlowError if no speed would give a verdict.
        """
        found = report.versions()
        self.say(f"  on {found['machine']}, Linux {found['kernel']}, {load_average()}")
        self.say("  " + ", ".join(f"{name} {found[name]}" for name in ("torch", "torch-npu", "transformers")))
        self.section("1. What the tiny models cost this host, and the speed of the modelled chip")
        self.chain.start_daemon()
        took = self.chain.start_servers()
        self.say(f"  two servers to measure with: {took:.1f} s")
        plan = self.plan
        device = measure_device(self.chain, self.loads)
        self.say(
            f"  device, as modelled: a decode step {device.decode_ms:.1f} ms, a long prompt "
            f"{device.prompt_ms:.0f} ms"
        )
        host = measure_host(self.chain, self.loads, device)
        self.say(
            f"  the host adds ({load_average()}): {host.token_ms:.1f} ms to a token, to one in twenty over "
            f"{host.slow_token_ms:.0f} ms;"
        )
        self.say(f"  {host.first_token_ms:.0f} ms to a first token, {host.prompt_ms:.0f} ms to a long prompt")
        self.chain.stop()
        factor = self._choose(plan, host, device)
        objective_s = objective_ms(host, device, factor) / 1e3
        self.chain.plan = replace(plan.slowed(factor), ttft_slo_s=objective_s)
        self.say(f"  objective for the first token: {objective_s * 1e3:.0f} ms")
        self.chain.clock.set(self.plan.slowdown)

    def _choose(self, plan: Plan, host: HostCosts, device: DeviceCosts) -> float:
        wanted = needs(host, device)
        self.choice = {
            "load": load_average(),
            "host_ms": asdict(host),
            "device_ms": asdict(device),
            "wanted": wanted,
            "most": plan.most_slowdown,
            "given": self._slowdown,
        }
        factor = choose(wanted, plan.most_slowdown) if self._slowdown is None else self._slowdown
        self.choice["factor"] = factor
        if self._slowdown is not None:
            self.say(f"  the chip runs {factor:g} times slower than its profile, as told")
        elif factor == 1:
            self.say("  the device outweighs the host as it is: the chip runs at its profile's speed")
        else:
            reason = max(wanted, key=lambda name: wanted[name])
            self.say(f"  so that the device is what is contended, the chip runs {factor:g} times slower:")
            self.say(f"  {reason} asks for {wanted[reason]:.1f} times")
        if factor != 1:
            self.say("  arrivals, the alert and the policy's times follow the chip")
        return factor

    def bring_up(self) -> Watch:
        """Start daemon, servers, probes, collector and Prometheus; who reads the feed. Raises DemoError."""
        self.section("2. One emulated NPU, one daemon, two unmodified LLM servers")
        for name, times in operator_times(self.plan)["operator_us"].items():
            if "gate projection" in name:
                self.say(f"  {name}: " + ", ".join(f"{us:.0f} us for {who}" for who, us in times.items()))
        took = self.chain.start_daemon()
        slower = "" if self.plan.slowdown == 1 else f", {self.plan.slowdown:g} times slower"
        self.say(f"  flexnpud on an emulated device, profile {self.plan.profile}{slower}: {took:.1f} s")
        took = self.chain.start_servers()
        for server in self.chain.servers.values():
            self.say(f"  {server.name}: transformers serve, pid {server.pid}, {server.url}")
        self.say(f"  both answer after {took:.1f} s; warming up")
        self.loads.warm_up()
        status = self.chain.status()
        sessions = {session.pid for session in status.sessions} if status else set()
        interposed = {name: self.chain.interposed(pid) for name, pid in self.pids.items()}
        self.check(
            "two unmodified servers on one device, through the daemon",
            all(ok for ok, _ in interposed.values()) and set(self.pids.values()) <= sessions,
            "; ".join(f"{name}: {detail}" for name, (_, detail) in interposed.items())
            + f"; {len(sessions)} sessions at the daemon",
        )
        self.section("3. Probes on the live processes, metrics, Prometheus")
        watch: list[Watch] = []
        took = self.chain.start_probe(
            lambda: watch.append(Watch(self.chain.feed, self.directory / "events.jsonl"))
        )
        self.watch = watch[0]
        self.say(f"  flexnpu-probe attached, nothing restarted: {took:.1f} s")
        self.say(f"  flexnpu-collector: {self.chain.start_collector():.1f} s")
        self.say(f"  Prometheus: {self.chain.start_prometheus():.1f} s")
        return self.watch

    # --- load --------------------------------------------------------------------------------------------

    def load(
        self,
        name: str,
        title: str,
        servers: Sequence[ServerPlan],
        lead_s: float,
        seconds: float,
        watch: Watch,
        steady: Callable[[], bool] = lambda: True,
    ) -> Phase:
        """Replay the arrivals of ``servers`` for ``seconds``, printing what the probes see.

        Figures are taken after ``lead_s`` seconds, from when it is ``steady`` on, or from the middle.
        """
        pids = [(server.name, self.chain.servers[server.name].pid) for server in servers]
        control = self.chain.new_control()
        marks: dict[str, tuple[int, float | None, dict[int, float]]] = {}

        def mark(label: str) -> None:
            status = self.chain.status()
            gated: dict[int, float] = {}
            for lane in status.lanes if status else ():
                gated[lane.pid] = gated.get(lane.pid, 0.0) + lane.gated_us
            marks[label] = (time.monotonic_ns(), status.device_busy_us if status else None, gated)

        def status() -> DaemonStatus | None:
            try:
                return control.status()
            except ControlError:
                return None

        begun_ns = time.monotonic_ns()

        def mark_start() -> None:
            while not steady() and time.monotonic_ns() - begun_ns < seconds / 2 * 1e9:
                time.sleep(0.25)
            mark("start")

        timers = [threading.Timer(lead_s, mark_start), threading.Timer(seconds, mark, ("end",))]
        for timer in timers:
            timer.start()
        with Ticker(watch, pids, status, self.say):
            records = self.loads.replay(servers, seconds)
        for timer in timers:
            timer.join()
        control.close()
        time.sleep(1.0)  # the last steps and requests on their way through the feed
        self.supervisor.check()
        start, end = marks["start"], marks["end"]
        phase = Phase(
            name=name,
            title=title,
            load=Window(start[0], end[0]),
            whole=Window(begun_ns, time.monotonic_ns()),
            records=records,
            busy_us=None if start[1] is None or end[1] is None else end[1] - start[1],
            gated_us={pid: us - start[2].get(pid, 0.0) for pid, us in end[2].items()},
        )
        report.fill(phase, watch, self.pids)
        self.phases.append(phase)
        return phase

    def run_phases(self, watch: Watch) -> None:
        """Load the device: chat alone, with the flood, and under the policy. Raises DemoError."""
        plan = self.plan
        self.section(f"4. The chat server alone, {plan.calm_s:.0f} s")
        self.say(
            "  What the probes saw, every 3 s: steps of each phase with their median/longest time in ms,"
        )
        self.say("  median TTFT on the wire in ms, and for how much of the time the device was busy and the")
        self.say("  gate held the next operator of a prefill.")
        self.load("alone", "chat alone", [plan.chat_alone], 2.0, plan.calm_s, watch)
        self._flooded(plan, watch)
        if not self._alike():
            self.say("  the host was not as busy in one phase as in the other: both once more")
            del self.phases[1:]
            self._flooded(plan, watch)
        if not self._alike():
            raise TooSlowError("the host's load changes from one phase to the next, twice")

    def _alike(self) -> bool:
        """Whether the host was as busy in one phase as in the other; not asked when the speed was given."""
        if self._slowdown is not None:
            return True
        before, after = (phase.figures["servers"]["chat"]["waiting_for_a_cpu"] for phase in self.phases[1:])
        return alike(before, after)

    def _flooded(self, plan: Plan, watch: Watch) -> None:
        """The two phases that are compared."""
        both = plan.servers
        self.section(f"5. Long prompts flood the device, no policy, {plan.phase_s:.0f} s")
        self.load("transparent", "flood, no policy", both, plan.lead_s, plan.phase_s, watch)
        self.section(f"6. The same arrivals, decode protected by the controller, {plan.phase_s:.0f} s")
        alone = self.phases[0].figures["servers"].get("chat", {}).get("decode_step_ms", {}).get("p50")
        target_ms = None if alone is None else plan.target_stretch * alone
        took = self.chain.start_controller(target_ms)
        given = "" if target_ms is None else f", target {target_ms:.0f} ms a decode step"
        self.say(f"  flexnpu-controller reads the feed{given}: {took:.1f} s")
        title = "flood, protect-decode"
        self.load("protect-decode", title, both, plan.lead_s, plan.phase_s, watch, self.chain.gated)
        self.chain.stop_controller()
