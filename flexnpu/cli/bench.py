"""`flexnpu bench NAME`: the benchmarks whose figures we claim, runnable where you are."""

from __future__ import annotations

import click

from flexnpu.console.program import Programs

#: Name -> module in `benchmarks` whose `main` is the command, and what it measures. Imported when called.
BENCHMARKS = {
    "launch": ("benchmarks.launch_cost:main", "The price of interposition, direct against interposed."),
    "events": ("benchmarks.events:main", "Waits for events under random gating: the order they keep."),
    "wire": ("benchmarks.wire_latency:main", "What the wire tracer measures and costs."),
    "classification": (
        "benchmarks.classification:main",
        "Phases, tokens and batches told by the tracer against labelled steps.",
    ),
    "iterations": (
        "benchmarks.iterations:main",
        "Traced steps against the iterations of a serving engine, and their durations.",
    ),
    "controller": (
        "benchmarks.controller_turn:main",
        "What a controller's turn costs, by the number of lanes.",
    ),
    "samples": (
        "benchmarks.samples:main",
        "Arguments of torch's operators that the emulated device takes, against the CPU.",
    ),
    "vllm": (
        "benchmarks.vllm_price:main",
        "The price of interposition on vLLM-Ascend, in each way of launching.",
    ),
    "vllm-share": (
        "benchmarks.vllm_share:main",
        "Two vLLM-Ascend servers on one NPU: decode under a flood of prompts, gated or not.",
    ),
    "vllm-starts": (
        "benchmarks.vllm_starts:main",
        "Two vLLM-Ascend servers on one NPU: started at once, and one beside another, many times.",
    ),
    "vllm-iterations": (
        "benchmarks.vllm_iterations:main",
        "Traced steps against the iterations of unmodified vLLM-Ascend, and their durations.",
    ),
    "gate": ("benchmarks.gate_sim:main", "The gate on a modelled device, in simulation."),
    "device-model": (
        "benchmarks.device_model:main",
        "The device model against published figures of how kernels share a die.",
    ),
    "probe": ("benchmarks.probe_cost:main", "What tracing costs: ours, bpftrace's and funclatency's."),
    "attach": ("benchmarks.attach_cost:main", "CPU and memory of attaching, by both loaders side by side."),
    "sites": ("benchmarks.probe_sites:main", "What one hit of a probe costs, instruction by instruction."),
}


@click.group("bench", cls=Programs, lazy=BENCHMARKS, short_help="Measure what FlexNPU costs on this machine.")
def bench() -> None:
    """Measure what FlexNPU costs on this machine: each compares side by side in one run.

    \b
    EXAMPLES
      flexnpu bench launch                  what interposition costs here
      sudo flexnpu bench probe --json       what tracing costs here, as one JSON object

    \b
    OVERHEAD
      Each takes a core or two for half a minute to some minutes: run them on a machine
      that does nothing else.
    """
