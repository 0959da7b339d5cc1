"""`flexnpu demo`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from dashboards import pd_colocation
from dashboards.alerts import ALERT_NAMES
from flexnpu.cli import leftovers
from flexnpu.cli.demo import report
from flexnpu.cli.demo.chain import Chain, require_root
from flexnpu.cli.demo.plan import Plan
from flexnpu.cli.demo.processes import DemoError, Supervisor
from flexnpu.cli.demo.profile import operator_times
from flexnpu.cli.demo.report import Check, Phase
from flexnpu.cli.demo.watch import Ticker, Watch, Window
from flexnpu.console.numbers import Duration
from flexnpu.control.client import ControlError
from flexnpu.control.messages import DaemonStatus
from probes.feed.events import is_loss
from workloads.panels import check_panels
from workloads.prometheus import PrometheusServer, query_api
from workloads.replay import TRACES, Arrival, PromptMaker, Record, Target, load_arrivals, replay

ALERT = ALERT_NAMES["page"]
_RESOLVE_S = 20.0


class Demo:
    """One run: brings the chain up, loads it in three phases, judges each link."""

    def __init__(
        self,
        plan: Plan,
        console: Console,
        directory: Path,
        supervisor: Supervisor,
        stack: contextlib.ExitStack,
    ) -> None:
        self.plan = plan
        self.console = console
        self.directory = directory
        self.supervisor = supervisor
        self.chain = Chain(plan, directory, supervisor, stack)
        self.checks: list[Check] = []
        self.phases: list[Phase] = []
        self.watch: Watch | None = None
        self._started = time.monotonic()

    # --- telling -----------------------------------------------------------------------------------------

    def section(self, text: str) -> None:
        self.console.rule(f"[bold]{text}[/]  [{time.monotonic() - self._started:.0f} s]", align="left")

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False)

    def check(self, name: str, passed: bool, detail: str) -> None:
        self.checks.append(Check(name, passed, detail))

    # --- the chain ---------------------------------------------------------------------------------------

    def bring_up(self) -> Watch:
        found = report.versions()
        self.say(f"  on {found['machine']}, Linux {found['kernel']}")
        self.say("  " + ", ".join(f"{name} {found[name]}" for name in ("torch", "torch-npu", "transformers")))
        for name, times in operator_times(self.plan)["operator_us"].items():
            if "gate projection" in name:
                self.say(f"  {name}: " + ", ".join(f"{us:.0f} us for {who}" for who, us in times.items()))
        self.section("1. One emulated NPU, one daemon, two unmodified LLM servers")
        took = self.chain.start_daemon()
        self.say(f"  flexnpud on an emulated device, profile {self.plan.profile}: {took:.1f} s")
        took = self.chain.start_servers()
        for server in self.chain.servers.values():
            self.say(f"  {server.plan.name}: transformers serve, pid {server.pid}, {server.url}")
        self.say(f"  both answer after {took:.1f} s; warming up")
        self._warm_up()
        status = self.chain.status()
        sessions = {session.pid for session in status.sessions} if status else set()
        pids = {name: server.pid for name, server in self.chain.servers.items()}
        interposed = {name: self.chain.interposed(pid) for name, pid in pids.items()}
        self.check(
            "two unmodified servers on one device, through the daemon",
            all(ok for ok, _ in interposed.values()) and set(pids.values()) <= sessions,
            "; ".join(f"{name}: {detail}" for name, (_, detail) in interposed.items())
            + f"; {len(sessions)} sessions at the daemon",
        )
        self.section("2. Probes on the live processes, metrics, Prometheus")
        watch: list[Watch] = []
        took = self.chain.start_probe(
            lambda: watch.append(Watch(self.chain.feed, self.directory / "events.jsonl"))
        )
        self.watch = watch[0]
        self.say(f"  flexnpu-probe attached, nothing restarted: {took:.1f} s")
        self.say(f"  flexnpu-collector: {self.chain.start_collector():.1f} s")
        self.say(f"  Prometheus: {self.chain.start_prometheus():.1f} s")
        return self.watch

    def _warm_up(self) -> None:
        """First uses of each shape (model code, daemon, cost estimates) are not what is to be compared."""
        for name in self.chain.servers:
            longest = max(arrival.prompt_tokens for arrival in self._arrivals(name, self.plan.phase_s))
            shapes = [Arrival(0.0, 24, 8), Arrival(0.0, longest, 8)]
            records = self._replay([self._target(name, shapes)], 60.0)
            failed = [record.error for record in records if not record.ok]
            if failed:
                raise DemoError(f"{name}: a first request failed: {failed[0]}")

    # --- load --------------------------------------------------------------------------------------------

    def _arrivals(self, name: str, seconds: float) -> list[Arrival]:
        plan = self.chain.servers[name].plan
        return load_arrivals(TRACES[plan.trace], seconds, plan.scaling, plan.skip_s)

    def _target(self, name: str, arrivals: Sequence[Arrival]) -> Target:
        server = self.chain.servers[name]
        maker = PromptMaker(server.model_dir)
        prompts = [maker.make(arrival.prompt_tokens) for arrival in arrivals]
        return Target(name, server.url, arrivals, prompts, server.plan.max_in_flight)

    def _replay(self, targets: Sequence[Target], window_s: float) -> list[Record]:
        return asyncio.run(replay(targets, window_s, self.plan.drain_s))

    def load(
        self, name: str, title: str, servers: Sequence[str], lead_s: float, seconds: float, watch: Watch
    ) -> Phase:
        """Replay the arrivals of ``servers`` for ``seconds``, printing what the probes see.

        Figures are taken after ``lead_s`` seconds.
        """
        targets = [self._target(server, self._arrivals(server, seconds)) for server in servers]
        pids = [(server, self.chain.servers[server].pid) for server in servers]
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
        timers = [threading.Timer(lead_s, mark, ("start",)), threading.Timer(seconds, mark, ("end",))]
        for timer in timers:
            timer.start()
        with Ticker(watch, pids, status, self.say):
            records = self._replay(targets, seconds)
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
        report.fill(phase, watch, {name: server.pid for name, server in self.chain.servers.items()})
        self.phases.append(phase)
        return phase

    def run_phases(self, watch: Watch) -> None:
        plan = self.plan
        self.section(f"3. The chat server alone, {plan.calm_s:.0f} s")
        self.say(
            "  What the probes saw, every 3 s: steps of each phase with their median/longest time in ms,"
        )
        self.say("  median TTFT on the wire in ms, and for how much of the time the device was busy and the")
        self.say("  gate held the next operator of a prefill.")
        self.load("alone", "chat alone", ["chat"], 2.0, plan.calm_s, watch)
        self.section(f"4. Long prompts flood the device, no policy, {plan.phase_s:.0f} s")
        self.load("transparent", "flood, no policy", ["chat", "flood"], plan.lead_s, plan.phase_s, watch)
        self.section(f"5. The same arrivals, decode protected by the controller, {plan.phase_s:.0f} s")
        self.say(f"  flexnpu-controller reads the feed: {self.chain.start_controller():.1f} s")
        self.load(
            "protect-decode", "flood, protect-decode", ["chat", "flood"], plan.lead_s, plan.phase_s, watch
        )
        self.chain.stop_controller()

    # --- judging -----------------------------------------------------------------------------------------

    def judge(self, watch: Watch) -> dict[str, Any]:
        """Add the checks of what was measured; returns the accuracy and wire figures for the report."""
        targets = self.plan.targets
        pids = {name: server.pid for name, server in self.chain.servers.items()}
        requests = [record for phase in self.phases for record in phase.records]
        failed = [f"{record.server}: {record.error}" for record in requests if not record.ok]
        self.check(
            "every request answered",
            bool(requests) and not failed,
            f"{len(requests) - len(failed)} of {len(requests)} requests"
            + (f"; {failed[0]}" if failed else ""),
        )
        accuracy = report.accuracy(self.phases, watch, pids)
        self.check(
            "phases classified",
            (accuracy["phase_accuracy"] or 0.0) >= targets.accuracy
            and accuracy["steps"] >= targets.accuracy_steps,
            f"accuracy {_percent(accuracy['phase_accuracy'])} over {accuracy['steps']} steps "
            f"(with the right token count: {_percent(accuracy['phase_and_tokens_accuracy'])})",
        )
        wire = {
            name: report.match_wire(
                [record for record in requests if record.server == name], watch.requests(pid)
            )
            for name, pid in pids.items()
        }
        chat_wire = wire["chat"]
        difference = chat_wire["ttft_client_minus_wire_ms"]["p50"]
        self.check(
            "requests timed on the wire",
            all(found["matched"] == found["client_requests"] > 0 for found in wire.values())
            and difference is not None
            and abs(difference) <= targets.wire_ttft_ms,
            "; ".join(
                f"{name}: {found['matched']} of {found['client_requests']} requests seen"
                for name, found in wire.items()
            )
            + (f"; client TTFT minus wire TTFT: p50 {difference:.2f} ms" if difference is not None else ""),
        )
        self._judge_gate()
        losses = watch.losses
        counted = {
            f"{source} {name}": count
            for source, counts in losses.items()
            for name, count in counts.items()
            if count and is_loss(name)
        }
        self.check(
            "losses are counted",
            {"steps", "wire"} <= set(losses),
            ", ".join(f"{name} {count}" for name, count in sorted(counted.items())) or "nothing lost",
        )
        return {"accuracy": accuracy, "wire": wire, "losses": losses, "texts": self._same_texts()}

    def _judge_gate(self) -> None:
        targets = self.plan.targets
        by_name = {phase.name: phase.figures for phase in self.phases}
        before = by_name["transparent"]["servers"]["chat"]["decode_step_ms"]["p99"]
        after = by_name["protect-decode"]["servers"]["chat"]["decode_step_ms"]["p99"]
        ratio = after / before if before and after else None
        self.check(
            "the gate protects decode",
            ratio is not None and ratio <= targets.decode_p99_ratio,
            "no decode steps to compare"
            if ratio is None
            else f"p99 decode step {before:.1f} -> {after:.1f} ms, {(1 - ratio) * 100:.0f} % lower",
        )
        busy = by_name["protect-decode"]["device_busy"]
        self.check(
            "the device stays busy",
            busy is not None and busy >= targets.device_busy,
            f"{_percent(by_name['transparent']['device_busy'], 0)} without, {_percent(busy, 0)} with policy",
        )

    def query_prometheus(self) -> dict[str, Any]:
        """Ask the Prometheus that watched it all: every panel of the dashboard, and the alert's history."""
        prometheus = self.chain.prometheus
        assert prometheus is not None
        window_s = time.monotonic() - self._started
        results = check_panels(prometheus.url, pd_colocation.dashboard_json(), window_s=window_s)
        # A query that fails is never excused.
        excused = {r.panel for r in results if not r.ok and not r.error} & pd_colocation.EMPTY_UNLESS.keys()
        empty = sorted({f"{r.panel} {r.ref}" for r in results if not r.ok and r.panel not in excused})
        detail = f"{len(results)} queries"
        if excused:
            detail += f"; not for what the demo lacks: {', '.join(sorted(excused))}"
        if empty:
            detail += f"; empty: {', '.join(empty)}"
        self.check("every panel of the dashboard shows data", bool(results) and not empty, detail)
        return {"panels": [asdict(result) for result in results], "alert": self._judge_alert(prometheus)}

    def _judge_alert(self, prometheus: PrometheusServer) -> dict[str, Any]:
        pid = str(self.chain.servers["chat"].pid)

        def firing() -> bool:
            return any(labels["pid"] == pid for labels in prometheus.firing(ALERT))

        start = time.monotonic()
        while (still := firing()) and time.monotonic() - start < _RESOLVE_S:
            time.sleep(0.5)
        fired = self._alert_times(prometheus, time.monotonic() - self._started)
        seconds = {phase.name: sum(phase.whole.holds(t) for t in fired) for phase in self.phases}
        self.check(
            "the TTFT alert fires under the flood and resolves",
            seconds["transparent"] > 0 and not still,
            f"for chat, {seconds['transparent']} s without policy, {seconds['protect-decode']} s with it; "
            + ("still firing at the end" if still else "resolved at the end"),
        )
        return {"name": ALERT, "firing_s": seconds, "resolved": not still}

    def _alert_times(self, prometheus: PrometheusServer, window_s: float) -> list[int]:
        """Seconds at which the alert fired for the chat server, CLOCK_MONOTONIC ns."""
        now, now_ns = time.time(), time.monotonic_ns()
        pid = self.chain.servers["chat"].pid
        query = f'ALERTS{{alertname="{ALERT}",alertstate="firing",pid="{pid}"}}'
        found = query_api(
            prometheus.url,
            "query_range",
            {"query": query, "start": f"{now - window_s:.3f}", "end": f"{now:.3f}", "step": "1"},
        )
        times = {float(t) for series in found["result"] for t, _ in series["values"]}
        return sorted(now_ns - round((now - t) * 1e9) for t in times)

    def _same_texts(self) -> dict[str, int]:
        """Greedy decoding is deterministic: the same prompt gives the same text in both phases."""
        texts: dict[tuple[str, int], list[str]] = {}
        for phase in self.phases[1:]:
            for record in phase.records:
                if record.ok and record.text_sha256:
                    texts.setdefault((record.server, record.index), []).append(record.text_sha256)
        pairs = [found for found in texts.values() if len(found) > 1]
        differing = sum(len(set(found)) > 1 for found in pairs)
        self.check(
            "gating changes no text",
            bool(pairs) and differing == 0,
            f"{len(pairs)} greedy answers compared between the phases, {differing} differ",
        )
        return {"answers": len(pairs), "differing": differing}


