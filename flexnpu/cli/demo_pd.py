"""`flexnpu demo-pd`: prefill and decode of unmodified vLLM-Ascend on one emulated NPU, gated or not."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from flexnpu import emulator
from flexnpu.cli.demo.chain import SILICON, interrupt, own_program, require_folder, require_root
from flexnpu.cli.demo.measure import load_average
from flexnpu.cli.demo.processes import DemoError, Supervisor
from flexnpu.common.ports import free_port
from flexnpu.console.numbers import Duration, Number
from flexnpu.console.output import out, say, whole_file
from flexnpu.console.tables import Table, wide_console
from flexnpu.console.text import json_text
from flexnpu.control import paths
from flexnpu.control.client import ControlClient, ControlError
from flexnpu.emulator.clock import Clock
from workloads import disaggregated, vllm_ascend
from workloads.models import ensure
from workloads.vllm_load import SEVEN_B, Load, decisions, phase

PASSED, FAILED, CANNOT_START, TOO_SLOW = 0, 1, 2, 3
PHASES = {"alone": "chats alone", "flooded": "P flooded, no policy", "policy": "P flooded, protect-decode"}
#: How much longer the device takes for a decode step than the host: then the device is what is contended.
_DEVICE_OVER_HOST = 1.5
#: Of the chip while its own times are read: so slow that the host adds little to them.
_TRIAL = 8.0
#: The policy's target for a decode step, in what a token takes that has no flood beside it.
_STRETCH = 1.3
#: Of a flooded device; where it stands still more, this host is what was contended.
_LEAST_BUSY = 0.6
#: Slower than this a phase has too few answers to say anything.
_MOST_SLOWDOWN = 40.0
_MAX_TOKENS = 2048
LOAD = Load(streams=4, decode_tokens=24, flood=4, prompt_tokens=900)
_SETTLE_S = 6.0
_START_S = 240.0


@dataclass(frozen=True)
class Plan:
    """What is asked: chats by the proxy, and long prompts of P alone, as clients of other decoders would."""

    seconds: float
    slowdown: float | None
    chats: Load = LOAD


class PairDemo:
    """The parts, in their order; what they start ends with `supervisor` and `stack`."""

    def __init__(self, plan: Plan, folder: Path, supervisor: Supervisor, stack: contextlib.ExitStack) -> None:
        self.plan = plan
        self.folder = folder
        self.supervisor = supervisor
        self.stack = stack
        self.started = time.monotonic()
        self.clock = stack.enter_context(Clock(plan.slowdown or 1.0))
        self.environment = {paths.ENV_RUN_DIR: str(folder), "PYTHONUNBUFFERED": "1"}
        self.control = ControlClient(paths.control_socket(0, folder))
        self.measured: dict[str, float] = {}
        self.phases: dict[str, dict[str, Any]] = {}
        self.ports: dict[str, int] = {}
        self.proxy_port = 0
        self.decode_log = folder / "D.log"

    def tell(self, text: str) -> None:
        """A line, with the seconds since the start."""
        out(f"[{time.monotonic() - self.started:4.0f} s] {text}", flush=True)

    def busy_us(self) -> float:
        """The device's busy time so far. Raises DemoError."""
        try:
            status = self.control.status()
        except ControlError as error:
            raise DemoError(str(error)) from error
        if status.device_busy_us is None:
            raise DemoError("the daemon does not say how long the device was busy")
        return status.device_busy_us

    def start(self, venv: Path) -> None:
        """Daemon, P and D at once, proxy, probes. Raises DemoError and VllmError."""
        device = emulator.environment("time", machine=self.folder.name)
        device = {name: value for name, value in device.items() if name.startswith("FLEXNPU_EMU")}
        command = [own_program("flexnpud"), "--device", "0", "--emulated", "--run-dir", str(self.folder)]
        slow = {"FLEXNPU_EMU_SLOWDOWN": self.clock.path}
        self.supervisor.start(
            "flexnpud", command, {**self.environment, **device, **slow}, [self.clock.fd], nice=SILICON
        )

        def answers() -> bool:
            with contextlib.suppress(ControlError):
                return bool(self.control.status())
            return False

        self.supervisor.wait_until("flexnpud answers", answers, _START_S)
        model = ensure(SEVEN_B)
        self.ports = {role: free_port() for role in disaggregated.ROLES}
        self.tell("flexnpud serves one emulated NPU; P and D start at once, of 7 B shapes, 28 GiB each")
        options = ("--load-format", "dummy", "--gpu-memory-utilization", "0.9")
        servers = self.stack.enter_context(
            disaggregated.serving(
                {
                    role: vllm_ascend.command(
                        venv,
                        model,
                        port,
                        "eager",
                        *options,
                        *disaggregated.options(role),
                        max_tokens=_MAX_TOKENS,
                        blocks=128,
                    )
                    for role, port in self.ports.items()
                },
                self.ports,
                venv,
                {**os.environ, **self.environment},
                self.folder,
                [own_program("flexnpu"), "run", "--quota", "28GiB", "--"],
            )
        )
        self.proxy_port = servers.proxy.port
        self.tell("P, D and the proxy answer")
        probe = [own_program("flexnpu-probe"), "attach", "--all", "--feed", "--quiet"]
        self.supervisor.start("flexnpu-probe", probe, self.environment)
        feed = paths.probe_socket(self.folder)
        self.supervisor.wait_until("the probe serves its feed", feed.exists, _START_S)
        self.tell("flexnpu-probe is attached")

    def ask(self, flooded: bool, seconds: float, settle: float) -> dict[str, Any]:
        """One phase's figures, with how busy the device was. Raises VllmError and DemoError."""
        before, begin = self.busy_us(), time.monotonic()
        told = asyncio.run(
            phase((self.proxy_port, self.ports["P"]), self.plan.chats, flooded, seconds, settle)
        )
        told["device_busy"] = round((self.busy_us() - before) / 1e6 / (time.monotonic() - begin), 3)
        self.supervisor.check()
        return told

    def scale(self) -> float:
        """The chip's slowdown. Raises DemoError where this host is too slow for any."""
        if self.plan.slowdown is not None:
            return self.plan.slowdown
        # On a chip that takes no time a token costs what the host does; on a slow one what the device does.
        self.clock.set(0.01)
        host = self.ask(False, 4.0, 3.0)["tpot_ms"]["p50"]
        self.clock.set(_TRIAL)
        before, chats = self.busy_us(), self.plan.chats
        told = asyncio.run(phase((self.proxy_port, self.ports["P"]), chats, False, 4.0, 0.0))
        busy_ms = (self.busy_us() - before) / 1e3
        if host is None or not told["answers"] or busy_ms <= 0:
            raise DemoError("no tokens came to measure this host by")
        # Streams decode together: a step makes one token of each. P's step for a short prompt reads the same
        # weights as one of D's.
        steps = told["answers"] * (chats.decode_tokens / chats.streams + 1)
        device = float(busy_ms / _TRIAL / steps)
        self.measured = {"host_ms": host, "device_ms": round(device, 3)}
        factor = max(1.0, math.ceil(2 * _DEVICE_OVER_HOST * float(host) / device) / 2)
        self.tell(
            f"a decode step: {host:.0f} ms of this host ({load_average()}), {device:.1f} ms of the modelled "
            f"chip; the chip runs {factor:g} times slower, so that the device is what is contended"
        )
        return factor

    def run_phases(self, slowdown: float) -> None:
        """Alone, flooded, and flooded with the controller. Raises DemoError and VllmError."""
        self.clock.set(slowdown)
        for name, title in PHASES.items():
            if name == "policy":
                target = _STRETCH * self.phases["alone"]["tpot_ms"]["p50"]
                command = [own_program("flexnpu-controller"), "--target-ms", f"{target:.1f}"]
                self.supervisor.start("flexnpu-controller", command, self.environment)
                self.tell(f"flexnpu-controller: a decode step is to take {target:.0f} ms at most")
            told = self.ask(name != "alone", self.plan.seconds, _SETTLE_S)
            if name == "policy":
                told["decisions"] = decisions(self.folder / "flexnpu-controller.log")
                self.supervisor.stop("flexnpu-controller")
            self.phases[name] = told
            self.tell(
                f"{title}: TPOT p50 {told['tpot_ms']['p50']} ms, {told['flood_prompts_per_s']} prompts/s at P"
            )


