"""What attaching costs: CPU until flexnpu-probe is attached, until its first step, and the memory it keeps.

A torch_npu decode loop runs on the emulated CANN while flexnpu-probe attaches to it again and again: with
the compiled BPF objects (core) and with bcc, each with nothing kept of earlier runs (cold) and with what the
run before has kept (warm). The four take turns, so that all meet the same machine. CPU time is that of the
program and of the children that it has waited for, from /proc/PID/stat, in steps of 10 ms. Memory is
resident (`Rss` of smaps_rollup) some seconds after the first step, by what maps it. Needs root.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from benchmarks.launch_cost import bench
from benchmarks.pairs import BenchmarkError, Peer, spread
from flexnpu.console.numbers import Whole
from flexnpu.control import paths
from probes.placing import loader

_COMMAND = [sys.executable, "-m", "benchmarks.torch_peer", "llama"]
_STEPS = "eager 10"
_TIMEOUT_S = 120.0
_SETTLE_S = 3.0
_TICKS = os.sysconf("SC_CLK_TCK")

FIGURES = ("cpu_s_to_attached", "cpu_s_to_first_step", "wall_s_to_attached", "wall_s_to_first_step")
"""Times of one run, from its start."""


def _cpu_s(pid: int) -> float:
    """User and system time of a process and of the children that it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / _TICKS


_KINDS = (
    ("LLVM and clang", re.compile(r"libLLVM|libclang")),
    ("bcc", re.compile(r"libbcc")),
    ("BPF maps and rings", re.compile(r"bpf-map|anon_inode")),
    ("Python", re.compile(r"python|/lib-dynload/")),
    ("heap", re.compile(r"^\[heap\]$")),
    ("anonymous", re.compile(r"^$|^\[")),
)


def _memory(pid: int) -> dict[str, float]:
    """Resident MiB, in all and by what is mapped."""
    found: dict[str, float] = defaultdict(float)
    name = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if re.match(r"^[0-9a-f]+-[0-9a-f]+$", fields[0]):
            name = fields[5] if len(fields) > 5 else ""
        elif fields[0] == "Rss:":
            kind = next((kind for kind, pattern in _KINDS if pattern.search(name)), "other files")
            found[kind] += int(fields[1]) / 1024
    return {"all": sum(found.values()), **dict(sorted(found.items(), key=lambda item: -item[1]))}


class _Attach:
    """One run of flexnpu-probe, attached to `pid`, until its first step."""

    def __init__(self, pid: int, name: str, run_dir: Path) -> None:
        environment = os.environ | {
            loader.ENVIRONMENT: name,
            paths.ENV_RUN_DIR: str(run_dir),
            "PYTHONUNBUFFERED": "1",
        }
        program = str(Path(sys.executable).with_name("flexnpu-probe"))
        self.figures: dict[str, float] = {}
        self._begun = time.monotonic()
        self._process = subprocess.Popen(
            [program, "attach", "--pid", str(pid), "--json", "--no-wire"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._said: list[str] = []
        watchdog = threading.Timer(_TIMEOUT_S, self._process.kill)
        watchdog.start()
        listener = threading.Thread(target=self._listen)
        listener.start()
        try:
            assert self._process.stdout is not None
            for line in self._process.stdout:
                if '"type":"step"' in line:
                    self._note("first_step")
                    break
            else:
                raise BenchmarkError(f"{name}: no step was seen:\n{''.join(self._said)[-2000:]}")
            time.sleep(_SETTLE_S)
            self.memory = _memory(self._process.pid)
        finally:
            watchdog.cancel()
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(ValueError):
                self._process.stdout.read()  # type: ignore[union-attr]
            self._process.wait()
            listener.join()

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._said.append(line)
            if "attached to" in line and "cpu_s_to_attached" not in self.figures:
                self._note("attached")

    def _note(self, event: str) -> None:
        with contextlib.suppress(OSError):
            self.figures[f"cpu_s_to_{event}"] = _cpu_s(self._process.pid)
        self.figures[f"wall_s_to_{event}"] = time.monotonic() - self._begun


@contextlib.contextmanager
def _stepping(peer: Peer) -> Iterator[None]:
    """The peer makes steps all the while."""
    end = threading.Event()

    def step() -> None:
        while not end.is_set():
            peer.ask(_STEPS)

    thread = threading.Thread(target=step)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def measure(rounds: int, loaders: tuple[str, ...]) -> dict[str, Any]:
    """By loader, and by whether something was kept: spreads of `FIGURES`, and memory of the last run."""
    runs: dict[tuple[str, str], list[_Attach]] = defaultdict(list)
    with bench("time") as sides:
        peer = Peer(_COMMAND, sides.direct | {"TASK_QUEUE_ENABLE": "0"})
        try:
            peer.ask(_STEPS)
            with _stepping(peer):
                for _ in range(rounds):
                    for name in loaders:
                        with tempfile.TemporaryDirectory(prefix="flexnpu-attach-") as run_dir:
                            for kept in ("cold", "warm"):
                                runs[name, kept].append(_Attach(peer.process.pid, name, Path(run_dir)))
        finally:
            peer.close()
    report: dict[str, Any] = {}
    for (name, kept), made in runs.items():
        row: dict[str, Any] = {
            figure: spread(run.figures[figure] for run in made if figure in run.figures) for figure in FIGURES
        }
        row["resident_mib"] = spread(run.memory["all"] for run in made)
        row["resident_mib_by"] = {
            kind: round(mib, 2) for kind, mib in made[-1].memory.items() if kind != "all"
        }
        report.setdefault(name, {})[kept] = row
    return report


@click.command(short_help="CPU and memory of attaching, by both loaders side by side.")
@click.option("--rounds", type=Whole(1, 1000), default=5, show_default=True, help="Runs of each kind.")
@click.option(
    "--loader", "loaders", multiple=True, type=click.Choice(list(loader.NAMES)), help="[default: both]"
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def main(rounds: int, loaders: tuple[str, ...], as_json: bool) -> None:
    """Measure CPU seconds until flexnpu-probe is attached and until its first step, and its memory.

    \b
    EXAMPLES
      sudo flexnpu bench attach              a table
      sudo flexnpu bench attach --json       the same as one JSON object

    \b
    OVERHEAD
      A torch_npu program decodes on the emulated device meanwhile, for some minutes.
    """
    if os.geteuid() != 0:
        raise click.ClickException("tracing needs root: sudo flexnpu bench attach")
    report: dict[str, Any] = {"rounds": rounds, "cores": os.cpu_count(), "load_before": os.getloadavg()[0]}
    try:
        report["attach"] = measure(rounds, loaders or loader.NAMES)
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from None
    report["load_after"] = os.getloadavg()[0]
    if as_json:
        print(json.dumps(report, indent=1))
        return
    print(f"{'loader':8}{'kept':6}" + "".join(f"{figure:>22}" for figure in (*FIGURES, "resident_mib")))
    for name, kinds in report["attach"].items():
        for kept, row in kinds.items():
            shown = "".join(
                f"{row[figure].get('median', 0.0):22.2f}" for figure in (*FIGURES, "resident_mib")
            )
            print(f"{name:8}{kept:6}{shown}")


if __name__ == "__main__":
    main()
