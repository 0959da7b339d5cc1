"""The commands as they are typed: daemon, run, status, controller; good input and bad."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flexnpu.client.environment import CLIENT_HOME, environment
from flexnpu.control.client import ControlClient
from flexnpu.control.messages import SetGate
from probes.feed.events import Phase, Step
from probes.feed.socket import FeedServer
from tests.collectors import scripted

pytest.importorskip("flexnpu.daemon._plane", reason="run make build")

BIN = Path(sys.executable).parent

PROGRAM = """
import ctypes, os, sys, time
acl = ctypes.CDLL("libascendcl.so")
def check(code):
    assert code == 0, code
check(acl.aclInit(None))
check(acl.aclrtSetDevice(0))
pointer, stream = ctypes.c_void_p(), ctypes.c_void_p()
check(acl.aclrtMalloc(ctypes.byref(pointer), ctypes.c_size_t(3 << 20), 0))
check(acl.aclrtCreateStream(ctypes.byref(stream)))
print("ready", stream.value, flush=True)
sys.stdin.readline()
check(acl.aclrtSynchronizeStream(stream))
check(acl.aclrtFree(pointer))
print("done", flush=True)
"""


def command(name: str, *arguments: object) -> list[str]:
    return [str(BIN / name), *map(str, arguments)]


def call(run_dir: Path, name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(name, *arguments),
        env={**os.environ, "FLEXNPU_RUN_DIR": str(run_dir)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def wait_for(what: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if what():
            return True
        time.sleep(0.02)
    return what()


class Daemon:
    def __init__(self, run_dir: Path, *arguments: object) -> None:
        self.run_dir = run_dir
        self.log_path = run_dir.parent / "log"
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(
                command("flexnpud", "--emulated", "--run-dir", run_dir, *arguments), stderr=log
            )
        self.client = ControlClient(run_dir / "npu0.ctl")
        assert wait_for(self.client.path.exists), self.log_path.read_text()
        assert wait_for(lambda: any(line["event"] == "serving" for line in self.log()))

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_path.read_text().splitlines()]

    def end(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait(120)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def daemon(run_dir: Path) -> Iterator[Daemon]:
    made = Daemon(run_dir)
    yield made
    made.end()


def start_program(run_dir: Path) -> tuple[subprocess.Popen[str], int]:
    """A program that holds 3 MiB and a stream, and the stream's handle."""
    program = subprocess.Popen(
        command("flexnpu", "run", "--", sys.executable, "-c", PROGRAM),
        env={**os.environ, "FLEXNPU_RUN_DIR": str(run_dir)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    word, handle = program.stdout.readline().split()
    assert word == "ready"
    return program, int(handle)


def test_a_program_through_the_daemon(daemon: Daemon) -> None:
    program, handle = start_program(daemon.run_dir)
    status = daemon.client.status()
    session = next(one for one in status.sessions if one.pid == program.pid)
    assert session.memory_bytes >= 3 << 20
    assert handle in [lane.stream for lane in status.lanes if lane.pid == program.pid]
    shown = call(daemon.run_dir, "flexnpu", "status")
    assert shown.returncode == 0
    assert str(program.pid) in shown.stdout
    as_json = json.loads(call(daemon.run_dir, "flexnpu", "status", "--json").stdout)
    assert as_json[0]["sessions"][0]["pid"] == program.pid
    assert program.communicate("\n", timeout=60)[0] == "done\n"
    assert program.returncode == 0
    assert wait_for(lambda: not daemon.client.status().sessions)


def test_a_killed_client_gives_all_back(daemon: Daemon) -> None:
    program, _ = start_program(daemon.run_dir)
    program.kill()
    program.communicate()
    assert wait_for(lambda: not daemon.client.status().sessions)
    assert not daemon.client.status().lanes


def test_sigterm_leaves_nothing(run_dir: Path) -> None:
    daemon = Daemon(run_dir)
    assert daemon.client.status().device == 0
    daemon.end()
    assert daemon.process.returncode == 0
    assert not run_dir.exists()
    assert [line["event"] for line in daemon.log()] == ["serving", "stopping", "stopped"]


def test_kill_9_leaves_nothing_and_ends_clients(run_dir: Path) -> None:
    daemon = Daemon(run_dir)
    program, _ = start_program(run_dir)
    daemon.process.kill()
    daemon.process.wait()
    assert program.stdin is not None
    program.stdin.write("\n")
    program.stdin.flush()
    program.wait(120)
    assert program.returncode != 0, "its synchronise must fail"
    for pipe in (program.stdin, program.stdout):
        assert pipe is not None
        pipe.close()
    assert wait_for(lambda: not run_dir.exists())


def test_a_second_daemon_is_refused_and_the_first_stays(daemon: Daemon) -> None:
    second = call(daemon.run_dir, "flexnpud", "--emulated", "--run-dir", daemon.run_dir)
    assert second.returncode == 1
    assert f"pid {daemon.process.pid}" in second.stderr
    assert daemon.client.status()


def test_a_lease_outlives_its_setter_by_its_length_only(daemon: Daemon) -> None:
    daemon.client.set_gate(SetGate(policy="protect-decode", lease_s=0.5))
    assert daemon.client.status().gate.policy == "protect-decode"
    assert wait_for(lambda: daemon.client.status().gate.policy == "transparent", 3)
    assert daemon.client.status().gate.expired_leases == 1
    assert "lease-expired" in [line["event"] for line in daemon.log()]


def test_an_idle_daemon_takes_no_time(daemon: Daemon) -> None:
    time.sleep(0.5)

    def ticks() -> int:
        fields = Path(f"/proc/{daemon.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    time.sleep(2)
    # 1 % of a core over 2 s are 2 ticks of 10 ms; starting up is over.
    assert ticks() - before <= 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--emulated", "--profile", "nonesuch"], "nonesuch"),
        (["--emulated", "--profile", "./nonesuch.toml"], "no such file"),
        (["--emulated", "--vendor-lib", "/nonexistent"], "exclude each other"),
        (["--profile", "demo"], "add --emulated"),
        (["--vendor-lib", "/nonexistent"], "/nonexistent"),
        (["--device", "-1", "--emulated"], "-1"),
        (["--device", "5000", "--emulated"], "5000"),
        (["--emulated", "--run-dir", "/proc/nonesuch"], "/proc/nonesuch"),
        (["--emulated", "--run-dir", "/tmp/" + "x" * 120], "107"),
    ],
)
def test_flexnpud_bad_input(run_dir: Path, arguments: list[str], says: str) -> None:
    result = call(run_dir, "flexnpud", *arguments)
    assert result.returncode not in (0, -signal.SIGSEGV)
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert not run_dir.exists()


def test_flexnpud_under_flexnpu_run(run_dir: Path) -> None:
    env = {**os.environ, "LD_LIBRARY_PATH": str(CLIENT_HOME / "lib"), "FLEXNPU_RUN_DIR": str(run_dir)}
    result = subprocess.run(
        command("flexnpud", "--emulated"), env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 1
    assert "start it outside" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["status"], 1, "flexnpud --device 0"),
        (["status", "--device", "3"], 1, "flexnpud --device 3"),
        (["run", "--", "true"], 1, "flexnpud --device 0"),
        (["run", "--device", "7", "--", "true"], 1, "flexnpud --device 7"),
        (["run"], 2, "no command"),
        (["run", "--emulated", "--", "nonesuch-program"], 127, "nonesuch-program"),
        (["run", "--emulated", "--", "/etc/passwd"], 127, "/etc/passwd"),
        (["nonesuch"], 2, "nonesuch"),
    ],
)
def test_flexnpu_bad_input(run_dir: Path, arguments: list[str], code: int, says: str) -> None:
    result = call(run_dir, "flexnpu", *arguments)
    assert result.returncode == code
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_run_without_a_daemon_names_stale_sockets(run_dir: Path) -> None:
    run_dir.mkdir()
    (run_dir / "npu4.ctl").touch()
    result = call(run_dir, "flexnpu", "run", "--", "true")
    assert "device 4" in result.stderr


