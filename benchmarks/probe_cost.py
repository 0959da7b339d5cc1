"""What tracing costs the traced: flexnpu-probe, a bpftrace script that counts, bcc's funclatency, in one run.

For each tracer two programs of the same kind run side by side, and slices of them are measured in turn. First
neither is traced; then one is; what the tracer adds is the change of the ratio between the two:

    added = median(traced / control) / median(untraced before / control before) - 1

so neither the machine's pace nor differences between processes count. The two share one core, the tracer has
the others: a step's time is then the work of all the program's threads, which probes make longer. The same is
told of CPU time. Programs: an eager torch_npu decode loop of some 180 launches a step that is all host work,
steps of Qwen2.5-0.5B replayed from a captured graph, and a C loop of one operator; on the vendor's libraries
(the emulated CANN) and on FlexNPU's client. Device time is modelled.

Then, by rate of launches: CPU of the tracer, its memory, and whether what it received and what it says it
lost add up to what was launched. Needs root.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import click

from benchmarks.launch_cost import Bench, bench
from benchmarks.pairs import NATIVE, BenchmarkError, Peer, cpu_seconds, spread
from benchmarks.tracers import TracerProcess, bpftrace, funclatency, ours, steps_of
from probes.tracer import Tracer

RATES = (1_000, 10_000, 100_000)
DETAIL = ("--detail", "launches")

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


@dataclass
class _Series:
    """One figure of a traced program and its control (smaller is better), round by round."""

    before: list[tuple[float, float]] = field(default_factory=list)
    traced: list[tuple[float, float]] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """What the tracer adds: percent, and in the figure's unit."""
        alone = statistics.median(traced / control for traced, control in self.before)
        added = [traced / control / alone - 1 for traced, control in self.traced]
        untraced = spread(control for _, control in self.traced)
        return {
            "untraced": untraced,
            "added_percent": _scaled(spread(added), 100),
            "added": statistics.median(added) * untraced["median"],
        }


def _scaled(figures: dict[str, float], by: float) -> dict[str, float]:
    return {name: value if name == "n" else value * by for name, value in figures.items()}


def compare(target: str, rounds: int, command: list[str], requests: list[str]) -> dict[str, Any]:
    """A program of `command` untraced and under every tracer of `target`; a figure for each of `requests`."""
    report: dict[str, Any] = {}
    with bench("time") as sides, ExitStack() as stack:
        peers = [Peer(command, _environment(sides, target)) for _ in range(2)]
        for peer in peers:
            stack.callback(peer.close)
            for request in requests:
                peer.ask(request)  # shapes seen, graphs captured
        _together(peers)
        for name, attach in TRACERS[target].items():
            wall = {request: _Series() for request in requests}
            cpu = {request: _Series() for request in requests}
            _slices(peers, rounds, {r: (wall[r].before, cpu[r].before) for r in requests})
            tracer = attach(peers[0].process.pid)
            try:
                _apart(tracer)
                _slices(peers, rounds, {r: (wall[r].traced, cpu[r].traced) for r in requests})
                resident = tracer.resident_mib()
            finally:
                said = tracer.stop()
            report[name] = {
                request.split()[0]: wall[request].report() | {"cpu": cpu[request].report()}
                for request in requests
            }
            report[name]["tracer"] = {
                "start_s": tracer.start_s,
                "stop_s": tracer.stop_s,
                "resident_mib": resident,
            }
            if name == "detail":
                report["launches_a_step"] = _launches_a_step(said)
    return report


_Pairs = list[tuple[float, float]]


def _slices(peers: list[Peer], rounds: int, into: dict[str, tuple[_Pairs, _Pairs]]) -> None:
    """`rounds` slices of each request on both programs in turn: pairs of wall time and of CPU time."""
    for turn in range(rounds):
        for request, (walls, cpus) in into.items():
            pair = {}
            for index in (0, 1) if turn % 2 == 0 else (1, 0):
                pid = peers[index].process.pid
                before = cpu_seconds(pid)
                answer = peers[index].ask(request)
                pair[index] = _figures(answer, cpu_seconds(pid) - before)
            walls.append((pair[0][0], pair[1][0]))
            cpus.append((pair[0][1], pair[1][1]))


def _figures(answer: dict[str, Any], cpu_s: float) -> tuple[float, float]:
    """Wall time and CPU time: microseconds a step, or nanoseconds an operator."""
    if "tokens_per_s" in answer:
        return 1e6 / float(answer["tokens_per_s"]), cpu_s / float(answer["steps"]) * 1e6
    operators = float(answer["operators"])
    return float(answer["seconds"]) / operators * 1e9, cpu_s / operators * 1e9


def _apart(tracer: TracerProcess) -> None:
    """Keeps a tracer off the traced programs' core: what it adds is its probes."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(tracer.process.pid, cores[1:])


def _together(peers: list[Peer]) -> None:
    """Keeps programs that take turns, with all their threads, on one core.

    On several, where a thread happens to run decides more than any probe: slices differ by a third.
    """
    core = sorted(os.sched_getaffinity(0))[:1]
    for peer in peers:
        for task in os.listdir(f"/proc/{peer.process.pid}/task"):
            os.sched_setaffinity(int(task), core)


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
@click.option("--rounds", type=click.IntRange(3), default=15, show_default=True, help="Slices of each kind.")
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
    report: dict[str, Any] = {"rounds": rounds, "cores": os.cpu_count(), "load_before": os.getloadavg()[0]}
    torch = [sys.executable, "-m", "benchmarks.torch_peer"]
    try:
        for target in targets or tuple(TRACERS):
            made: dict[str, Any] = {"c_loop": compare(target, rounds, [str(NATIVE)], ["load 100"])}
            if with_torch:
                made["decode_eager"] = compare(target, rounds, [*torch, "llama"], ["eager 30"])
                made["decode_graph"] = compare(target, rounds, [*torch, "qwen2"], ["graph 60"])
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
    for target in report.keys() & TRACERS.keys():
        for program in ("c_loop", "decode_eager", "decode_graph"):
            for name in TRACERS[target] if program in report[target] else ():
                for what, row in report[target][program][name].items():
                    if what == "tracer":
                        continue
                    percent, unit = row["added_percent"], "ns" if what == "load" else "us"
                    print(
                        f"{target + ' ' + what:22}{name:14}{row['untraced']['median']:9.1f} {unit}  "
                        f"{percent['median']:+.2f} % ({percent['p10']:+.2f} to {percent['p90']:+.2f})"
                        f"  CPU {row['cpu']['added_percent']['median']:+.2f} %"
                    )
        for name, row in report[target]["rates"].items():
            cpu = ", ".join(f"{r['cpu'] * 100:.1f} % at {rate}/s" for rate, r in row["by_rate"].items())
            account = row.get("account", "")
            print(f"{target} {name}: tracer's CPU {cpu}; {row['resident_mib']:.0f} MiB {account}")
        times = report[target]["attaching"]
        print(f"{target}: " + ", ".join(f"{name} {row['median']:.0f}" for name, row in times.items()))


if __name__ == "__main__":
    main()
