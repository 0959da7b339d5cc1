"""A daemon of an emulated NPU, and programs run directly and through it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from flexnpu import emulator
from flexnpu.control import paths
from flexnpu.control.client import ControlClient
from flexnpu.control.messages import DaemonStatus
from tests.containers import child_of

PROGRAMS = Path(__file__).parent / "programs"
sys.path.insert(0, str(PROGRAMS.parent))  # for ordering_model, which is a helper and no test


def _installed(command: str) -> Path:
    return Path(sys.executable).with_name(command)


class Daemon:
    """flexnpud for an emulated device, in the run directory `directory`."""

    def __init__(
        self,
        directory: Path,
        *options: str,
        device: int = 0,
        variables: Mapping[str, str] | None = None,
        prefix: tuple[str, ...] = (),
    ) -> None:
        self.contained = bool(prefix)
        self.directory = directory
        self.device = device
        self.environment = os.environ | {"FLEXNPU_RUN_DIR": str(directory), "PYTHONUNBUFFERED": "1"}
        self.environment |= variables or {}
        command = [
            *prefix,
            str(_installed("flexnpud")),
            "--device",
            str(device),
            "--emulated",
            "--run-dir",
            str(directory),
            *options,
        ]
        self.process = subprocess.Popen(command, env=self.environment, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while not self.control.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError(f"flexnpud did not start: {self.process.communicate()[1]}")
            time.sleep(0.05)

    @property
    def control(self) -> Path:
        return paths.control_socket(self.device, self.directory)

    def status(self) -> DaemonStatus:
        with ControlClient(self.control) as client:
            return client.status()

    def command(self, program: str, *arguments: str) -> list[str]:
        """`program` of tests/clients/programs, under interposition."""
        run = [str(_installed("flexnpu")), "run", "--"]
        return [*run, sys.executable, str(PROGRAMS / program), *arguments]

    def start(self, program: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(program, *arguments), env=self.environment, stdout=subprocess.PIPE, text=True
        )

    def run(self, program: str, *arguments: str, timeout: float = 240) -> str:
        return _output(self.command(program, *arguments), self.environment, timeout)

    def wait_for(self, condition: Callable[[DaemonStatus], bool], timeout: float = 120) -> DaemonStatus:
        deadline = time.monotonic() + timeout
        while True:
            status = self.status()
            if condition(status):
                return status
            assert time.monotonic() < deadline, status
            time.sleep(0.05)

    def stop(self) -> None:
        if self.process.poll() is None:
            os.kill(child_of(self.process.pid) if self.contained else self.process.pid, signal.SIGTERM)
        _, errors = self.process.communicate(timeout=120)
        assert self.process.returncode in (0, -signal.SIGKILL), errors


class Machine:
    """An emulated machine that no other test uses; programs run on it directly or through its daemons."""

    def __init__(self, directory: Path, devices: int, extra: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.devices = devices
        self.variables = emulator.environment(devices=devices, machine=f"test-{uuid.uuid4().hex[:8]}")
        self.variables |= extra or {}

    @property
    def prefix(self) -> list[str]:
        """The command that gives a program all devices."""
        devices = ",".join(map(str, range(self.devices)))
        return [str(_installed("flexnpu")), "run", "--devices", devices, "--"]

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs behind `prefix`."""
        return os.environ | {"FLEXNPU_RUN_DIR": str(self.directory)}

    @contextmanager
    def daemons(self, *prefix: str) -> Iterator[list[Daemon]]:
        """Those of all devices, behind `prefix`."""
        names = ("FLEXNPU_EMU", "HCCL")
        variables = {k: v for k, v in self.variables.items() if k.startswith(names)}
        with ExitStack() as stack:
            daemons = []
            for device in range(self.devices):
                daemons.append(Daemon(self.directory, device=device, variables=variables, prefix=prefix))
                stack.callback(daemons[-1].stop)
            yield daemons

    def direct(self, program: str, *arguments: str, timeout: float = 120) -> str:
        command = [sys.executable, str(PROGRAMS / program), *arguments]
        return _output(command, os.environ | self.variables, timeout)

    def interposed(
        self, program: str, *arguments: str, timeout: float = 120, prefix: tuple[str, ...] = ()
    ) -> str:
        """Needs the daemons. `prefix`: of the whole command, and of the programs that it starts."""
        command = [*prefix, *self.prefix, sys.executable, str(PROGRAMS / program), *arguments]
        return _output(command, self.environment | {"FLEXNPU_TEST_PREFIX": " ".join(prefix)}, timeout)


def _output(command: list[str], environment: dict[str, str], timeout: float) -> str:
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert result.returncode == 0, f"{command}: {result.returncode}\n{result.stderr[-3000:]}"
    return result.stdout


@pytest.fixture
def daemon(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """With the options that an indirect parameter gives."""
    one = Daemon(tmp_path, *getattr(request, "param", ()))
    try:
        yield one
    finally:
        one.stop()


@pytest.fixture
def direct() -> Callable[..., str]:
    """Runs a program of tests/clients/programs straight on the emulated device; its output."""

    def run(program: str, *arguments: str, timeout: float = 240) -> str:
        command = [sys.executable, str(PROGRAMS / program), *arguments]
        return _output(command, os.environ | emulator.environment(), timeout)

    return run
