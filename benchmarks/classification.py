"""How often the tracer tells right what a step was: phase, tokens, sequences, by the program's own labels.

Unmodified torch_npu runs steps of many kinds (`workloads.labelled.steps`) on the emulated CANN, directly and
under FlexNPU, while the tracer looks on with its default plan. A labelled step is *right* when exactly one
traced step opened on its stream while it ran, with the same phase, tokens and sequences. One that was not
traced, or that the tracer said it could not classify, is not right; traced model steps that no label stands
for count against the accuracy too:

    accuracy = right / (labelled + spurious)

``silent`` counts what is worst: labelled steps that were told wrong, or not at all, without a word of doubt
(confidence above 0). Needs root. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from benchmarks.pairs import Daemon
from flexnpu import emulator
from flexnpu.client import environment as client
from flexnpu.console.numbers import Whole
from flexnpu.control import paths
from probes.feed.events import Event, Losses, Step
from probes.steps.tracer import Tracer
from workloads.labelled.names import CONFIGURATIONS

#: Before a step's first call, for what opens it earlier than the label's clock was read.
SLACK_NS = 20_000


@dataclass(frozen=True)
class Label:
    """What a program says of one of its steps."""

    stream: int
    t0: int
    t1: int
    phase: str
    tokens: int
    batch: int
    kv_len: int | None = None
    padded: int | None = None
    graphs: int | None = None
    device_us: float | None = None


@dataclass
class Score:
    """Labels against traced steps."""

    labelled: int = 0
    right: int = 0
    spurious: int = 0
    silent: int = 0
    kv_seen: int = 0
    kv_right: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    confidence_right: list[float] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        """Share of steps that are right; steps that nobody labelled count as wrong."""
        return self.right / max(1, self.labelled + self.spurious)

    def report(self) -> dict[str, Any]:
        """The figures of this score, for the benchmark's JSON."""
        return {
            "labelled": self.labelled,
            "right": self.right,
            "spurious": self.spurious,
            "silent": self.silent,
            "accuracy": round(self.accuracy, 5),
            "kv_len": {"seen": self.kv_seen, "right": self.kv_right},
            "least_confidence_of_right": min(self.confidence_right, default=None),
            "wrong": dict(self.wrong.most_common(5)),
        }


def score(labels: Sequence[Label], steps: Sequence[Step]) -> Score:
    """Holds `steps` against `labels`; steps outside all labels' time are not looked at."""
    result = Score(labelled=len(labels))
    by_stream: dict[int, list[Step]] = {}
    for step in sorted(steps, key=lambda step: step.t_start_ns):
        by_stream.setdefault(step.stream, []).append(step)
    begins = {stream: [step.t_start_ns for step in lane] for stream, lane in by_stream.items()}
    for label in labels:
        lane, starts = by_stream.get(label.stream, []), begins.get(label.stream, [])
        inside = lane[bisect_left(starts, label.t0 - SLACK_NS) : bisect_left(starts, label.t1)]
        model = [step for step in inside if step.phase != "other"]
        doubts = [step for step in inside if step.phase == "other" and step.confidence == 0.0]
        result.spurious += max(0, len(model) - 1)
        if not model:
            result.wrong["not classified" if doubts else "no step"] += 1
            result.silent += not doubts
            continue
        told = model[0]
        if (told.phase, told.tokens, told.batch) == (label.phase, label.tokens, label.batch):
            result.right += 1
            result.confidence_right.append(told.confidence)
        else:
            want = f"{label.phase} {label.tokens}/{label.batch}"
            result.wrong[f"{want} told {told.phase} {told.tokens}/{told.batch} by {told.evidence}"] += 1
            result.silent += told.confidence > 0
        if label.kv_len is not None and told.kv_len is not None:
            result.kv_seen += 1
            result.kv_right += told.kv_len == label.kv_len
    return result


