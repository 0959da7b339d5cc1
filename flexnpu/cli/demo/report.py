"""From what was collected to figures: one `Phase` of the demo, the side-by-side table, and the checks."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from flexnpu.cli.demo.watch import Watch, Window
from flexnpu.common.quantiles import quantile
from flexnpu.console.tables import Console, Table, cell
from probes.feed.events import RequestTiming, Step
from workloads.replay import Record, summarise
from workloads.truth import Accuracy, compare, expected_run, split_runs


@dataclass
class Check:
    """One link of the chain: what was asked of it, whether it held, and the figures."""

    name: str
    passed: bool
    detail: str


@dataclass
class Phase:
    """What one part of the demo collected. Device and gate times are differences of the daemon's counters."""

    name: str
    title: str
    load: Window
    """What the figures are over: requests sent, and steps ended, while the load was steady."""
    whole: Window
    """With the lead-in before it and the drain after it."""
    records: list[Record]
    busy_us: float | None
    gated_us: dict[int, float]
    figures: dict[str, Any] = field(default_factory=dict)


def step_times_ms(steps: Sequence[Step]) -> dict[str, float | int | None]:
    """Count, mean and quantiles of step times."""
    times = [step.duration_us / 1e3 for step in steps]
    return {
        "steps": len(times),
        "mean": sum(times) / len(times) if times else None,
        **{f"p{percent}": quantile(times, percent / 100) for percent in (50, 95, 99)},
    }


def wire_ttft_ms(requests: Sequence[RequestTiming]) -> dict[str, float | int | None]:
    """TTFT as the probes took it from the server's socket."""
    times = [(r.t_first_ns - r.t_arrival_ns) / 1e6 for r in requests if r.t_first_ns is not None]
    return {"requests": len(times), "p50": quantile(times, 0.5), "p99": quantile(times, 0.99)}


def fill(phase: Phase, watch: Watch, pids: dict[str, int]) -> None:
    """Compute ``phase.figures``."""
    seconds = phase.load.seconds
    figures: dict[str, Any] = {
        "seconds": seconds,
        "device_busy": None if phase.busy_us is None else phase.busy_us / 1e6 / seconds,
        "servers": {},
    }
    for name, pid in pids.items():
        records = [r for r in phase.records if r.server == name and phase.load.holds(r.sent_ns)]
        if not records:
            continue
        in_load = watch.steps(pid, phase.load)
        prefills = [step for step in in_load if step.phase == "prefill"]
        figures["servers"][name] = {
            "client": summarise(records, seconds),
            "wire_ttft_ms": wire_ttft_ms(watch.requests(pid, phase.load)),
            "decode_step_ms": step_times_ms([step for step in in_load if step.phase == "decode"]),
            "prefill_step_ms": step_times_ms(prefills),
            "prompt_tokens_per_s": sum(step.tokens or 0 for step in prefills) / seconds,
            "prompts_per_s": len(prefills) / seconds,
            "tokens_per_s": sum(step.phase in ("prefill", "decode") for step in in_load) / seconds,
            "waiting_for_a_cpu": watch.waiting(pid, phase.load),
            "gated": phase.gated_us.get(pid, 0.0) / 1e6 / seconds,
        }
    phase.figures = figures


def accuracy(phases: Sequence[Phase], watch: Watch, pids: dict[str, int]) -> dict[str, Any]:
    """Classification against the servers' requests; see `truth` for the method."""
    total = Accuracy(0, 0, 0)
    per_server: dict[str, Any] = {}
    for name, pid in pids.items():
        mine = Accuracy(0, 0, 0)
        unusable = 0
        for phase in phases:
            records = [record for record in phase.records if record.server == name]
            unusable += sum(not record.ok for record in records)
            # First chunks come in the order in which the server took the requests.
            done = sorted((record for record in records if record.ok), key=lambda r: r.chunk_ns[:1])
            expected = [
                expected_run(record.prompt_tokens, record.output_tokens)
                for record in done
                if record.prompt_tokens is not None and record.output_tokens is not None
            ]
            labels = [(step.phase, step.tokens) for step in watch.steps(pid, phase.whole)]
            mine += compare(expected, split_runs(labels))
        per_server[name] = {
            "steps": mine.compared,
            "phase_accuracy": mine.phase,
            "phase_and_tokens_accuracy": mine.tokens,
            "requests_without_truth": unusable,
        }
        total += mine
    return {
        "method": "steps expected from each finished request (its server's usage: one prefill of the "
        "prompt's tokens, then one decode a further token), aligned in order with the reported steps; "
        "missed and invented steps count as wrong",
        "steps": total.compared,
        "phase_accuracy": total.phase,
        "phase_and_tokens_accuracy": total.tokens,
        "servers": per_server,
    }


