"""Whether the tracer's steps are a serving engine's iterations: count, phase, tokens, sequences, durations.

`workloads.labelled.engine` issues iterations as vLLM-Ascend does, with asynchronous scheduling or without,
eager, in pieces of graphs, or as whole padded graphs, on the emulated CANN directly and under FlexNPU. An
iteration is *right* when exactly one model step was traced between its first call and the next one's, with
the same phase, tokens (padding left out) and sequences. Every other step of the process is *spurious*, model
step or not. Durations are held against the device's own time between two events. Needs root. Prints one JSON
object.
"""

from __future__ import annotations

import json
import os
import time
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import click

from benchmarks.classification import Label, Program, poll_until_end, target
from flexnpu.common.quantiles import quantile
from flexnpu.console.numbers import Whole
from probes.feed.events import Event, Losses, Step
from probes.steps.tracer import Tracer
from workloads.labelled.names import ENGINES

#: Before an iteration's first call, for what opens it earlier than the label's clock was read.
SLACK_NS = 20_000


@dataclass
class Score:
    """Iterations against traced steps."""

    iterations: int = 0
    right: int = 0
    missing: int = 0
    spurious: int = 0
    graphs_right: int = 0
    padding_told: int = 0
    padding_wrong: int = 0
    """Told as a number that it was not."""
    wrong: Counter[str] = field(default_factory=Counter)
    durations: list[float] = field(default_factory=list)
    """Traced over true duration, of the right ones."""

    def report(self) -> dict[str, Any]:
        """Counts, the share that is right, and how durations compare."""
        found: dict[str, Any] = {
            name: getattr(self, name)
            for name in (
                "iterations",
                "right",
                "missing",
                "spurious",
                "graphs_right",
                "padding_told",
                "padding_wrong",
            )
        }
        found["accuracy"] = round(self.right / max(1, self.iterations + self.spurious), 5)
        found["duration_ratio"] = {
            f"p{q}": round(found_q, 4)
            for q in (1, 50, 99)
            if (found_q := quantile(self.durations, q / 100)) is not None
        }
        found["wrong"] = dict(self.wrong.most_common(5))
        return found


def score(labels: list[Label], steps: list[Step]) -> Score:
    """Holds `steps` against `labels`, which are in the order of their issue; steps before are left out."""
    result = Score(iterations=len(labels))
    begins = [label.t0 - SLACK_NS for label in labels]
    inside: list[list[Step]] = [[] for _ in labels]
    for step in steps:
        if step.t_end_ns <= begins[0]:
            continue
        at = bisect_right(begins, step.t_start_ns) - 1
        if at >= 0 and step.phase != "other" and step.stream == labels[at].stream:
            inside[at].append(step)
        else:
            result.spurious += 1
            result.wrong[f"spurious {step.phase} by {step.evidence}, ended by {step.ended_by}"] += 1
    for label, found in zip(labels, inside, strict=True):
        result.spurious += max(0, len(found) - 1)
        if not found:
            result.missing += 1
            result.wrong["no step"] += 1
            continue
        told = max(found, key=lambda step: step.duration_us)
        want = (label.phase, label.tokens, label.batch)
        if (told.phase, told.tokens, told.batch) != want or len(found) > 1:
            result.wrong[
                f"{label.phase} {label.tokens}/{label.batch} told as {len(found)}, "
                f"{told.phase} {told.tokens}/{told.batch} by {told.evidence}"
            ] += 1
            continue
        result.right += 1
        result.graphs_right += told.graph_launches == label.graphs
        result.padding_told += told.padded == label.padded
        result.padding_wrong += told.padded not in (None, label.padded)
        if label.device_us:
            result.durations.append(told.duration_us / label.device_us)
    return result


def measure(
    configuration: str, iterations: int, environment: dict[str, str], *, plan: Any = "default"
) -> tuple[Score, Losses, list[Step]]:
    """One configuration, traced from after its warm-up on."""
    program = Program(configuration, iterations, environment, module="workloads.labelled.engine")
    try:
        seen: list[Step] = []

        def on_event(event: Event) -> None:
            if isinstance(event, Step):
                seen.append(event)

        with Tracer(on_event, plan=plan, budget_percent=None) as tracer:
            tracer.attach(program.process.pid)
            program.go()
            labels = poll_until_end(program, tracer)
            settle = time.monotonic() + 0.5
            while time.monotonic() < settle:
                tracer.poll(0.05)
        return score(labels, seen), tracer.losses(), seen
    finally:
        program.close()


@click.command(short_help="Traced steps against a serving engine's iterations, issued as vLLM-Ascend does.")
@click.option("--steps", type=Whole(10, 1_000_000), default=400, show_default=True, help="Iterations a run.")
@click.option(
    "--target", "targets", multiple=True, type=click.Choice(["cann", "client"]), help="Default: both."
)
@click.option("--configuration", "chosen", multiple=True, type=click.Choice(ENGINES), help="Default: all.")
@click.option(
    "--slowdown", type=Whole(1, 10_000), default=1, show_default=True, help="How much slower the device is."
)
@click.option("--plan", type=click.Choice(["default", "detail"]), default="default", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def main(
    steps: int, targets: tuple[str, ...], chosen: tuple[str, ...], slowdown: int, plan: str, as_json: bool
) -> None:
    """Hold the tracer's steps against the iterations of an engine that labels its own.

    \b
    Examples:
      sudo flexnpu bench iterations                                every configuration on both targets
      sudo flexnpu bench iterations --configuration pieces --json
    """
    if os.geteuid() != 0:
        raise click.ClickException("tracing needs root: sudo flexnpu bench iterations")
    report: dict[str, Any] = {
        "iterations_a_run": steps,
        "slowdown": slowdown,
        "plan": plan,
        "load_before": os.getloadavg()[0],
        "targets": {},
    }
    for kind in targets or ("cann", "client"):
        rows: dict[str, Any] = {}
        with target(kind, mode="time", slowdown=slowdown) as environment:
            for configuration in chosen or ENGINES:
                result, losses, _ = measure(configuration, steps, environment, plan=plan)
                counts = {name: count for name, count in losses.counts.items() if count}
                hits = sum(count for name, count in counts.items() if name.startswith("hits_"))
                rows[configuration] = result.report() | {
                    "hits_an_iteration": round(hits / max(1, steps), 2),
                    "losses": counts,
                }
                if not as_json:
                    _row(kind, configuration, rows[configuration])
        report["targets"][kind] = rows
    if as_json:
        print(json.dumps(report, indent=1))


def _row(kind: str, configuration: str, row: dict[str, Any]) -> None:
    text = f"{kind:8}{configuration:14}{row['right']:6} of {row['iterations']:6}, spurious {row['spurious']}"
    text += f", missing {row['missing']}, duration {row['duration_ratio']}, hits {row['hits_an_iteration']}"
    for wrong, count in list(row["wrong"].items())[:2]:
        text += f"\n{'':22}{count} x {wrong}"
    print(text, flush=True)


if __name__ == "__main__":
    main()