class Program:
    """`workloads.labelled.steps`, or another module that speaks as it does, ready to run."""

    def __init__(
        self,
        configuration: str,
        steps: int,
        environment: dict[str, str],
        module: str = "workloads.labelled.steps",
    ) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, configuration, "--steps", str(steps)],
            env=environment | {"TOKENIZERS_PARALLELISM": "false", "FLEXNPU_EMU_MISSING": "time"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            bufsize=1,
        )
        self.until("ready")

    def go(self) -> None:
        """Let it go on: it waits for a line."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")

    def until(self, word: str) -> list[Label]:
        """The labels that it prints before the line `word`.

        Raises click.ClickException when it ends first.
        """
        assert self.process.stdout is not None
        labels = []
        for line in self.process.stdout:
            if line.startswith("{"):
                labels.append(Label(**json.loads(line)))
            elif line.strip() == word:
                return labels
        self._stderr.seek(0)
        said = self._stderr.read()[-2000:].decode(errors="replace")
        raise click.ClickException(f"the labelled program ended with {self.process.wait()}:\n{said}")

    def close(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait(30)
        for pipe in (self.process.stdin, self.process.stdout, self._stderr):
            if pipe is not None:
                pipe.close()


@contextmanager
def target(
    kind: str, *, mode: str = "compute", slowdown: int | str = 1, log: str = ""
) -> Iterator[dict[str, str]]:
    """The environment of programs on one of the two targets: ``cann`` (emulated) or ``client``.

    `log`: a folder for what the device did.
    """
    machine = f"classification-{os.getpid()}-{kind}"
    slower = {"FLEXNPU_EMU_SLOWDOWN": str(slowdown), "FLEXNPU_EMU_LOG": log}
    if kind == "cann":
        yield os.environ | emulator.environment(mode=mode, machine=machine) | slower
        return
    with tempfile.TemporaryDirectory(prefix="flexnpu-bench-") as directory:
        # The daemon makes the operators' calls, so the choice for those without a body is its own.
        daemon = Daemon(Path(directory), machine, mode, FLEXNPU_EMU_MISSING="time", **slower)
        try:
            yield client.environment(client.CLIENT_HOME, [paths.data_socket(0, Path(directory))], os.environ)
        finally:
            daemon.stop()


def measure(configuration: str, steps: int, environment: dict[str, str]) -> tuple[Score, Losses]:
    """One configuration, traced with the default plan."""
    program = Program(configuration, steps, environment)
    try:
        seen: list[Step] = []

        def on_event(event: Event) -> None:
            if isinstance(event, Step):
                seen.append(event)

        with Tracer(on_event) as tracer:
            tracer.attach(program.process.pid)
            program.go()
            labels = poll_until_end(program, tracer)
            settle = time.monotonic() + 0.5
            while time.monotonic() < settle:
                tracer.poll(0.05)
        return score(labels, seen), tracer.losses()
    finally:
        program.close()


def poll_until_end(program: Program, tracer: Tracer) -> list[Label]:
    """The labels of a program that runs, while `tracer` looks on."""
    result: list[list[Label]] = []
    failed: list[BaseException] = []

    def wait() -> None:
        try:
            result.append(program.until("end"))
        except BaseException as error:
            failed.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    while waiter.is_alive():
        tracer.poll(0.05)
    if failed:
        raise failed[0]
    return result[0]


@click.command(short_help="Phases, tokens and batches told by the tracer against labelled steps.")
@click.option("--steps", type=Whole(10, 1_000_000), default=400, show_default=True, help="Steps a run.")
@click.option(
    "--target", "targets", multiple=True, type=click.Choice(["cann", "client"]), help="Default: both."
)
@click.option(
    "--configuration", "chosen", multiple=True, type=click.Choice(CONFIGURATIONS), help="Default: all."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def main(steps: int, targets: tuple[str, ...], chosen: tuple[str, ...], as_json: bool) -> None:
    """Hold the tracer's classification against programs that label their own steps.

    \b
    Examples:
      sudo flexnpu bench classification                    every kind of step on both targets
      sudo flexnpu bench classification --configuration mixed --steps 2000 --json
    """
    if os.geteuid() != 0:
        raise click.ClickException("tracing needs root: sudo flexnpu bench classification")
    report: dict[str, Any] = {"steps_a_run": steps, "load_before": os.getloadavg()[0], "targets": {}}
    total = Score()
    for kind in targets or ("cann", "client"):
        rows: dict[str, Any] = {}
        with target(kind) as environment:
            for configuration in chosen or CONFIGURATIONS:
                result, losses = measure(configuration, steps, environment)
                rows[configuration] = result.report() | {
                    "losses": {name: count for name, count in losses.counts.items() if count}
                }
                for name in ("labelled", "right", "spurious", "silent"):
                    setattr(total, name, getattr(total, name) + getattr(result, name))
                if not as_json:
                    _row(kind, configuration, result)
        report["targets"][kind] = rows
    report["all"] = {
        "labelled": total.labelled,
        "right": total.right,
        "spurious": total.spurious,
        "silent": total.silent,
        "accuracy": round(total.accuracy, 5),
    }
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        _row("all", "", total)


def _row(kind: str, configuration: str, result: Score) -> None:
    text = f"{kind:8}{configuration:14}{result.right:6} of {result.labelled:6}  {result.accuracy:8.4%}"
    text += f"  spurious {result.spurious}, silent {result.silent}"
    if result.wrong:
        text += f"; {result.wrong.most_common(1)[0][0]}"
    print(text, flush=True)


if __name__ == "__main__":
    main()
