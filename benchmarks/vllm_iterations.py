"""Whether the tracer's steps are the iterations of unmodified vLLM-Ascend: count, phase, tokens, sequences,
durations.

An engine serves random prompts, four at once, on the emulated CANN directly and under FlexNPU, while the
tracer looks on. The truth is the engine's own log (`--enable-logging-iteration-details`) and, for durations,
the emulated device's (FLEXNPU_EMU_LOG). An iteration without tokens launches nothing and is none. A prompt's
last token, alone, is a decode step for the device.

Iterations and steps are laid beside each other in their order. ``right`` are those with the same phase,
tokens and sequences; ``wrong`` and ``missing`` those that were told otherwise or not at all; every other step
is ``spurious``, model step or not.

Durations are judged in a second part, with the chip slowed so much that the device and not the host decides
how long a step takes: for the tracer it ends when a waiting thread has woken up, which a busy host delays.
``duration`` has quantiles of all steps as the device had them and as they were told, ms, and the ratio;
``each`` those of the ratio step by step, in which a wrong bound between two steps shows. It is None where the
device computes and takes no modelled time, as it must for drafts, and where its log does not say which
operators belong to which iteration.

Needs root, and the venv of `make vllm`. Prints one JSON object.
"""

from __future__ import annotations

import difflib
import json
import os
import random
import re
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import click

from benchmarks.classification import target
from flexnpu.common.ports import free_port
from flexnpu.common.quantiles import quantile
from flexnpu.console.numbers import Number, Whole
from flexnpu.console.output import out_json, say
from flexnpu.console.program import SETTINGS, Program
from probes.feed.events import Event, Losses, Step, is_loss
from probes.steps.silence import STALL_NS
from probes.steps.tracer import Tracer
from workloads import vllm_ascend
from workloads.models import ensure, small
from workloads.vllm_ascend import NGRAM, Server

TARGETS = ("cann", "client")


@dataclass(frozen=True)
class Configuration:
    """An engine, and whether its prompts begin alike. `computed`: shapes depend on tokens, so that the device
    must compute; then it takes no modelled time, and durations are not judged."""

    family: str = "qwen2"
    mode: str = "eager"
    options: tuple[str, ...] = ("--max-num-batched-tokens", "128", "--no-enable-prefix-caching")
    alike: bool = False
    computed: bool = False


_CHUNKED = Configuration().options
_SYNC = (*_CHUNKED, "--no-async-scheduling")
_DRAFTS = (*_CHUNKED, *NGRAM)
CONFIGURATIONS = {
    "eager": Configuration(),
    "eager-sync": Configuration(options=_SYNC),
    "pieces": Configuration(mode="piecewise"),
    "pieces-sync": Configuration(mode="piecewise", options=_SYNC),
    "full": Configuration(mode="full"),
    "full-sync": Configuration(mode="full", options=_SYNC),
    "qwen3-eager": Configuration("qwen3"),
    "llama-full": Configuration("llama", "full"),
    "opt-pieces": Configuration("opt", "piecewise"),
    "whole-prompts": Configuration(options=("--no-enable-prefix-caching",)),
    "prefixes": Configuration(options=("--max-num-batched-tokens", "128"), alike=True),
    "drafts": Configuration(options=_DRAFTS, computed=True),
    "drafts-full": Configuration(mode="full", options=_DRAFTS, computed=True),
}

_ITERATION = re.compile(
    r"Iteration\(\d+\): (\d+) context requests, (\d+) context tokens, (\d+) generation requests, "
    r"(\d+) generation tokens"
)


class Iteration(NamedTuple):
    """What the device sees of one."""

    phase: str
    tokens: int
    batch: int


def iterations(text: str) -> list[Iteration]:
    """Those in an engine's log."""
    found = []
    for match in _ITERATION.finditer(text):
        prompts, prompt_tokens, decodes, decode_tokens = map(int, match.groups())
        if prompt_tokens + decode_tokens == 0:
            continue
        one_each = prompt_tokens == prompts
        phase = "decode" if one_each else "mixed" if decodes else "prefill"
        found.append(Iteration(phase, prompt_tokens + decode_tokens, prompts + decodes))
    return found


@dataclass
class Score:
    """Iterations against steps."""

    iterations: int
    steps: int
    right: int = 0
    wrong: int = 0
    missing: int = 0
    spurious: int = 0
    examples: Counter[str] = field(default_factory=Counter)
    pairs: list[tuple[Iteration, Step]] = field(default_factory=list)
    """The right ones."""


