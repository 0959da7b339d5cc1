"""What tracing costs the traced: flexnpu-probe, a bpftrace script that counts, bcc's funclatency, in one run.

For each tracer two programs of the same kind run side by side, and short slices of them are measured in turn.
In several cycles, first neither is traced; then one is; what the tracer adds in a cycle is the change of the
ratio between the two:

    added = median(traced / control) / median(untraced before / control before) - 1

so neither the machine's pace nor differences between processes count, and what drifts shows as a difference
between cycles: `error` is the standard error of their mean. A slice's figure is its median step. The two
programs share one core, the tracer has the others: a step's time is then the work of all the program's
threads. The same is told of CPU time. The control has vendor libraries of its own, since a tracer without a
filter by process (bpftrace's uprobes) slows down whoever maps the file.

Programs: an eager torch_npu decode loop of some 180 launches a step that is all host work, issued by the
thread that waits (TASK_QUEUE_ENABLE=0), so that nothing of a probe is hidden behind another thread; steps of
Qwen2.5-0.5B replayed from a captured graph; and a C loop of one operator. On the vendor's libraries (the
emulated CANN) and on FlexNPU's client. Device time is modelled.

Then, by rate of launches: CPU of the tracer, its memory, and whether what it received and what it says it
lost add up to what was launched. Needs root.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import click

from benchmarks.launch_cost import Bench, bench
from benchmarks.pairs import NATIVE, BenchmarkError, Peer, cpu_seconds, spread
from benchmarks.tracers import TracerProcess, bpftrace, funclatency, ours, steps_of
from flexnpu import emulator
from flexnpu.console.numbers import Whole
from probes.steps.tracer import Tracer

RATES = (1_000, 10_000, 100_000)
DETAIL = ("--detail", "launches")

CYCLES = 8
"""How often a tracer comes and goes."""

#: By program: the figure's request, the command, and what is set for it.
Program = tuple[str, list[str], dict[str, str]]
_TORCH = [sys.executable, "-m", "benchmarks.torch_peer"]
PROGRAMS: dict[str, Program] = {
    "c_loop": ("load 20", [str(NATIVE)], {}),
    "decode_eager": ("eager 10", [*_TORCH, "llama"], {"TASK_QUEUE_ENABLE": "0"}),
    "decode_graph": ("graph 20", [*_TORCH, "qwen2"], {}),
}

Attach = Callable[[int], TracerProcess]


def _default(pid: int) -> TracerProcess:
    return ours(pid)


def _detail(pid: int) -> TracerProcess:
    return ours(pid, *DETAIL)


#: By target: who is compared. bpftrace and funclatency count what a vendor's library makes of each operator.
TRACERS: dict[str, dict[str, Attach]] = {
    "cann": {"default": _default, "detail": _detail, "bpftrace": bpftrace, "funclatency": funclatency},
    "client": {"default": _default, "detail": _detail},
}


def _environment(sides: Bench, target: str) -> dict[str, str]:
    return sides.direct if target == "cann" else sides.interposed


_Pairs = list[tuple[float, float]]
"""A figure of the traced program and of its control, slice by slice; smaller is better."""


def _middle(pairs: Iterable[tuple[float, float]]) -> float:
    return statistics.median(traced / control for traced, control in pairs)


def _total(pairs: _Pairs) -> float:
    return sum(traced for traced, _ in pairs) / sum(control for _, control in pairs)


class _Series:
    """One figure in the cycles of a comparison: before the tracer came, and with it."""

    def __init__(self) -> None:
        self.cycles: list[tuple[_Pairs, _Pairs]] = []

    def report(self) -> dict[str, Any]:
        """What the tracer adds: percent, and in the figure's unit; spread over slices."""
        slices, cycles = [], []
        for before, traced in self.cycles:
            alone = _middle(before)
            slices += [one / control / alone - 1 for one, control in traced]
            cycles.append(_middle(traced) / alone - 1)
        added = spread(slices)
        added["error"] = statistics.stdev(cycles) / len(cycles) ** 0.5
        untraced = spread(control for _, traced in self.cycles for _, control in traced)
        return {
            "untraced": untraced,
            "added_percent": {name: n if name == "n" else n * 100 for name, n in added.items()},
            "added": added["median"] * untraced["median"],
        }

    def in_sum(self) -> float:
        """Percent added to the sum of all slices; the machine's hiccups are in it, and windows of detail."""
        before = [pair for cycle, _ in self.cycles for pair in cycle]
        traced = [pair for _, cycle in self.cycles for pair in cycle]
        return (_total(traced) / _total(before) - 1) * 100


