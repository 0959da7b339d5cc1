"""Two unmodified vLLM-Ascend servers on one emulated NPU: what a flood of prefill costs decode, gated or not.

One server, D, decodes: some streams at once, each begun anew when it ends. The other, P, is flooded with long
prompts of which it makes one token each. Both have the shapes of Qwen2.5-7B and weights that are made up; the
device takes the modelled time and computes nothing. Its chip is slowed (--slowdown), so that the device and
not the host is what is contended. In turns: D alone; P flooded beside it; the same with each policy.

TPOT and TTFT are by the client's clock, ms: TPOT of each answer is from its first to its last token, over the
tokens between. In `summary`, `kept` is TPOT with a policy over TPOT alone; `flood_kept` P's prompts a second
with the policy over those without. `flood_ceiling` is the most of them that any policy could keep: the device
runs one operator at a time, and D, as quick as it then was, leaves P no more of it. Needs root, for the
probes, and the venv of `make vllm`. Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from flexnpu import emulator
from flexnpu.common.ports import free_port
from flexnpu.common.quantiles import quantile
from flexnpu.console.numbers import Duration, Number, Whole
from flexnpu.console.output import out_json, say
from flexnpu.console.program import SETTINGS, Program
from flexnpu.control import paths
from flexnpu.control.client import ControlClient
from flexnpu.control.messages import DaemonStatus
from workloads import vllm_ascend
from workloads.models import ensure
from workloads.vllm_load import SEVEN_B, Load, decisions, phase

PHASES = ("alone", "flooded")
MAX_TOKENS = 2048
DEFAULT_STRETCH = 1.1


@contextlib.contextmanager
def running(
    command: Sequence[str], environment: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A program, ended by SIGTERM when the block ends."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(60)


def program(name: str) -> str:
    """One of ours, of this venv."""
    return str(Path(sys.executable).with_name(name))


def wait_for(path: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until `path` is there. Raises ClickException when the program ends before."""
    deadline = time.monotonic() + 120
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise click.ClickException(f"no {path}: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)


def measure(
    venv: Path,
    mode: str,
    load: Load,
    seconds: float,
    rounds: int,
    slowdown: float,
    stretch: float | None,
    policies: Sequence[str],
    folder: Path,
) -> dict[str, Any]:
    """All phases in turns, `rounds` times, on servers started at once."""
    environment = os.environ | {"FLEXNPU_RUN_DIR": str(folder), "PYTHONUNBUFFERED": "1"}
    device = emulator.environment("time", machine=f"share-{os.getpid()}", slowdown=slowdown)
    device = {name: value for name, value in device.items() if name.startswith("FLEXNPU_EMU")}
    model = ensure(SEVEN_B)
    ports = (free_port(), free_port())
    with contextlib.ExitStack() as stack:
        daemon = [program("flexnpud"), "--device", "0", "--emulated", "--run-dir", str(folder)]
        process = stack.enter_context(running(daemon, environment | device, folder / "daemon.log"))
        wait_for(paths.control_socket(0, folder), process, folder / "daemon.log")
        options = ("--load-format", "dummy", "--no-enable-prefix-caching", "--gpu-memory-utilization", "0.9")
        servers = []
        for name, port in zip("DP", ports, strict=True):
            command = vllm_ascend.command(
                venv, model, port, mode, *options, max_tokens=MAX_TOKENS, blocks=256
            )
            prefix = [program("flexnpu"), "run", "--quota", "28GiB", "--"]
            server = vllm_ascend.Server(command, port, environment, folder / f"{name}.log", prefix)
            servers.append(stack.enter_context(server))
        for server in servers:
            server.wait()
        say(f"{mode}: both servers answer")
        engines = {name: server.engine() for name, server in zip("DP", servers, strict=True)}
        client = stack.enter_context(ControlClient(paths.control_socket(0, folder)))
        probe = [program("flexnpu-probe"), "attach", "--all", "--feed", "--quiet"]
        process = stack.enter_context(running(probe, environment, folder / "probe.log"))
        wait_for(folder / "probe.sock", process, folder / "probe.log")
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in (*PHASES, *policies)}
        for turn in range(rounds):
            for name in results:
                with contextlib.ExitStack() as inner:
                    if name in policies:
                        log = folder / f"{name}-{turn}.log"
                        wanted = target_of(name, results["alone"], stretch)
                        command = [program("flexnpu-controller"), "--policy", name, *wanted]
                        inner.enter_context(running(command, environment, log))
                    before = client.status()
                    told = asyncio.run(phase(ports, load, name != "alone", seconds))
                    told["device"] = device_use(before, client.status(), engines)
                if name in policies:
                    told["decisions"] = decisions(log)
                results[name].append(told)
                prompts, device = told["flood_prompts_per_s"], told["device"]
                say(f"{mode}, {name}: TPOT {told['tpot_ms']}, {prompts} prompts/s, {device}")
    return results | {"summary": {name: summary(results, name) for name in policies}}


def device_use(before: DaemonStatus, after: DaemonStatus, engines: dict[str, int]) -> dict[str, Any]:
    """How busy the device was between two answers of the daemon, each engine's part of it by the daemon's
    estimates, and what the gate did. `engines`: pid by name."""
    seconds = after.uptime_s - before.uptime_s
    busy = ((after.device_busy_us or 0) - (before.device_busy_us or 0)) / 1e6 / seconds
    used = {lane.lane: lane.device_us for lane in before.lanes}
    parts = {
        name: sum(lane.device_us - used.get(lane.lane, 0.0) for lane in after.lanes if lane.pid == pid)
        for name, pid in engines.items()
    }
    total = sum(parts.values()) or 1.0
    counted = {
        name: after.counters.get(name, 0) - before.counters.get(name, 0)
        for name in ("gate_held", "gate_forced", "gate_oversize")
    }
    return {
        "busy": round(busy, 3),
        **{name: round(busy * part / total, 3) for name, part in parts.items()},
        **counted,
    }