def checks(phases: dict[str, dict[str, Any]], pulled: int) -> list[tuple[str, bool, str]]:
    """What must hold, and the figures."""
    alone, flooded, policy = (phases[name]["tpot_ms"]["p50"] for name in PHASES)
    excess, kept = flooded - alone, policy - alone
    rates = [phases[name]["flood_prompts_per_s"] for name in ("flooded", "policy")]
    answers = sum(told["answers"] for told in phases.values())
    return [
        ("the flood slows decode", excess > 0, f"TPOT p50 {alone} -> {flooded} ms"),
        (
            "the policy takes half of that away or more",
            kept <= excess / 2,
            f"TPOT p50 {policy} ms: {policy / alone:.2f} times alone, {flooded / alone:.2f} without policy",
        ),
        (
            "the flood goes on",
            rates[1] >= rates[0] / 2 > 0,
            f"{rates[0]} prompts/s without, {rates[1]} with policy",
        ),
        ("the KV cache of every chat was pulled from P", pulled >= answers > 0, f"{pulled} transfers"),
    ]


def table(phases: dict[str, dict[str, Any]]) -> Table:
    """The phases side by side."""
    shown = Table()
    shown.add_column("")
    for title in PHASES.values():
        shown.add_column(title, justify="right")
    rows = [
        (f"chat: {label} {q}, ms", key, q)
        for label, key in (("TTFT", "ttft_ms"), ("TPOT", "tpot_ms"))
        for q in ("p50", "p99")
    ]
    for label, key, q in rows:
        shown.add_row(label, *(_text(told[key][q]) for told in phases.values()))
    shown.add_row("chat: tokens/s", *(_text(told["tokens_per_s"]) for told in phases.values()))
    shown.add_row("chat: answers", *(_text(told["answers"]) for told in phases.values()))
    shown.add_row("flood: TTFT p50, ms", *(_text(told["flood_ttft_ms"]["p50"]) for told in phases.values()))
    shown.add_row("flood: prompts/s", *(_text(told["flood_prompts_per_s"]) for told in phases.values()))
    shown.add_row("device busy, %", *(_text(round(100 * told["device_busy"])) for told in phases.values()))
    return shown


