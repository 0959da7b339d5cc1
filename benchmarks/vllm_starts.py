"""Whether two unmodified vLLM-Ascend servers on one NPU always start, and answer: each has a quota.

``together``: P and D of a disaggregated deployment are started at once, answer through a proxy, and end.
``second``: one server stays, and another is started beside it, answers, and ends. Each takes 0.9 of the
memory that it sees, which without quotas leaves none for the other. The model is small, and computed.

A start is ``right`` when all servers came to serve and answered with the tokens of the first start.
``seconds`` are until the servers serve. Needs the venv of `make vllm`. Prints one JSON object.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from benchmarks.pairs import BenchmarkError, Daemon
from benchmarks.vllm_share import program
from flexnpu.common.ports import free_port
from flexnpu.console.numbers import Whole
from flexnpu.console.output import out_json, say
from flexnpu.console.program import SETTINGS, Program
from workloads import disaggregated, vllm_ascend
from workloads.models import ensure, small
from workloads.vllm_ascend import Server, VllmError

QUOTA = "28GiB"
TOKENS = 16
PROMPT = [(7 * i) % 500 + 3 for i in range(150)]
MEMORY = ("--gpu-memory-utilization", "0.9", "--no-enable-prefix-caching")
RUN = [program("flexnpu"), "run", "--quota", QUOTA, "--"]


class Site:
    """A daemon, and what servers on it are started with."""

    def __init__(self, venv: Path, mode: str, folder: Path) -> None:
        self.venv = venv
        self.mode = mode
        self.folder = folder
        self.environment = os.environ | {"FLEXNPU_RUN_DIR": str(folder / "run")}

    def command(self, port: int, *options: str) -> list[str]:
        """Of a server at this port."""
        model = ensure(small("qwen2"))
        return vllm_ascend.command(self.venv, model, port, self.mode, *MEMORY, *options)

    def server(self, name: str) -> Server:
        """One that starts."""
        port = free_port()
        return Server(self.command(port), port, self.environment, self.folder / f"{name}.log", RUN)


def together(site: Site, number: int) -> tuple[float, list[list[int]]]:
    """One start of P and D: how long it took, s, and their answer."""
    folder = site.folder / f"together-{number}"
    folder.mkdir()
    ports = {role: free_port() for role in disaggregated.ROLES}
    commands = {role: site.command(port, *disaggregated.options(role)) for role, port in ports.items()}
    begin = time.monotonic()
    with disaggregated.instances(commands, ports, site.environment, folder, RUN) as servers:
        took = time.monotonic() - begin
        with disaggregated.proxy(servers, site.venv, site.environment, folder) as proxy:
            return took, [proxy.complete(PROMPT, TOKENS)]


def second(site: Site, first: Server, number: int) -> tuple[float, list[list[int]]]:
    """One start beside the first server: how long it took, s, and the answers of both."""
    begin = time.monotonic()
    with site.server(f"second-{number}") as server:
        server.wait()
        took = time.monotonic() - begin
        return took, [one.complete(PROMPT, TOKENS) for one in (first, server)]


def repeat(name: str, start: Callable[[int], tuple[float, list[list[int]]]], times: int) -> dict[str, Any]:
    """Starts, one after the other."""
    seconds: list[float] = []
    failures: list[str] = []
    want: list[list[int]] = []
    right = 0
    for number in range(times):
        try:
            took, answers = start(number)
        except VllmError as error:
            failures.append(str(error)[-2000:])
        else:
            seconds.append(round(took, 1))
            want = want or answers
            if answers == want and {len(answer) for answer in answers} == {TOKENS}:
                right += 1
            else:
                failures.append(f"start {number} answered {answers}, the first one {want}")
        say(f"{name}: {right} right of {number + 1}")
    return {"starts": times, "right": right, "seconds": seconds, "failures": failures}


@click.command("vllm-starts", cls=Program, context_settings=SETTINGS)
@click.option(
    "--together",
    "times",
    type=Whole(0, 1000),
    default=10,
    show_default=True,
    help="Starts of P and D at once.",
)
@click.option(
    "--beside", type=Whole(0, 1000), default=10, show_default=True, help="Starts of a second server."
)
@click.option(
    "--mode",
    type=click.Choice(list(vllm_ascend.MODES)),
    default="eager",
    show_default=True,
    help="How the engines launch.",
)
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="Where logs are kept.")
def main(times: int, beside: int, mode: str, keep: Path | None) -> None:
    """Start two vLLM-Ascend servers on one NPU, many times.

    \b
    Examples:
      flexnpu bench vllm-starts                     ten starts of each kind: half an hour
      flexnpu bench vllm-starts --beside 0          P and D at once only
    """
    try:
        venv = vllm_ascend.find()
    except VllmError as error:
        raise click.ClickException(str(error)) from None
    report: dict[str, Any] = {
        "benchmark": "vllm-starts",
        "cpus": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "mode": mode,
        "quota": QUOTA,
    }
    with tempfile.TemporaryDirectory(prefix="flexnpu-vllm-starts-") as temporary, ExitStack() as stack:
        folder = keep or Path(temporary)
        (folder / "run").mkdir(parents=True, exist_ok=True)
        site = Site(venv, mode, folder)
        try:
            daemon = Daemon(folder / "run", f"starts-{os.getpid()}", "compute")
            stack.callback(daemon.stop)
            if times:
                report["together"] = repeat("at once", lambda number: together(site, number), times)
            if beside:
                first = stack.enter_context(site.server("first"))
                first.wait()
                report["second"] = repeat("a second", lambda number: second(site, first, number), beside)
        except (VllmError, BenchmarkError) as error:
            raise click.ClickException(str(error)) from None
    report["load_after"] = os.getloadavg()[0]
    out_json(report, indent=2)


if __name__ == "__main__":
    main()