def compare(target: str, rounds: int, program: Program) -> dict[str, Any]:
    """A program untraced and under every tracer of `target`."""
    request, command, extra = program
    report: dict[str, Any] = {}
    with bench("time") as sides, ExitStack() as stack:
        environment = _environment(sides, target) | extra
        control = environment
        if target == "cann":
            control = environment | _own_libraries(environment, stack)
        peers = []
        for one in (environment, control):
            peers.append(Peer(command, one))
            stack.callback(peers[-1].close)
            peers[-1].ask(request)  # shapes seen, graphs captured
        _together(peers)
        for name, attach in TRACERS[target].items():
            # By figure: of the median step, of all steps' mean, of CPU time.
            wall, mean, cpu = series = _Series(), _Series(), _Series()
            starts, stops = [], []
            share = math.ceil(rounds / CYCLES)
            for _ in range(CYCLES):
                before = _slices(peers, share, request)
                tracer = attach(peers[0].process.pid)
                try:
                    _apart(tracer)
                    traced = _slices(peers, share, request)
                    resident = tracer.resident_mib()
                finally:
                    said = tracer.stop()
                for figure, *cycle in zip(series, before, traced, strict=True):
                    figure.cycles.append((cycle[0], cycle[1]))
                starts.append(tracer.start_s)
                stops.append(tracer.stop_s)
            report[name] = wall.report() | {
                "in_sum_percent": mean.in_sum(),
                "cpu": cpu.report(),
                "tracer": {"start_s": spread(starts), "stop_s": spread(stops), "resident_mib": resident},
            }
            if name == "detail":
                report["launches_a_step"] = _launches_a_step(said)
    return report


def _own_libraries(environment: Mapping[str, str], stack: ExitStack) -> dict[str, str]:
    """A copy of the emulated CANN, and the setting that makes a program load it."""
    theirs = str(emulator.lib_dir())
    ours = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flexnpu-bench-"))) / "lib"
    shutil.copytree(theirs, ours, symlinks=True)
    paths = environment["LD_LIBRARY_PATH"].split(":")
    return {"LD_LIBRARY_PATH": ":".join(str(ours) if path == theirs else path for path in paths)}


def _slices(peers: list[Peer], rounds: int, request: str) -> tuple[_Pairs, _Pairs, _Pairs]:
    """`rounds` slices on both programs in turn: pairs of the figures that `_figures` says."""
    pairs: tuple[_Pairs, _Pairs, _Pairs] = [], [], []
    for turn in range(rounds):
        slices = {}
        for index in (0, 1) if turn % 2 == 0 else (1, 0):
            pid = peers[index].process.pid
            before = cpu_seconds(pid)
            answer = peers[index].ask(request)
            slices[index] = _figures(answer, cpu_seconds(pid) - before)
        for kind, of_one, of_other in zip(pairs, slices[0], slices[1], strict=True):
            kind.append((of_one, of_other))
    return pairs


def _figures(answer: dict[str, Any], cpu_s: float) -> tuple[float, float, float]:
    """The median step, the mean step, and a step's CPU time, microseconds; of operators the mean, ns."""
    if "step_us" in answer:
        cpu = float(answer["cpu_s"]) / float(answer["steps"]) * 1e6
        return float(answer["step_us"]), 1e6 / float(answer["tokens_per_s"]), cpu
    operators = float(answer["operators"])
    mean = float(answer["seconds"]) / operators * 1e9
    return mean, mean, cpu_s / operators * 1e9


def _apart(tracer: TracerProcess) -> None:
    """Keeps a tracer off the traced programs' core: what it adds is its probes."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        _pin(tracer.process.pid, cores[1:])


def _together(peers: list[Peer]) -> None:
    """Keeps programs that take turns, with all their threads, on one core.

    On several, where a thread happens to run decides more than any probe: slices differ by a third.
    """
    core = sorted(os.sched_getaffinity(0))[:1]
    for peer in peers:
        _pin(peer.process.pid, core)


def _pin(pid: int, cores: list[int]) -> None:
    for task in os.listdir(f"/proc/{pid}/task"):
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(task), cores)


def _launches_a_step(said: str) -> float | None:
    steps, _ = steps_of(said)
    seen = [int(str(step["launches"])) for step in steps if step["phase"] == "decode" and step["launches"]]
    return statistics.median(seen) if seen else None


def rates(target: str, seconds: float) -> dict[str, Any]:
    """The tracer's own CPU (share of a core) and memory by launches a second, and its account of them."""
    report: dict[str, Any] = {}
    with bench("time") as sides:
        for name, attach in TRACERS[target].items():
            peer = Peer([str(NATIVE)], _environment(sides, target))
            try:
                tracer = attach(peer.process.pid)
                try:
                    rows, launched = {}, 0
                    for rate in RATES:
                        cpu, began = cpu_seconds(tracer.process.pid), time.monotonic()
                        answer = peer.ask(f"rate {rate} {int(seconds * 1000)}")
                        spent, took = cpu_seconds(tracer.process.pid) - cpu, time.monotonic() - began
                        launched += answer["operators"]
                        rows[str(rate)] = {
                            "cpu": spent / took,
                            "reached_per_s": answer["operators"] / answer["seconds"],
                        }
                    highest = peer.ask(f"load {int(seconds * 1000)}")
                    launched += highest["operators"]
                    row: dict[str, Any] = {
                        "by_rate": rows,
                        "resident_mib": tracer.resident_mib(),
                        "highest_per_s": highest["operators"] / highest["seconds"],
                    }
                finally:
                    said = tracer.stop()
                if name == "detail":
                    row["account"] = _account(said, launched)
                report[name] = row
            finally:
                peer.close()
    return report