def _text(value: float | None) -> str:
    return "-" if value is None or value == 0 else f"{value:g}"


def run(plan: Plan, report_path: Path, keep: Path | None) -> int:
    """Run it, print and write the report; the exit status. Raises DemoError and VllmError."""
    require_root()
    require_folder(report_path)
    venv = vllm_ascend.find()
    with contextlib.ExitStack() as outer:
        folder = keep or Path(outer.enter_context(tempfile.TemporaryDirectory(prefix="flexnpu-demo-pd-")))
        folder.mkdir(parents=True, exist_ok=True)
        supervisor = outer.enter_context(Supervisor(folder, f"demo-pd-{os.getpid()}"))
        demo = PairDemo(plan, folder, supervisor, outer.enter_context(contextlib.ExitStack()))
        demo.start(venv)
        slowdown = demo.scale()
        if slowdown > _MOST_SLOWDOWN:
            say(f"no verdict: this host is too slow or too busy now ({load_average()}); try again later")
            return TOO_SLOW
        demo.run_phases(slowdown)
        pulled = demo.decode_log.read_text(errors="replace").count("KV cache transfer for request")
    found = checks(demo.phases, pulled)
    console = wide_console(120)
    console.print(table(demo.phases))
    busy = min(demo.phases[name]["device_busy"] for name in ("flooded", "policy"))
    verdict = busy >= _LEAST_BUSY
    for name, held, figures in found:
        console.print(f"{'pass' if held else 'FAIL'}  {name}: {figures}")
    passed = verdict and all(held for _, held, _ in found)
    content = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "passed": passed,
        "verdict": verdict,
        "seconds": round(time.monotonic() - demo.started, 1),
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "measured": demo.measured,
        "slowdown": slowdown,
        "load": vars(plan.chats),
        "phases": demo.phases,
        "checks": [{"name": name, "passed": held, "figures": figures} for name, held, figures in found],
    }
    with whole_file(report_path) as file:
        file.write(json_text(content, indent=2, default=str) + "\n")
    if not verdict:
        say(
            f"no verdict: the flooded device was busy for {100 * busy:.0f} % of the time, because this host "
            f"is too busy now ({load_average()}); all figures in {report_path}"
        )
        return TOO_SLOW
    seconds = content["seconds"]
    console.print(f"{'passed' if passed else 'FAILED'} in {seconds:.0f} s; all figures in {report_path}")
    return PASSED if passed else FAILED


@click.command("demo-pd")
@click.option(
    "--report",
    "report_path",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("demo-pd-report.json"),
    show_default=True,
    help="Where to write the figures.",
)
@click.option("--phase-s", type=Duration(5, 600), default=25.0, show_default=True, help="Of a phase.")
@click.option(
    "--slowdown",
    type=Number(0.001, 1000),
    help="Make the modelled chip this many times slower, whatever the host. Default: as the host needs.",
)
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="Where logs are kept.")
def demo_pd(report_path: Path, phase_s: float, slowdown: float | None, keep: Path | None) -> None:
    """Run prefill and decode of unmodified vLLM-Ascend on one emulated NPU, and flood the prefill.

    \b
    EXAMPLES
      sudo flexnpu demo-pd
      sudo flexnpu demo-pd --phase-s 60 --report run.json    narrower spreads
      sudo flexnpu demo-pd --keep logs                       what each part wrote stays in logs/

    One server, P, computes prompts; another, D, pulls their KV caches and decodes; a proxy stands before
    them. Chats go through the proxy. A flood of long prompts goes to P. Both servers share one device
    through flexnpud. The phases: chats alone; with the flood; the same with the controller. The chip is
    slowed by one factor, so that the device and not this host is what is contended. Needs root (eBPF) and
    the venv of `make vllm`.

    \b
    Exit status: 0 the policy protects decode; 1 it does not; 2 it cannot start here;
    3 this host is too slow or too busy for a verdict.
    """
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        sys.exit(run(Plan(phase_s, slowdown), report_path, keep))
    except (DemoError, vllm_ascend.VllmError) as error:
        say(error)
        sys.exit(CANNOT_START)
    finally:
        signal.signal(signal.SIGTERM, previous)
