"""The demo's child processes: started, watched, and ended, each by its own pid and nothing else's."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from flexnpu.cli.leftovers import TAG_VARIABLE

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class DemoError(Exception):
    """A part of the chain did not come up or went away; the message says which and why."""


@dataclass
class Child:
    """A running program and where its output goes."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """Its process id, also after its end."""
        return self.process.pid

    def tail(self, lines: int = 15) -> str:
        """The last lines of what the program has printed."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


def _die_with_parent() -> None:
    # Should the demo be killed with SIGKILL, its children are told to end too.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _set_nice(pid: int, nice: int) -> None:
    """Set the priority of a session's leader and, where the kernel groups sessions, of its session."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, nice)
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(nice))


class Supervisor:
    """Starts children and ends them in reverse order, also when leaving by an exception.

    ``directory`` takes one log file a child; ``tag`` is put into every child's environment, and inherited,
    so that `flexnpu.cli.leftovers` can find what a child itself left running.
    """

    def __init__(self, directory: Path, tag: str) -> None:
        self._directory = directory
        self._tag = tag
        self.children: dict[str, Child] = {}

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_all()

    def start(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        nice: int = 0,
    ) -> Child:
        """Start a program in a session of its own, which inherits ``pass_fds``; ``nice`` is its
        priority, where we may give it one. Raises DemoError if it is not there."""
        log = self._directory / f"{name}.log"
        merged = {**os.environ, **(environment or {}), TAG_VARIABLE: self._tag}
        try:
            with log.open("wb") as output:
                process = subprocess.Popen(
                    command,
                    env=merged,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=pass_fds,
                    preexec_fn=_die_with_parent,
                )
        except OSError as error:
            raise DemoError(f"{name}: cannot start {command[0]}: {error.strerror}") from error
        if nice:
            _set_nice(process.pid, nice)
        child = Child(name, process, log)
        self.children[name] = child
        return child

    def check(self) -> None:
        """Raise DemoError if a child has ended by itself."""
        for child in self.children.values():
            code = child.process.poll()
            if code is not None:
                raise DemoError(f"{child.name} ended with status {code}; its last output:\n{child.tail()}")

    def wait_until(self, what: str, ready: Callable[[], bool], timeout_s: float) -> float:
        """Wait until ``ready()``; returns the seconds it took. Raises DemoError at the timeout or a death."""
        start = time.monotonic()
        while not ready():
            self.check()
            if time.monotonic() - start > timeout_s:
                logs = "\n".join(f"--- {child.name}\n{child.tail(5)}" for child in self.children.values())
                raise DemoError(f"{what}: not within {timeout_s:.0f} s\n{logs}")
            time.sleep(0.1)
        return time.monotonic() - start

    def stop(self, name: str, timeout_s: float = 15.0) -> int | None:
        """End one child by SIGTERM, then its group by SIGKILL; returns its status if known."""
        child = self.children.pop(name, None)
        if child is None:
            return None
        if child.process.poll() is None:
            child.process.terminate()
            try:
                child.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(5.0)
        return child.process.poll()

    def stop_all(self) -> None:
        """End all children, the last started first."""
        for name in reversed(list(self.children)):
            self.stop(name)
