"""A daemon under a service manager: readiness, a stop, a crash, and what its clients see of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexnpu.control.client import ControlClient

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "programs"
BIN = Path(sys.executable).parent


class Supervisor:
    """What the unit file asks of a service manager: start, wait for READY=1, start again when it fails."""

    def __init__(self, directory: Path) -> None:
        self.run_dir = directory / "run"
        self.environment = {**os.environ, "FLEXNPU_RUN_DIR": str(self.run_dir), "PYTHONUNBUFFERED": "1"}
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.listener.bind(str(directory / "notify"))
        (directory / "notify").chmod(0o666)
        directory.chmod(0o755)
        self.listener.settimeout(30)
        self.log = (directory / "log").open("w+")
        self.starts: list[float] = []
        self.restarting = True
        self.start()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [str(BIN / "flexnpud"), "--emulated", "--run-dir", str(self.run_dir)],
            env={**self.environment, "NOTIFY_SOCKET": self.listener.getsockname()},
            stderr=self.log,
        )
        self.starts.append(time.monotonic())

    def _watch(self) -> None:
        while True:
            code = self.process.wait()
            if code == 0 or not self.restarting:
                return
            self.start()

    def states(self, wanted: str) -> dict[str, str]:
        """The next notification that has `wanted`."""
        while True:
            state = dict(line.split("=", 1) for line in self.listener.recv(4096).decode().splitlines())
            if wanted in state:
                return state

    def hold(self) -> subprocess.Popen[str]:
        """A program that works until an error ends it; it has begun."""
        program = subprocess.Popen(
            [str(BIN / "flexnpu"), "run", "--", sys.executable, str(PROGRAMS / "holder.py")],
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert program.stdout is not None
        assert program.stdout.readline().startswith("ready")
        return program

    def events(self) -> list[str]:
        self.log.seek(0)
        return [json.loads(line)["event"] for line in self.log if line.startswith("{")]

    def close(self) -> None:
        self.restarting = False
        if self.process.poll() is None:
            self.process.terminate()
        self.thread.join(20)
        assert not self.thread.is_alive()
        self.listener.close()
        self.log.close()


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    # The daemon gives root up before it is ready, and must still reach the socket.
    directory = Path(tempfile.mkdtemp(prefix="flexnpu-restart-"))
    one = Supervisor(directory)
    yield one
    one.close()
    shutil.rmtree(directory, ignore_errors=True)


def last_words(program: subprocess.Popen[str]) -> tuple[str, float, str]:
    """Code, seconds that the failing call took, and message of the error that ended a holder."""
    out, _ = program.communicate(timeout=120)
    kind, code, seconds, message = out.splitlines()[-1].split(maxsplit=3)
    assert kind == "error"
    return code, float(seconds), message


def test_a_crash_is_an_error_to_clients_and_a_new_daemon_serves(supervisor: Supervisor) -> None:
    assert supervisor.states("READY")["MAINPID"] == str(supervisor.process.pid)
    programs = [supervisor.hold() for _ in range(2)]
    first = supervisor.process.pid
    os.kill(first, signal.SIGKILL)
    for program in programs:
        code, seconds, message = last_words(program)
        assert code == "507000"
        assert seconds < 60  # a hang guard: the message says that nothing was waited for
        assert "is gone" in message
    # The next one takes the sockets that lie there, and the lock.
    assert supervisor.states("READY")["MAINPID"] == str(supervisor.process.pid)
    assert supervisor.process.pid != first
    program = supervisor.hold()
    with ControlClient(supervisor.run_dir / "npu0.ctl") as client:
        status = client.status()
        assert status.pid == supervisor.process.pid
        assert [one.pid for one in status.sessions] == [program.pid]
    program.kill()
    program.communicate()
    assert len(supervisor.starts) == 2


def test_five_crashes_in_a_row(supervisor: Supervisor) -> None:
    for _ in range(5):
        supervisor.states("READY")
        supervisor.process.kill()
        before = len(supervisor.starts)
        deadline = time.monotonic() + 120
        while len(supervisor.starts) == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    supervisor.states("READY")
    assert supervisor.events().count("serving") == 6
    assert sorted(path.name for path in supervisor.run_dir.iterdir()) == [
        "npu0.ctl",
        "npu0.lock",
        "npu0.sock",
    ]


def test_a_stop_tells_its_clients_and_ends_in_time(supervisor: Supervisor) -> None:
    supervisor.states("READY")
    program = supervisor.hold()
    supervisor.process.terminate()
    assert supervisor.states("STOPPING")
    code, _, message = last_words(program)
    assert code == "507000"
    assert "was stopped" in message
    supervisor.thread.join(120)
    assert supervisor.process.returncode == 0
    assert len(supervisor.starts) == 1
    assert not supervisor.run_dir.exists()


def test_the_unit_files(tmp_path: Path) -> None:
    subprocess.run(
        ["make", "-s", "-C", str(ROOT), "install-units", f"DESTDIR={tmp_path}", f"BIN={BIN}"],
        check=True,
        capture_output=True,
    )
    unit = tmp_path / "etc/systemd/system/flexnpud@.service"
    text = unit.read_text()
    assert f"ExecStart={BIN}/flexnpud --device %i" in text
    assert "@BIN@" not in text
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze: Debian's package systemd has it")
    instance = unit.with_name("flexnpud@0.service")
    unit.rename(instance)
    found = subprocess.run(
        ["systemd-analyze", "verify", str(instance)], capture_output=True, text=True, timeout=60, check=False
    )
    assert "flexnpud@0" not in found.stderr, found.stderr
    assert found.returncode == 0