def target_of(policy: str, alone: list[dict[str, Any]], stretch: float | None) -> list[str]:
    """The controller's options for a target of so many times what a token of D has just taken alone: at p50
    for a policy with a target, at p99 for one with an objective."""
    if policy == "slack":
        return ["--tpot-ms", f"{(stretch or DEFAULT_STRETCH) * alone[-1]['tpot_ms']['p99']:.1f}"]
    if policy != "protect-decode" or stretch is None:
        return []
    return ["--target-ms", f"{stretch * alone[-1]['tpot_ms']['p50']:.1f}"]


def summary(results: dict[str, list[dict[str, Any]]], policy: str) -> dict[str, Any]:
    """How the phases with and without the policy compare: medians over the turns."""

    def middle(name: str, *keys: str) -> float:
        values = []
        for told in results[name]:
            value: Any = told
            for key in keys:
                value = value[key]
            values.append(value)
        return quantile([value for value in values if value is not None], 0.5) or 0.0

    alone = middle("alone", "tpot_ms", "p50")
    flood = middle("flooded", "flood_prompts_per_s")
    return {
        "kept": round(middle(policy, "tpot_ms", "p50") / alone, 3) if alone else None,
        "without": round(middle("flooded", "tpot_ms", "p50") / alone, 3) if alone else None,
        "flood_kept": round(middle(policy, "flood_prompts_per_s") / flood, 3) if flood else None,
        "flood_ceiling": ceiling(
            middle("alone", "device", "D"),
            middle(policy, "tpot_ms", "p50") / alone if alone else 0.0,
            middle("flooded", "device", "P"),
        ),
    }


def ceiling(decode: float, kept: float, prefill: float) -> float | None:
    """The most of its rate under a flood that P can keep, at most 1, on a device that runs one operator at a
    time: ``(1 - decode / kept) / prefill``.

    `decode`: D's part of the device's time alone; `kept`: D's TPOT over that alone; `prefill`: P's part under
    the flood without a policy. None where one of them was not seen.
    """
    if not (decode and kept and prefill):
        return None
    return round(min(1.0, (1 - decode / kept) / prefill), 3)


@click.command("vllm-share", cls=Program, context_settings=SETTINGS)
@click.option(
    "--mode",
    "modes",
    type=click.Choice(list(vllm_ascend.MODES)),
    multiple=True,
    default=("eager",),
    show_default=True,
    help="How the engines launch; may be given more than once.",
)
@click.option("--seconds", type=Duration(1, 3600), default=25.0, show_default=True, help="Of a phase.")
@click.option("--rounds", type=Whole(1, 100), default=1, show_default=True, help="How often all phases run.")
@click.option("--streams", type=Whole(1, 8), default=4, show_default=True, help="At D, at once.")
@click.option("--flood", type=Whole(1, 8), default=4, show_default=True, help="Prompts at P, at once.")
@click.option("--prompt-tokens", type=Whole(1, MAX_TOKENS - 64), default=900, show_default=True)
@click.option(
    "--slowdown", type=Number(0.001, 1000), default=4.0, show_default=True, help="Of the modelled chip."
)
@click.option(
    "--target-stretch",
    "stretch",
    type=Number(1, 100),
    help="Give the controller a target: so many times D's TPOT alone. Default: what it finds by itself; for "
    f"slack's objective {DEFAULT_STRETCH}.",
)
@click.option(
    "--policy",
    "policies",
    type=click.Choice(["protect-decode", "decode-first", "slack", "fifo"]),
    multiple=True,
    default=("protect-decode",),
    show_default=True,
    help="Of the controller; may be given more than once.",
)
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="Where logs are kept.")
def main(
    modes: tuple[str, ...],
    seconds: float,
    rounds: int,
    streams: int,
    flood: int,
    prompt_tokens: int,
    slowdown: float,
    stretch: float | None,
    policies: tuple[str, ...],
    keep: Path | None,
) -> None:
    """Measure what a flood of prompts at one vLLM-Ascend server does to decode at another on the same NPU."""
    try:
        venv = vllm_ascend.find()
    except vllm_ascend.VllmError as error:
        raise click.ClickException(str(error)) from None
    load = Load(streams, 60, flood, prompt_tokens)
    report: dict[str, Any] = {
        "load_average": os.getloadavg()[0],
        "cpus": os.cpu_count(),
        "slowdown": slowdown,
        "target_stretch": stretch,
        "load": vars(load),
        "seconds": seconds,
    }
    with tempfile.TemporaryDirectory(prefix="flexnpu-vllm-share-") as temporary:
        for mode in modes:
            folder = (keep or Path(temporary)) / mode
            folder.mkdir(parents=True, exist_ok=True)
            try:
                report[mode] = measure(venv, mode, load, seconds, rounds, slowdown, stretch, policies, folder)
            except vllm_ascend.VllmError as error:
                raise click.ClickException(str(error)) from None
    out_json(report, indent=2)


if __name__ == "__main__":
    main()