def match_wire(records: Sequence[Record], requests: Sequence[RequestTiming]) -> dict[str, Any]:
    """Pair each client record with the wire's request whose arrival lies between sending and first chunk."""
    left = sorted(requests, key=lambda request: request.t_arrival_ns)
    differences: list[float] = []
    chunks_equal = 0
    matched = 0
    for record in sorted(records, key=lambda record: record.sent_ns):
        if not record.ok or not record.chunk_ns:
            continue
        for index, request in enumerate(left):
            if record.sent_ns <= request.t_arrival_ns <= record.chunk_ns[0]:
                matched += 1
                if request.t_first_ns is not None and record.ttft_ms is not None:
                    wire = (request.t_first_ns - request.t_arrival_ns) / 1e6
                    differences.append(record.ttft_ms - wire)
                chunks_equal += len(request.chunk_ns) == len(record.chunk_ns)
                del left[index]
                break
    return {
        "client_requests": sum(record.ok for record in records),
        "matched": matched,
        "content_chunks_equal": chunks_equal,
        "ttft_client_minus_wire_ms": {"p50": quantile(differences, 0.5), "p99": quantile(differences, 0.99)},
    }


def versions() -> dict[str, str]:
    """What ran: packages, kernel, machine."""
    found = {
        name: importlib.metadata.version(name)
        for name in ("flexnpu", "torch", "torch-npu", "transformers", "pydantic", "prometheus-client")
    }
    found["python"] = platform.python_version()
    found["kernel"] = platform.release()
    found["machine"] = f"{platform.machine()}, {os.cpu_count()} CPUs, {_cpu_name()}"
    found["prometheus"] = _first_line(["prometheus", "--version"])
    found["bcc"] = _first_line(["dpkg-query", "-W", "-f=${Version}", "python3-bpfcc"])
    return found


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith(("model name", "CPU part")):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return "unknown CPU"


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return "unknown"
    return ((done.stdout or done.stderr).splitlines() or ["unknown"])[0]


def _number(value: float | int | None, form: str = ".1f") -> str:
    return "-" if value is None else format(value, form)


def _get(figures: dict[str, Any], *path: str) -> Any:
    value: Any = figures
    for key in path:
        if value is None:
            return None
        value = value.get(key)
    return value


def side_by_side(phases: Sequence[Phase], slowdown: float = 1.0) -> Table:
    """The table of all phases, a column each; with a slowdown, the device's figures in the chip's own time
    as well."""
    table = Table(title=None, header_style="bold")
    table.add_column("")
    for phase in phases:
        table.add_column(phase.title, justify="right")

    def row(label: str, *path: str, form: str = ".1f", scale: float = 1.0) -> None:
        cells = []
        for phase in phases:
            value = _get(phase.figures, *path)
            cells.append(_number(None if value is None else value * scale, form))
        if any(cell != "-" for cell in cells):
            table.add_row(label, *cells)

    def latency(
        server: str, label: str, *path: str, quantiles: Sequence[str] = ("p50", "p99"), scale: float = 1.0
    ) -> None:
        for q in quantiles:
            row(f"{server}: {label} {q}, ms", "servers", server, *path, q, scale=scale)

    def on_the_device(scale: float = 1.0) -> None:
        """What the chip's speed changes most; times are multiplied by ``scale``, rates divided."""
        latency("chat", "decode step", "decode_step_ms", quantiles=("mean", "p50", "p95", "p99"), scale=scale)
        latency("chat", "TTFT (wire)", "wire_ttft_ms", scale=scale)
        latency("flood", "prefill step", "prefill_step_ms", scale=scale)
        row("flood: prompts/s", *flood, "prompts_per_s", form=".2f", scale=1 / scale)
        row("flood: prompt tokens/s", *flood, "prompt_tokens_per_s", form=".0f", scale=1 / scale)

    chat, flood = ("servers", "chat"), ("servers", "flood")
    on_the_device()
    table.add_section()
    row("chat: decode steps seen", *chat, "decode_step_ms", "steps", form="d", scale=1)
    latency("chat", "TTFT (client)", "client", "ttft_ms")
    latency("chat", "time to second token (client)", "client", "second_token_ms")
    latency("chat", "TPOT (client)", "client", "tpot_ms")
    latency("chat", "end to end (client)", "client", "end_to_end_ms")
    row("chat: tokens/s", *chat, "tokens_per_s")
    row("chat: threads that wait for a CPU", *chat, "waiting_for_a_cpu", form=".2f")
    latency("flood", "TTFT (wire)", "wire_ttft_ms")
    latency("flood", "TTFT (client)", "client", "ttft_ms")
    row("flood: next operator held by the gate, % of the time", *flood, "gated", form=".0f", scale=100)
    table.add_section()
    row("device busy, %", "device_busy", form=".0f", scale=100)
    if slowdown != 1:
        table.add_section()
        table.add_row(
            cell(f"in the time of the chip at full speed (/ {slowdown:g})", "bold"), *("" for _ in phases)
        )
        on_the_device(1 / slowdown)
    return table


def print_checks(console: Console, checks: Sequence[Check]) -> None:
    """Prints the verdicts as a table."""
    table = Table(header_style="bold")
    table.add_column("part of the chain")
    table.add_column("")
    table.add_column("figures", overflow="fold")
    for check in checks:
        verdict = cell("pass", "green") if check.passed else cell("FAIL", "bold red")
        table.add_row(check.name, verdict, check.detail)
    console.print(table)
