"""Two sides of one comparison, alive at once and measured slice by slice in turn.

Shared machines change their pace from second to second. A program that runs for half a minute and then
another for half a minute are measured in two different worlds; slices of some tenths of a second that
take turns are not. So a measured program here is a *peer*: it warms up, then answers a request line on
stdin with a line of JSON on stdout. A side's programs and the daemon behind them are idle while the
other side has its turn.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flexnpu.common.quantiles import nearest_rank
from flexnpu.control import paths
from flexnpu.control.client import ControlClient

REPOSITORY = Path(__file__).resolve().parent.parent
NATIVE = REPOSITORY / "build" / "benchmarks" / "launch"


class BenchmarkError(RuntimeError):
    """A measured program or the daemon failed; the message holds what it said."""


class Peer:
    """A measured program. Raises BenchmarkError when it ends or says what is no JSON."""

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        self.name = command[0]
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr
        )
        self.ready = self._answer()

    def ask(self, request: str) -> dict[str, Any]:
        """The answer to one request."""
        self.send(request)
        return self._answer()

    def send(self, request: str) -> None:
        """Sends a request whose answer `receive` will get: for peers that run at the same time."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(request.encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self._failed()

    def receive(self) -> dict[str, Any]:
        """The next JSON object that it prints."""
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(b"{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        self._failed()
        raise AssertionError

    def _failed(self) -> None:
        try:
            code = self.process.wait(timeout=5)  # it closed its end: most often it is dying
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._stderr.seek(0)
        said = self._stderr.read()[-2000:].decode(errors="replace")
        raise BenchmarkError(f"{self.name} ended with {code}:\n{said}")

    def close(self) -> None:
        """End it: its input is closed, and after 30 s it is killed."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._stderr.close()


class Daemon:
    """flexnpud for an emulated device of its own. Raises BenchmarkError when it does not start."""

    def __init__(self, directory: Path, machine: str, mode: str, **variables: str) -> None:
        self.directory = directory
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `stop`)
        self.process = subprocess.Popen(
            [
                *(str(Path(sys.executable).with_name("flexnpud")), "--device", "0", "--emulated"),
                *("--mode", mode, "--run-dir", str(directory)),
            ],
            env=os.environ | {"FLEXNPU_EMU_MACHINE": machine} | variables,
            stderr=self._log,
        )
        deadline = time.monotonic() + 30
        while not paths.control_socket(0, directory).exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                self.process.wait()
                self._log.seek(0)
                raise BenchmarkError(f"flexnpud did not start: {self._log.read().decode(errors='replace')}")
            time.sleep(0.05)

    def cpu_seconds(self) -> float:
        """CPU time of all its threads."""
        return cpu_seconds(self.process.pid)

    def resident_mib(self) -> float:
        """VmRSS of the process, MiB."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        raise BenchmarkError("flexnpud has no VmRSS: it has ended")

    def counters(self) -> dict[str, int]:
        """`DaemonStatus.counters` of now."""
        with ControlClient(paths.control_socket(0, self.directory)) as client:
            return client.status().counters

    def stop(self) -> None:
        """End it with SIGTERM, after 30 s with SIGKILL."""
        self.process.terminate()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()


def cpu_seconds(pid: int) -> float:
    """CPU time of the live threads of `pid`, to the nanosecond (/proc/PID/task/*/schedstat).

    /proc/PID/stat counts in ticks of 10 ms: too coarse for a slice.
    """
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue  # a thread that has just ended
    return total / 1e9


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, 10th and 90th percentile, and how many values there were."""
    ordered = sorted(values)
    if len(ordered) < 2:
        return {"median": ordered[0], "n": 1} if ordered else {"n": 0}
    return {
        "median": nearest_rank(ordered, 0.5),
        "p10": nearest_rank(ordered, 0.1),
        "p90": nearest_rank(ordered, 0.9),
        "n": len(ordered),
    }


class Comparison:
    """Pairs of one figure, and what they say: each side's spread and the spread of the pairs' ratios."""

    def __init__(self) -> None:
        self._pairs: dict[str, list[tuple[float, float]]] = {}

    def add(self, direct: Mapping[str, float], interposed: Mapping[str, float]) -> None:
        """One pair of slices: figures by name."""
        for name in direct.keys() & interposed.keys():
            self._pairs.setdefault(name, []).append((direct[name], interposed[name]))

    def report(self) -> dict[str, Any]:
        """By figure, the spreads of both sides and of the ratio interposed / direct."""
        return {
            name: {
                "direct": spread(d for d, _ in pairs),
                "interposed": spread(i for _, i in pairs),
                "ratio": spread(i / d for d, i in pairs if d),
            }
            for name, pairs in sorted(self._pairs.items())
        }