def test_run_passes_arguments_status_and_environment(run_dir: Path) -> None:
    script = "import os, sys; print(os.environ['LD_LIBRARY_PATH'], sys.argv[1:]); sys.exit(9)"
    result = call(
        run_dir, "flexnpu", "run", "--emulated", "--", sys.executable, "-c", script, "--device", "x"
    )
    assert result.returncode == 9
    assert "emulator/lib" in result.stdout
    assert "['--device', 'x']" in result.stdout


def test_environment_replaces_what_an_outer_run_has_set() -> None:
    first = environment(CLIENT_HOME, [Path("/a.sock")], {"LD_LIBRARY_PATH": "/own", "HOME": "/h"})
    assert first["FLEXNPU_SOCKET"] == "/a.sock"
    assert first["LD_LIBRARY_PATH"] == f"{CLIENT_HOME}/lib:/own"
    assert first["ASCEND_OPP_PATH"].endswith("/opp")
    second = environment(CLIENT_HOME, [Path("/b.sock"), Path("/a.sock")], first)
    assert second["FLEXNPU_SOCKETS"] == "/b.sock,/a.sock"
    assert "FLEXNPU_SOCKET" not in second
    third = environment(CLIENT_HOME, [], second)
    assert third["LD_LIBRARY_PATH"] == f"{CLIENT_HOME}/lib:/own"
    assert not {"FLEXNPU_SOCKET", "FLEXNPU_SOCKETS"} & set(third)


