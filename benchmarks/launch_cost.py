"""The price of interposition: the same programs on the emulated device directly and through a daemon.

The letters are those of the report:

a  a C loop over one operator whose shape has been seen: ns that both its calls take from the caller
b  torch_npu, eager: us an operator
c  Qwen2 decode, eager and replayed from a captured graph: tokens/s, and CPU time a step (the
   program's and the daemon's, the threads that play the device included on both sides)
d  a synchronise of an idle stream, hot: us
e  copies of 4 KiB to 256 MiB, each way, pageable and pinned: us
f  the daemon's CPU and memory, idle and loaded
g  1 to 8 clients at once: operators/s of all together

Both sides are alive at once and take turns slice by slice (see `pairs`); a ratio is that of one pair of
slices, and every figure comes as median, 10th and 90th percentile. Device time is modelled: for all but the
copies the device computes nothing (mode `time`), so that the host is what is measured; for the copies it
moves the bytes (mode `compute`).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks.pairs import NATIVE, BenchmarkError, Comparison, Daemon, Peer, spread
from flexnpu import emulator
from flexnpu.client import environment as client
from flexnpu.console.numbers import Whole
from flexnpu.control import paths

COPY_BYTES = (4 << 10, 64 << 10, 1 << 20, 16 << 20, 256 << 20)
CLIENTS = (1, 2, 4, 8)


class Bench:
    """The two sides: environments for programs, and the daemon of the interposed one."""

    def __init__(self, directory: Path, mode: str) -> None:
        # A device each: what one side has left in its engines' queues is not the other's concern.
        machine = f"bench-{os.getpid()}-{mode}"
        self.direct = os.environ | emulator.environment(mode=mode, machine=f"{machine}-direct")
        self.daemon = Daemon(directory, machine, mode)
        self.interposed = client.environment(
            client.CLIENT_HOME, [paths.data_socket(0, directory)], os.environ
        )

    def peers(self, stack: ExitStack, command: list[str]) -> tuple[Peer, Peer]:
        """The same program on both sides; direct first."""
        made = []
        for environment in (self.direct, self.interposed):
            peer = Peer(command, environment)
            stack.callback(peer.close)
            made.append(peer)
        return made[0], made[1]


@contextmanager
def bench(mode: str) -> Iterator[Bench]:
    """A daemon in a temporary run directory, for one mode of the emulated device; stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="flexnpu-bench-") as directory:
        made = Bench(Path(directory), mode)
        try:
            yield made
        finally:
            made.daemon.stop()


def in_turns(
    rounds: int, direct: Callable[[], dict[str, float]], interposed: Callable[[], dict[str, float]]
) -> dict[str, Any]:
    """`rounds` pairs of slices; who goes first alternates."""
    comparison = Comparison()
    for turn in range(rounds):
        if turn % 2:
            second = interposed()
            first = direct()
        else:
            first = direct()
            second = interposed()
        comparison.add(first, second)
    return comparison.report()


def calls(rounds: int) -> dict[str, Any]:
    """a and d."""
    with bench("time") as sides, ExitStack() as stack:
        direct, interposed = sides.peers(stack, [str(NATIVE)])
        return in_turns(rounds, partial(direct.ask, "calls 20"), partial(interposed.ask, "calls 20"))


