"""What interposition costs unmodified vLLM-Ascend: two servers of one model, asked in turns.

One runs straight on an emulated NPU, the other through a daemon.

Both servers live all the time and are idle while the other has its turn. A turn is one wave: so many requests
at once, each of the same prompt and answer lengths. Direct and interposed take turns wave by wave, and who is
first changes. Figures by number of requests at once, each with its spread and that of the pairs' ratios
(interposed / direct):

- tokens_per_s: of a wave, from its first request to its last answer;
- ttft_ms, tpot_ms: medians over the wave's answers, by the client's clock; tpot_p99_ms: its slowest answer;
- cpu_ms_a_step: CPU time of all processes (API server, engine, daemon) over the wave, a step: a wave's steps
  are its answer's tokens, since all answers have the same length.

``tiny`` computes a small model, where nearly all time is the host's: the worst case. ``7b`` has the shapes
of Qwen2.5-7B on a device that takes the modelled time and computes nothing. Needs the venv of `make vllm`.
Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx

from benchmarks.pairs import BenchmarkError, Comparison, Daemon, cpu_seconds
from benchmarks.vllm_share import program
from flexnpu import emulator
from flexnpu.common.ports import free_port
from flexnpu.common.quantiles import quantile
from flexnpu.console.numbers import Whole
from flexnpu.console.output import out_json, say
from flexnpu.console.program import SETTINGS, Program
from workloads import vllm_ascend
from workloads.models import ensure, small
from workloads.vllm_load import SEVEN_B, ask, prompt

SIZES = {
    "tiny": small("qwen2"),
    "7b": SEVEN_B,
}
PROMPT_TOKENS, ANSWER_TOKENS = 96, 48
WARM_UP = 2
"""Waves of each side that are not counted, at each number of requests at once."""


@dataclass(frozen=True)
class Side:
    """A server, and all processes that its answers cost."""

    server: vllm_ascend.Server
    daemon: Daemon | None

    def cpu_s(self) -> float:
        """CPU time so far of the server's processes and the daemon."""
        return sum(map(cpu_seconds, self.server.processes())) + (
            self.daemon.cpu_seconds() if self.daemon else 0.0
        )


async def wave(client: httpx.AsyncClient, side: Side, at_once: int, seed: int) -> dict[str, float]:
    """The figures of one wave of `at_once` requests."""
    prompts = [prompt(PROMPT_TOKENS, seed, n) for n in range(at_once)]
    cpu, start = side.cpu_s(), time.monotonic()
    answers = await asyncio.gather(
        *(ask(client, side.server.port, asked, ANSWER_TOKENS) for asked in prompts)
    )
    seconds, cpu = time.monotonic() - start, side.cpu_s() - cpu
    tokens = sum(len(answer.chunk_ns) for answer in answers)
    if tokens != at_once * ANSWER_TOKENS:
        raise BenchmarkError(f"{tokens} tokens came instead of {at_once * ANSWER_TOKENS}")
    tpots = [answer.tpot_ms or 0.0 for answer in answers]
    return {
        "tokens_per_s": tokens / seconds,
        "ttft_ms": quantile([answer.ttft_ms or 0.0 for answer in answers], 0.5) or 0.0,
        "tpot_ms": quantile(tpots, 0.5) or 0.0,
        "tpot_p99_ms": max(tpots),
        "cpu_ms_a_step": cpu * 1e3 / ANSWER_TOKENS,
    }


async def compare(sides: dict[str, Side], at_once: int, waves: int) -> dict[str, Any]:
    """Waves in turns."""
    comparison = Comparison()
    async with httpx.AsyncClient(timeout=httpx.Timeout(None, connect=10.0)) as client:
        for number in range(waves + WARM_UP):
            names = list(sides) if number % 2 else list(reversed(sides))
            told = {name: await wave(client, sides[name], at_once, number) for name in names}
            if number >= WARM_UP:
                comparison.add(told["direct"], told["interposed"])
    return comparison.report()


async def daemon_a_step(side: Side, at_once: int) -> dict[str, float]:
    """What the daemon counts over one more wave, a step."""
    assert side.daemon is not None
    before = side.daemon.counters()
    async with httpx.AsyncClient(timeout=None) as client:
        await wave(client, side, at_once, 10_000)
    after = side.daemon.counters()
    names = ("records", "launches", "sleeps", "naps")
    return {name: round((after[name] - before[name]) / ANSWER_TOKENS, 2) for name in names}


