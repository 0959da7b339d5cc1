"""Tracers of a running process, ours and others': programs that start, say that they are attached, end."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.pairs import BenchmarkError
from probes.placing import headers, symbols

LAUNCH = "aclrtLaunchKernelWithHostArgs"
TENSOR = "aclCreateTensor"


class TracerProcess:
    """A tracer attached to `pid`. Raises BenchmarkError when it does not get that far in 60 s."""

    def __init__(self, command: Sequence[str], ready: str, environment: dict[str, str] | None = None) -> None:
        self._out = tempfile.NamedTemporaryFile("rb")  # noqa: SIM115 (closed by `stop`)
        began = time.monotonic()
        self.process = subprocess.Popen(
            command,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | (environment or {}),
            stdout=open(self._out.name, "wb"),  # noqa: SIM115
            stderr=subprocess.STDOUT,
        )
        while ready not in self.said():
            if self.process.poll() is not None or time.monotonic() - began > 60:
                self.process.kill()
                raise BenchmarkError(f"{' '.join(command)} did not attach:\n{self.said()[-2000:]}")
            time.sleep(0.01)
        self.start_s = time.monotonic() - began
        """From its start to being attached."""
        self.stop_s = 0.0
        """From SIGINT to its end."""

    def said(self) -> str:
        """All that it has printed so far."""
        return Path(self._out.name).read_text(errors="replace")

    def resident_mib(self) -> float:
        """VmRSS of the process, MiB; 0 when it has ended."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", text)
        return int(found[1]) / 1024 if found else 0.0

    def stop(self) -> str:
        """What it printed."""
        if self.process.poll() is None:
            began = time.monotonic()
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.stop_s = time.monotonic() - began
        said = self.said()
        self._out.close()
        return said


def _library(pid: int, name: str) -> str:
    """The file, as we can open it, that defines `name` in `pid`."""
    found = symbols.resolve(pid, [name]).get(name)
    if not found:
        raise BenchmarkError(f"process {pid} maps no library that defines {name}")
    return found[0].library.real


def ours(pid: int, *options: str) -> TracerProcess:
    """flexnpu-probe, printing JSON as a consumer would have it."""
    program = str(Path(sys.executable).with_name("flexnpu-probe"))
    return TracerProcess(
        [program, "attach", "--pid", str(pid), "--json", "--no-wire", *options], "attached to"
    )


def bpftrace(pid: int) -> TracerProcess:
    """A script that counts every launch and every tensor made: what an engineer types first."""
    script = "".join(
        f"uprobe:{_library(pid, name)}:{name} {{ @{name} = count(); }} " for name in (LAUNCH, TENSOR)
    )
    # The interval's first line says that the probes before it are in.
    script += 'interval:s:1 { printf("attached to\\n"); }'
    return TracerProcess([_tool("bpftrace"), "-p", str(pid), "-e", script], "attached to")


def funclatency(pid: int) -> TracerProcess:
    """bcc's funclatency on every launch: an entry and a return probe."""
    command = [_tool("funclatency-bpfcc", "funclatency"), "-p", str(pid), f"{_library(pid, LAUNCH)}:{LAUNCH}"]
    headers.prepare()
    return TracerProcess(command, "Tracing 1 functions")


def _tool(*names: str) -> str:
    for name in names:
        found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if found:
            return found
    raise BenchmarkError(f"no {names[0]} here: apt-get install bpftrace bpfcc-tools")


def steps_of(said: str) -> tuple[list[dict[str, object]], dict[str, int]]:
    """The steps that `ours` printed, and its last account of what was lost."""
    steps, losses = [], {}
    for line in said.splitlines():
        if not line.startswith("{"):
            continue
        event = json.loads(line)
        if event["type"] == "step":
            steps.append(event)
        elif event["type"] == "losses" and event["source"] == "steps":
            losses = event["counts"]
    return steps, losses