def compare(want: Sequence[Iteration], seen: Sequence[Step]) -> Score:
    """Lays steps, by their begin, beside iterations."""
    steps = sorted((one for one in seen if one.phase != "other"), key=lambda one: one.t_start_ns)
    told = [(one.phase, one.tokens, one.batch) for one in steps]
    score = Score(len(want), len(steps))
    for one in seen:
        if one.phase == "other":
            score.spurious += 1
            score.examples[f"other, by {one.evidence}, ended by {one.ended_by}"] += 1
    plain = [tuple(one) for one in want]
    for what, a, b, c, d in difflib.SequenceMatcher(a=plain, b=told, autojunk=False).get_opcodes():
        if what == "equal":
            score.right += b - a
            score.pairs += zip(want[a:b], steps[c:d], strict=True)
            continue
        both = min(b - a, d - c)
        score.wrong += both
        score.missing += b - a - both
        score.spurious += d - c - both
        evidence = [one.evidence for one in steps[c:d][:2]]
        score.examples[f"{plain[a:b][:2]} told as {told[c:d][:2]} by {evidence}"] += 1
    return score


def load(server: Server, dice: random.Random, requests: int, alike: bool) -> None:
    """One client's requests, one after the other."""
    for _ in range(requests):
        prompt = [dice.randrange(3, 500) for _ in range(dice.randint(5, 150))]
        if alike:
            start = dice.randrange(3)
            prompt = [(7 * i + start) % 500 + 3 for i in range(dice.choice((130, 260)))] + prompt[:90]
        server.complete(prompt, dice.randint(8, 40))


class Task(NamedTuple):
    """A line of the device's log."""

    begin_ns: int
    end_ns: int
    stream: str
    name: str


def device_log(folder: Path) -> list[Task]:
    """What the device did, in the order of its begin."""
    tasks = []
    for path in folder.glob("[0-9]*.log"):
        for line in path.read_text().splitlines():
            begin, end, _, stream, name = line.split()
            tasks.append(Task(int(begin), int(end), stream, name))
    return sorted(tasks)


def device_windows(tasks: Sequence[Task]) -> list[tuple[int, int]]:
    """Begin and end of each iteration on the stream that the model runs on: from the first copy of inputs
    after a choice of tokens to the last task before the next such copy."""
    streams = {task.stream for task in tasks if task.name == "aclnnEmbedding"}
    found: list[list[int]] = []
    chosen = True
    for task in tasks:
        if task.stream not in streams:
            continue
        if chosen and task.name == "copy-to-device":
            found.append([task.begin_ns, task.end_ns])
            chosen = False
        elif found:
            found[-1][1] = max(found[-1][1], task.end_ns)
        chosen |= task.name == "aclnnArgMax"
    return [(begin, end) for begin, end in found]


def durations(score: Score, windows: Sequence[tuple[int, int]]) -> dict[str, Any] | None:
    """Quantiles of how long the right steps took, as the device had it and as it was told, ms."""
    if not windows or len(windows) != score.iterations or score.right != score.iterations:
        return None
    true = [(end - begin) / 1e6 for begin, end in windows]
    told = [step.duration_us / 1e3 for _, step in score.pairs]
    found: dict[str, Any] = {}
    for q in (50, 99):
        a, b = quantile(true, q / 100), quantile(told, q / 100)
        if a is not None and b is not None:
            found[f"p{q}"] = {"device": round(a, 2), "told": round(b, 2), "ratio": round(b / a, 4)}
    ratios = [b / a for a, b in zip(true, told, strict=True)]
    found["each"] = {
        f"p{q}": round(value, 4) for q in (1, 50, 99) if (value := quantile(ratios, q / 100)) is not None
    }
    return found


@dataclass(frozen=True)
class Measured:
    """What one engine gave: at the chip's own speed, and slowed."""

    fast: Score
    slow: Score
    duration: dict[str, Any] | None
    losses: Losses

    def report(self) -> dict[str, Any]:
        """For the benchmark's JSON."""
        found: dict[str, Any] = {
            name: getattr(self.fast, name) + getattr(self.slow, name)
            for name in ("iterations", "steps", "right", "wrong", "missing", "spurious")
        }
        found["duration"] = self.duration
        found["examples"] = dict((self.fast.examples + self.slow.examples).most_common(4))
        found["losses"] = {
            name: count for name, count in self.losses.counts.items() if count and is_loss(name)
        }
        return found