def copies(rounds: int) -> dict[str, Any]:
    """e, by size in bytes."""
    report = {}
    with bench("compute") as sides, ExitStack() as stack:
        direct, interposed = sides.peers(stack, [str(NATIVE)])
        for size in COPY_BYTES:
            request = f"copy {size} {max(1, min(50, (32 << 20) // size))}"
            report[str(size)] = in_turns(
                max(3, rounds // 3), partial(direct.ask, request), partial(interposed.ask, request)
            )
    return report


def torch_programs(rounds: int, steps: int) -> dict[str, Any]:
    """b and c, and f's loaded part."""
    report: dict[str, Any] = {}
    with bench("time") as sides, ExitStack() as stack:
        direct, interposed = sides.peers(stack, [sys.executable, "-m", "benchmarks.torch_peer"])
        report["eager_operators"] = in_turns(
            rounds, partial(direct.ask, "operators 5000"), partial(interposed.ask, "operators 5000")
        )
        loads: list[float] = []

        def decode(peer: Peer, request: str) -> dict[str, float]:
            before, began = sides.daemon.cpu_seconds(), time.monotonic()
            answer = peer.ask(request)
            cpu_s = answer["cpu_s"]
            if peer is interposed:
                daemon_s = sides.daemon.cpu_seconds() - before
                loads.append(daemon_s / (time.monotonic() - began))
                cpu_s += daemon_s
            return {"tokens_per_s": answer["tokens_per_s"], "cpu_ms_a_step": cpu_s / answer["steps"] * 1e3}

        for name, request in (("decode_eager", f"eager {steps}"), ("decode_graph", f"graph {steps * 4}")):
            for peer in (direct, interposed):
                decode(peer, request)  # shapes seen, graph captured
            loads.clear()
            report[name] = in_turns(
                rounds, partial(decode, direct, request), partial(decode, interposed, request)
            )
            report[name]["daemon_cpu"] = spread(loads)
        report["daemon_loaded_mib"] = sides.daemon.resident_mib()
        report["counters"] = sides.daemon.counters()
    return report


def idle(seconds: float) -> dict[str, float]:
    """f: a daemon without clients, and with one that does nothing; CPU as a share of one core."""
    report = {}
    with bench("time") as sides, ExitStack() as stack:
        for name in ("without_clients", "with_idle_client"):
            if name == "with_idle_client":
                stack.callback(Peer([str(NATIVE)], sides.interposed).close)
            time.sleep(1)
            before, began = sides.daemon.cpu_seconds(), time.monotonic()
            time.sleep(seconds)
            report[f"cpu_{name}"] = (sides.daemon.cpu_seconds() - before) / (time.monotonic() - began)
            report[f"mib_{name}"] = sides.daemon.resident_mib()
    return report


def clients(rounds: int) -> dict[str, Any]:
    """g: operators/s of n clients together, for both sides."""
    series: dict[int, Comparison] = {n: Comparison() for n in CLIENTS}
    with bench("time") as sides, ExitStack() as stack:
        pairs = [sides.peers(stack, [str(NATIVE)]) for _ in range(max(CLIENTS))]

        def together(peers: list[Peer]) -> dict[str, float]:
            for peer in peers:
                peer.send("load 300")
            answers = [peer.receive() for peer in peers]
            return {"operators_per_s": sum(a["operators"] / a["seconds"] for a in answers)}

        for turn in range(max(3, rounds // 3)):
            for n in CLIENTS:
                first = [pair[turn % 2] for pair in pairs[:n]]
                second = [pair[1 - turn % 2] for pair in pairs[:n]]
                results = together(first), together(second)
                series[n].add(*(results if turn % 2 == 0 else results[::-1]))
    return {str(n): comparison.report() for n, comparison in series.items()}


@click.command(short_help="The price of interposition, direct against interposed.")
@click.option("--rounds", type=Whole(2, 1_000_000), default=20, show_default=True, help="Pairs of slices.")
@click.option(
    "--steps", type=Whole(5, 1_000_000), default=40, show_default=True, help="Decode steps a slice."
)
@click.option("--torch/--no-torch", "with_torch", default=True, help="Run torch_npu too (b and c).")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def main(rounds: int, steps: int, with_torch: bool, as_json: bool) -> None:
    """Measure what interposition costs a program: direct against interposed on the emulated device, in turns.

    \b
    Examples:
      flexnpu bench launch                  a table: medians, spread, ratios
      flexnpu bench launch --json           the same as one JSON object
      flexnpu bench launch --no-torch       without torch_npu: half a minute
    """
    if not NATIVE.exists():
        raise click.ClickException(f"no {NATIVE}: build it with `make build` (it is not in a wheel)")
    report: dict[str, Any] = {"rounds": rounds, "cores": os.cpu_count(), "load_before": os.getloadavg()[0]}
    try:
        report["calls"] = calls(rounds)
        report["idle"] = idle(5.0)
        report["copies"] = copies(rounds)
        report["clients"] = clients(rounds)
        if with_torch:
            report["torch"] = torch_programs(rounds, steps)
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from None
    report["load_after"] = os.getloadavg()[0]
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        _table(report)


def _rows(report: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The comparisons in a report, with their path."""
    for name, value in report.items():
        if not isinstance(value, dict):
            continue
        path = f"{prefix}{name}"
        if "ratio" in value:
            yield path, value
        else:
            yield from _rows(value, f"{path} ")


def _table(report: dict[str, Any]) -> None:
    def cell(value: dict[str, float]) -> str:
        if "p10" not in value:
            return f"{value.get('median', float('nan')):.4g}"
        return f"{value['median']:.4g} ({value['p10']:.4g} to {value['p90']:.4g})"

    print(f"{'figure':44} {'direct':32} {'interposed':32} ratio")
    for path, value in _rows(report):
        print(f"{path:44} {cell(value['direct']):32} {cell(value['interposed']):32} {cell(value['ratio'])}")
    for name, value in report["idle"].items():
        print(f"daemon {name:37} {value:.4g}")


if __name__ == "__main__":
    main()