def _percent(fraction: float | None, digits: int = 2) -> str:
    return "unknown" if fraction is None else f"{fraction * 100:.{digits}f} %"


def _interrupt(number: int, _frame: object) -> None:
    raise KeyboardInterrupt(f"signal {number}")


def _attempt(demo: Demo) -> dict[str, Any]:
    """Run all parts; a part that does not come up is a failed check and ends the run."""
    found: dict[str, Any] = {}
    try:
        watch = demo.bring_up()
        demo.run_phases(watch)
        found = demo.judge(watch)
        demo.section("6. Dashboard and alert on the live Prometheus")
        found["prometheus"] = demo.query_prometheus()
    except DemoError as error:
        demo.say(f"flexnpu demo: {error}")
        demo.check("the chain runs", False, str(error).splitlines()[0])
    except KeyboardInterrupt:
        demo.check("the chain runs", False, "interrupted")
    return found


def run(plan: Plan, report_path: Path, keep: bool, write: Callable[[Console], None] | None = None) -> int:
    """Run the demo, write the report, and return the exit status."""
    require_root()
    console = Console(width=None if sys.stdout.isatty() else 120)
    started, tag = time.monotonic(), uuid.uuid4().hex
    os.environ[leftovers.TAG_VARIABLE] = tag
    directory = Path(tempfile.mkdtemp(prefix="flexnpu-demo-"))
    before = leftovers.survey(None, [])
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with Supervisor(directory, tag) as supervisor, contextlib.ExitStack() as stack:
            demo = Demo(plan, console, directory, supervisor, stack)
            found = _attempt(demo)
            demo.section("7. Ending")
            if demo.watch is not None:
                demo.watch.close()
        left = _left_behind(tag, directory, before)
        demo.check(
            "nothing left behind",
            not left,
            "no process, shared memory, socket or probe" if not left else "; ".join(left),
        )
    finally:
        signal.signal(signal.SIGTERM, previous)
        if keep:
            console.print(f"logs and events kept in {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    console.print(report.side_by_side(demo.phases))
    report.print_checks(console, demo.checks)
    passed = all(check.passed for check in demo.checks)
    seconds = time.monotonic() - started
    content = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "passed": passed,
        "seconds": round(seconds, 1),
        "versions": report.versions(),
        "plan": asdict(plan),
        "profile": operator_times(plan),
        "phases": {phase.name: phase.figures for phase in demo.phases},
        **found,
        "checks": [asdict(check) for check in demo.checks],
    }
    report_path.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
    console.print(f"{'passed' if passed else 'FAILED'} in {seconds:.0f} s; all figures in {report_path}")
    return 0 if passed else 1