def _account(said: str, launched: int) -> dict[str, Any]:
    steps, losses = steps_of(said)
    received = sum(int(str(step["launches"] or 0)) for step in steps)
    lost = {name: count for name, count in losses.items() if count and "lost" in name}
    return {"launched": launched, "received": received, "records": len(steps), "lost": lost}


def attaching(target: str, times: int) -> dict[str, Any]:
    """ms to load the BPF programs, to attach to a process, and to detach and unload."""
    load, attach, detach = [], [], []
    with bench("time") as sides:
        peer = Peer([str(NATIVE)], _environment(sides, target))
        try:
            for _ in range(times):
                began = time.perf_counter()
                with Tracer(lambda _event: None) as tracer:
                    loaded = time.perf_counter()
                    tracer.attach(peer.process.pid)
                    attached = time.perf_counter()
                    tracer.poll(0.05)
                    ending = time.perf_counter()
                load.append((loaded - began) * 1e3)
                attach.append((attached - loaded) * 1e3)
                detach.append((time.perf_counter() - ending) * 1e3)
        finally:
            peer.close()
    return {"load_ms": spread(load), "attach_ms": spread(attach), "detach_ms": spread(detach)}


@click.command(short_help="What tracing costs: ours, bpftrace's and funclatency, side by side.")
@click.option(
    "--rounds", type=Whole(3, 1_000_000), default=160, show_default=True, help="Slices of each kind."
)
@click.option("--target", "targets", multiple=True, type=click.Choice(list(TRACERS)), help="[default: both]")
@click.option("--torch/--no-torch", "with_torch", default=True, help="Run torch_npu's decode loop too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def main(rounds: int, targets: tuple[str, ...], with_torch: bool, as_json: bool) -> None:
    """Measure what tracing costs the traced program, and what the tracer itself takes.

    \b
    Examples:
      sudo flexnpu bench probe               a table
      sudo flexnpu bench probe --json        the same as one JSON object
      sudo flexnpu bench probe --no-torch    the C loop only: a minute
    """
    if os.geteuid() != 0:
        raise click.ClickException("tracing needs root: sudo flexnpu bench probe")
    if not NATIVE.exists():
        raise click.ClickException(f"no {NATIVE}: build it with `make build` (it is not in a wheel)")
    # A shell's background job ignores SIGINT, and so would the tracers that it is to end.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    report: dict[str, Any] = {"rounds": rounds, "cores": os.cpu_count(), "load_before": os.getloadavg()[0]}
    programs = PROGRAMS if with_torch else {"c_loop": PROGRAMS["c_loop"]}
    try:
        for target in targets or tuple(TRACERS):
            made: dict[str, Any] = {}
            for name, program in programs.items():
                made[name] = compare(target, rounds, program)
            made["rates"] = rates(target, 2.0)
            made["attaching"] = attaching(target, 5)
            report[target] = made
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from None
    report["load_after"] = os.getloadavg()[0]
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        _table(report)


def _table(report: dict[str, Any]) -> None:
    print(f"{'program':22}{'tracer':14}{'untraced':>12}  added (p10 to p90)")
    for target in (name for name in TRACERS if name in report):
        for program in (name for name in PROGRAMS if name in report[target]):
            for name in TRACERS[target]:
                row = report[target][program][name]
                percent, unit = row["added_percent"], "ns" if program == "c_loop" else "us"
                print(
                    f"{target + ' ' + program:22}{name:14}{row['untraced']['median']:9.1f} {unit}  "
                    f"{percent['median']:+.2f} % +- {percent['error']:.2f} ({percent['p10']:+.2f} to "
                    f"{percent['p90']:+.2f})  CPU {row['cpu']['added_percent']['median']:+.2f} %"
                )
        for name, row in report[target]["rates"].items():
            cpu = ", ".join(f"{r['cpu'] * 100:.1f} % at {rate}/s" for rate, r in row["by_rate"].items())
            account = row.get("account", "")
            print(f"{target} {name}: tracer's CPU {cpu}; {row['resident_mib']:.0f} MiB {account}")
        times = report[target]["attaching"]
        print(f"{target}: " + ", ".join(f"{name} {row['median']:.0f}" for name, row in times.items()))


if __name__ == "__main__":
    main()