def measure(
    venv: Path, size: str, mode: str, at_once: tuple[int, ...], waves: int, folder: Path
) -> dict[str, Any]:
    """All numbers of requests at once, on two servers of one mode."""
    model = ensure(SIZES[size])
    device_mode = "compute" if size == "tiny" else "time"
    options = ["--no-enable-prefix-caching"] + ([] if size == "tiny" else ["--load-format", "dummy"])
    machine = f"price-{os.getpid()}-{size}-{mode}"
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        daemon = Daemon(folder / "run", f"{machine}-i", device_mode)
        stack.callback(daemon.stop)
        ways: dict[str, tuple[dict[str, str], list[str], Daemon | None]] = {
            "direct": (emulator.environment(device_mode, machine=f"{machine}-d"), [], None),
            "interposed": (
                {"FLEXNPU_RUN_DIR": str(folder / "run")},
                [program("flexnpu"), "run", "--"],
                daemon,
            ),
        }
        sides: dict[str, Side] = {}
        for way, (variables, prefix, behind) in ways.items():
            port = free_port()
            command = vllm_ascend.command(venv, model, port, mode, *options)
            server = vllm_ascend.Server(command, port, os.environ | variables, folder / f"{way}.log", prefix)
            sides[way] = Side(stack.enter_context(server), behind)
        for side in sides.values():
            side.server.wait()
        say(f"{size}, {mode}: both servers answer")
        report: dict[str, Any] = {}
        for number in at_once:
            report[str(number)] = told = asyncio.run(compare(sides, number, waves))
            ratios = {name: round(figure["ratio"]["median"], 3) for name, figure in told.items()}
            say(f"{size}, {mode}, {number} at once: interposed / direct {ratios}")
        last = at_once[-1]
        counted = asyncio.run(daemon_a_step(sides["interposed"], last))
        report["daemon_a_step"] = {"at_once": last, **counted}
    return report


@click.command("vllm", cls=Program, context_settings=SETTINGS)
@click.option(
    "--size",
    "sizes",
    type=click.Choice(list(SIZES)),
    multiple=True,
    default=tuple(SIZES),
    show_default=True,
    help="Of the model; may be given more than once.",
)
@click.option(
    "--mode",
    "modes",
    type=click.Choice(list(vllm_ascend.MODES)),
    multiple=True,
    default=tuple(vllm_ascend.MODES),
    show_default=True,
    help="How the engines launch; may be given more than once.",
)
@click.option(
    "--at-once",
    type=Whole(1, 8),
    multiple=True,
    default=(1, 4, 8),
    show_default=True,
    help="Requests of a wave; may be given more than once.",
)
@click.option("--waves", type=Whole(2, 1000), default=12, show_default=True, help="Pairs that are counted.")
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="Where logs are kept.")
def main(
    sizes: tuple[str, ...],
    modes: tuple[str, ...],
    at_once: tuple[int, ...],
    waves: int,
    keep: Path | None,
) -> None:
    """Compare vLLM-Ascend interposed with vLLM-Ascend alone.

    \b
    Examples:
      flexnpu bench vllm                                  all modes, both sizes: half an hour
      flexnpu bench vllm --size tiny --mode eager         the worst case: some minutes
      flexnpu bench vllm --at-once 4 --waves 40           a narrower spread
    """
    try:
        venv = vllm_ascend.find()
    except vllm_ascend.VllmError as error:
        raise click.ClickException(str(error)) from None
    report: dict[str, Any] = {
        "benchmark": "vllm",
        "cpus": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "prompt_tokens": PROMPT_TOKENS,
        "answer_tokens": ANSWER_TOKENS,
        "waves": waves,
    }
    with tempfile.TemporaryDirectory(prefix="flexnpu-vllm-") as temporary:
        for size in sizes:
            for mode in modes:
                folder = (keep or Path(temporary)) / size / mode
                try:
                    report.setdefault(size, {})[mode] = measure(venv, size, mode, at_once, waves, folder)
                except (vllm_ascend.VllmError, BenchmarkError) as error:
                    raise click.ClickException(str(error)) from None
    report["load_after"] = os.getloadavg()[0]
    out_json(report, indent=2)


if __name__ == "__main__":
    main()