@pytest.mark.parametrize("devices", ["", "0,", "x", "0,0", "1024", "-1"])
def test_run_refuses_what_is_no_list_of_devices(run_dir: Path, devices: str) -> None:
    result = call(run_dir, "flexnpu", "run", "--devices", devices, "--", "true")
    assert result.returncode == 2
    assert "--devices" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--window-us", "0"], "window-us"),
        (["--lease-s", "1000"], "lease-s"),
        (["--policy", "nonesuch"], "nonesuch"),
    ],
)
def test_controller_bad_input(run_dir: Path, arguments: list[str], says: str) -> None:
    result = call(run_dir, "flexnpu-controller", *arguments)
    assert result.returncode != 0
    assert says in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [([], "flexnpud --device 0"), (["--ctl", "/nonexistent/npu2.ctl"], "flexnpud --device 2")],
)
def test_controller_waits_for_a_daemon(run_dir: Path, arguments: list[str], says: str) -> None:
    assert says in first_words_of_a_controller(run_dir, *arguments)


def test_controller_waits_for_a_feed(daemon: Daemon) -> None:
    assert "flexnpu-probe attach" in first_words_of_a_controller(daemon.run_dir)


def first_words_of_a_controller(run_dir: Path, *arguments: str) -> str:
    """What it says before it waits. That ends when it is told to."""
    controller = subprocess.Popen(
        command("flexnpu-controller", *arguments),
        env={**os.environ, "FLEXNPU_RUN_DIR": str(run_dir)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert controller.stderr is not None
    words = controller.stderr.readline()
    assert controller.poll() is None
    controller.terminate()
    rest = controller.communicate(timeout=120)[1]
    assert controller.returncode == 0
    assert "Traceback" not in words + rest
    return words


def test_status_names_who_owns_the_gate(daemon: Daemon) -> None:
    daemon.client.set_gate(SetGate(policy="protect-decode", lease_s=60))
    comm = Path("/proc/self/comm").read_text().strip()
    shown = call(daemon.run_dir, "flexnpu", "status").stdout
    assert f"owned by {comm} (pid {os.getpid()}, user {os.getuid()})" in " ".join(shown.split())
    (status,) = json.loads(call(daemon.run_dir, "flexnpu", "status", "--json").stdout)
    owner = status["gate"]["owner"]
    assert (owner["pid"], owner["comm"]) == (os.getpid(), comm)
    assert 0 < owner["lease_left_s"] <= 60


def test_the_controller_sets_the_gate_and_its_death_frees_it(daemon: Daemon) -> None:
    """Steps of two programs, one that decodes and one that prefills, come over a feed."""
    names: tuple[Phase, ...] = ("decode", "prefill")
    programs = {phase: start_program(daemon.run_dir) for phase in names}
    with FeedServer(daemon.run_dir / "probe.sock") as feed:
        controller = subprocess.Popen(
            command("flexnpu-controller", "--lease-s", 1, "--target-ms", 20),
            env={**os.environ, "FLEXNPU_RUN_DIR": str(daemon.run_dir)},
            stdout=subprocess.PIPE,
            text=True,
        )

        def gated() -> bool:
            for phase, (program, handle) in programs.items():
                feed.publish(_step(program.pid, handle, phase))
            return daemon.client.status().gate.policy == "protect-decode"

        assert wait_for(gated)
        status = daemon.client.status()
        phases = {(lane.pid, lane.stream): lane.phase for lane in status.lanes}
        for phase, (program, handle) in programs.items():
            assert phases[program.pid, handle] == phase
        assert status.gate.decode_target_us == 20_000
        controller.kill()
        output = controller.communicate()[0]
        assert [json.loads(line)["event"] for line in output.splitlines()][:1] == ["started"]
        assert wait_for(lambda: daemon.client.status().gate.policy == "transparent", 3)
        assert daemon.client.status().gate.expired_leases == 1
    for program, _ in programs.values():
        program.communicate("\n", timeout=60)


def _step(pid: int, stream: int, phase: Phase) -> Step:
    now = time.monotonic_ns()
    return scripted.step(now - 10_000_000, now, phase, pid=pid, stream=stream)