def _left_behind(tag: str, directory: Path, before: dict[str, list[str]]) -> list[str]:
    deadline = time.monotonic() + 5.0
    while True:
        after = leftovers.survey(tag, [directory])
        new = [f"{kind}: {x}" for kind, found in after.items() for x in found if x not in before[kind]]
        if not new or time.monotonic() > deadline:
            return new
        time.sleep(0.25)


@click.command("demo")
@click.option(
    "--report",
    "report_path",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("demo-report.json"),
    show_default=True,
    help="Where to write the figures.",
)
@click.option("--phase-s", type=Duration(10, 600), default=Plan.phase_s, show_default=True)
@click.option("--keep", is_flag=True, help="Keep logs, events and Prometheus' data, and say where.")
def demo(report_path: Path, phase_s: float, keep: bool) -> None:
    """Run the whole chain on this machine, show it at work, check every link.

    Starts two unmodified LLM servers on one emulated NPU through flexnpud, replays real request arrivals at
    them, attaches the probes to the live processes, and compares the device without and with the controller's
    policy. Ends by itself in under five minutes, leaves nothing running, and exits non-zero if any part of
    the chain did not work. Needs root (eBPF).
    """
    try:
        sys.exit(run(Plan(phase_s=phase_s), report_path, keep))
    except DemoError as error:
        click.echo(f"flexnpu demo: {error}", err=True)
        sys.exit(2)
