"""The price of interposition: calls, eager operators and decode, directly and through the daemon, in one run.

Each round runs the same program straight on the emulated device and through a daemon, one after the other;
figures are medians over rounds, and ratios are medians of a round's two figures. The device runs in time
mode: operators take their modelled time and compute nothing, so that the host is what is measured. Prints
one JSON object.

    python -m benchmarks.interposition [--rounds N] [--no-torch]
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from flexnpu import emulator
from flexnpu.cli import run as flexnpu_run
from flexnpu.control import paths
from flexnpu.control.client import ControlClient

REPOSITORY = Path(__file__).resolve().parent.parent
LAUNCH = REPOSITORY / "build" / "benchmarks" / "launch"
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def eager(steps: int) -> dict[str, float]:
    """In a child: us an eager operator and ms a decode step of a tiny Qwen2, by unmodified torch_npu."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch_npu: Any = importlib.import_module("torch_npu")
    a: Any = torch.ones(64, 64)
    a = a.npu()
    for _ in range(200):
        a = a * 1.0
    torch_npu.npu.synchronize()
    operators = []
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(500):
            a = a * 1.0
        torch_npu.npu.synchronize()
        operators.append((time.perf_counter() - began) / 500 * 1e6)
    config: Any = Qwen2Config(
        vocab_size=1000,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
    )
    net: Any = Qwen2ForCausalLM(config)
    net = net.to(torch.float16).npu().eval()

    def decode(count: int) -> None:
        # A loop of our own: without numerics, generate() never reads that it is done.
        cache = None
        token: Any = torch.ones(1, 16, dtype=torch.int64)
        token = token.npu()
        for _ in range(count):
            out = net(token, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            token = out.logits[:, -1:].argmax(-1)
            token.cpu()  # the server's look at each token

    with torch.no_grad():
        decode(8)
        before = resource.getrusage(resource.RUSAGE_SELF)
        began = time.perf_counter()
        decode(steps)
        seconds = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "eager_operator_us": statistics.median(operators),
        "decode_step_ms": seconds / steps * 1e3,
        "decode_cpu_ms_a_step": cpu / steps * 1e3,
        "decode_seconds": seconds,
    }


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def _run(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise click.ClickException(f"{command[0]} failed:\n{result.stderr[-2000:]}")
    parsed: dict[str, Any] = json.loads(result.stdout[result.stdout.index("{") :])
    return parsed


class Daemon:
    """flexnpud for the emulated device, in time mode."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        command = [str(Path(sys.executable).with_name("flexnpud")), "--emulated", "--mode", "time"]
        self.directory = directory
        self.process = subprocess.Popen(
            [*command, "--run-dir", str(directory)], env=environment, stderr=subprocess.PIPE
        )
        deadline = time.monotonic() + 30
        while not paths.control_socket(0, directory).exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise click.ClickException(f"flexnpud did not start: {self.process.communicate()[1]!r}")
            time.sleep(0.05)

    def resident_mib(self) -> float:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        return 0.0

    def counters(self) -> dict[str, int]:
        with ControlClient(paths.control_socket(0, self.directory)) as client:
            return client.status().counters

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=30)


def _flat(results: list[dict[str, Any]]) -> dict[str, list[float]]:
    series: dict[str, list[float]] = {}
    for result in results:
        for name, value in result.items():
            series.setdefault(name, []).append(value["median"] if isinstance(value, dict) else value)
    return series


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Pairs of runs.")
@click.option("--steps", default=100, show_default=True, help="Decode steps a run.")
@click.option("--torch/--no-torch", "with_torch", default=True, help="Run torch_npu too.")
@click.option("--child", is_flag=True, hidden=True)
def main(rounds: int, steps: int, with_torch: bool, child: bool) -> None:
    """Measure what interposition costs a program."""
    if child:
        print(json.dumps(eager(steps)))
        return
    machine = f"bench-{os.getpid()}"
    direct_environment = os.environ | emulator.environment(mode="time", machine=machine)
    programs = [[str(LAUNCH), "200"]]
    if with_torch:
        programs.append([sys.executable, "-m", "benchmarks.interposition", "--child", "--steps", str(steps)])
    pairs: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="flexnpu-bench-") as directory:
        daemon = Daemon(Path(directory), os.environ | {"FLEXNPU_EMU_MACHINE": machine})
        try:
            time.sleep(1)
            cpu, began = _cpu_seconds(daemon.process.pid), time.monotonic()
            time.sleep(5)
            idle = (_cpu_seconds(daemon.process.pid) - cpu) / (time.monotonic() - began)
            idle_mib = daemon.resident_mib()
            interposed_environment = flexnpu_run.environment(
                flexnpu_run.CLIENT_HOME, paths.data_socket(0, Path(directory)), os.environ
            )
            for _ in range(rounds):
                for program in programs:
                    direct = _run(program, direct_environment)
                    cpu = _cpu_seconds(daemon.process.pid)
                    interposed = _run(program, interposed_environment)
                    cpu = _cpu_seconds(daemon.process.pid) - cpu
                    if "decode_step_ms" in interposed:
                        # The daemon's time over the whole run, shared out by time: its load is even enough.
                        interposed["daemon_cpu_s_a_run"] = cpu
                    for side, result in (("direct", direct), ("interposed", interposed)):
                        for name, values in _flat([result]).items():
                            pairs.setdefault(name, {}).setdefault(side, []).extend(values)
            loaded_mib = daemon.resident_mib()
            counters = daemon.counters()
        finally:
            daemon.stop()
    report: dict[str, Any] = {"rounds": rounds, "daemon_idle_cpu": idle, "daemon_idle_mib": idle_mib}
    report["daemon_loaded_mib"] = loaded_mib
    report["counters"] = counters
    for name, sides in pairs.items():
        entry: dict[str, Any] = {side: statistics.median(values) for side, values in sides.items()}
        if len(sides) == 2:
            ratios = [i / d for d, i in zip(sides["direct"], sides["interposed"], strict=True) if d]
            entry["ratio"] = statistics.median(ratios)
            entry["ratio_range"] = [min(ratios), max(ratios)]
        report[name] = entry
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