@dataclass
class Watch:
    """An engine under load, and the tracer on it."""

    server: Server
    tracer: Tracer
    seen: list[Step]
    alike: bool

    def run(self, requests: int, seed: int) -> Score:
        """Some requests, four at once; the iterations that served them against the steps."""
        before = self.server.log.stat().st_size
        self.seen.clear()
        with ThreadPoolExecutor(4) as pool:
            clients = [
                pool.submit(load, self.server, random.Random(seed + n), requests // 4, self.alike)
                for n in range(4)
            ]
            while not all(one.done() for one in clients):
                self.tracer.poll(0.05)
            for one in clients:
                one.result()
        # A lane's last step is told when the lane has been silent.
        settle = time.monotonic() + STALL_NS / 1e9 + 2
        while time.monotonic() < settle:
            self.tracer.poll(0.05)
        text = self.server.log.read_bytes()[before:].decode(errors="replace")
        return compare(iterations(text), self.seen)


def measure(
    venv: Path,
    kind: str,
    configuration: Configuration,
    folder: Path,
    requests: int,
    slow_requests: int,
    slowdown: float,
) -> Measured:
    """One engine on the target `kind`, traced from after its warm-up on. `folder` gets the logs, and the
    steps of the second part."""
    folder.chmod(0o777)  # a daemon is another user
    clock = folder / "clock"
    clock.write_bytes(struct.pack("=d", 1.0))
    seen: list[Step] = []

    def on_event(event: Event) -> None:
        if isinstance(event, Step):
            seen.append(event)

    device = "compute" if configuration.computed else "time"
    if configuration.computed:
        slow_requests = 0
    model = ensure(small(configuration.family))
    port = free_port()
    options = (*configuration.options, "--enable-logging-iteration-details")
    command = vllm_ascend.command(venv, model, port, configuration.mode, *options)
    with (
        target(kind, mode=device, slowdown=str(clock), log=str(folder)) as environment,
        Server(command, port, environment, folder / "vllm.log") as server,
    ):
        server.wait()
        load(server, random.Random(0), 1, alike=False)
        time.sleep(1)  # the log of what came before is written
        with Tracer(on_event, budget_percent=None) as tracer:
            tracer.attach(server.engine())
            watch = Watch(server, tracer, seen, configuration.alike)
            fast = watch.run(requests, 1)
            with clock.open("r+b") as file:
                file.write(struct.pack("=d", slowdown))
            begin = time.monotonic_ns()
            slow = watch.run(slow_requests, 1001) if slow_requests else Score(0, 0)
            losses = tracer.losses()
    (folder / "steps.jsonl").write_text("".join(f"{step.to_json()}\n" for step in seen))
    windows = device_windows([task for task in device_log(folder) if task.begin_ns >= begin])
    return Measured(fast, slow, durations(slow, windows), losses)


@click.command("vllm-iterations", cls=Program, context_settings=SETTINGS)
@click.option("--requests", type=Whole(4, 1_000_000), default=60, show_default=True, help="Of a run.")
@click.option(
    "--slow-requests",
    type=Whole(0, 10_000),
    default=8,
    show_default=True,
    help="Of a run's second part, for the durations.",
)
@click.option(
    "--slowdown", type=Number(1, 1000), default=500.0, show_default=True, help="Of the chip in that part."
)
@click.option("--target", "targets", multiple=True, type=click.Choice(TARGETS), help="Default: both.")
@click.option(
    "--configuration", "chosen", multiple=True, type=click.Choice(list(CONFIGURATIONS)), help="Default: all."
)
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="Where logs are kept.")
def main(
    requests: int,
    slow_requests: int,
    slowdown: float,
    targets: tuple[str, ...],
    chosen: tuple[str, ...],
    keep: Path | None,
) -> None:
    """Hold the tracer's steps against the iterations of unmodified vLLM-Ascend."""
    if os.geteuid() != 0:
        raise click.ClickException("tracing needs root: sudo flexnpu bench vllm-iterations")
    report: dict[str, Any] = {
        "cpus": os.cpu_count(),
        "slowdown": slowdown,
        "targets": {},
    }
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="flexnpu-vllm-iterations-") as temporary:
        root = keep or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o755)
        for kind in targets or TARGETS:
            rows: dict[str, Any] = {}
            for name in chosen or CONFIGURATIONS:
                folder = root / f"{kind}-{name}"
                folder.mkdir(parents=True)
                load_before = os.getloadavg()[0]
                try:
                    venv = vllm_ascend.find()
                    measured = measure(
                        venv, kind, CONFIGURATIONS[name], folder, requests, slow_requests, slowdown
                    )
                except vllm_ascend.VllmError as error:
                    raise click.ClickException(str(error)) from None
                rows[name] = measured.report() | {"load_before": load_before}
                for count in ("iterations", "right", "wrong", "missing", "spurious"):
                    total[count] += rows[name][count]
                say(f"{kind:8}{name:14}{json.dumps(rows[name])}")
            report["targets"][kind] = rows
    out_json(report | {"all": dict(total)}, indent=1)


if __name__ == "__main__":
    main()
