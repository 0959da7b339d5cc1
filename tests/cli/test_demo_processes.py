"""The demo's children end with it, and what is left is found."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexnpu.cli import leftovers
from flexnpu.cli.demo.processes import DemoError, Supervisor

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(120)"]
DEAF = [
    sys.executable,
    "-c",
    "import signal, time\n"
    "for n in (signal.SIGINT, signal.SIGTERM): signal.signal(n, signal.SIG_IGN)\n"
    "print('up', flush=True); time.sleep(120)",
]


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture
def tag() -> str:
    return uuid.uuid4().hex


def _up(supervisor: Supervisor, name: str) -> None:
    supervisor.wait_until("up", lambda: "up" in supervisor.children[name].tail(), 20)


def test_children_end_with_the_block(tmp_path: Path, tag: str) -> None:
    with Supervisor(tmp_path, tag) as supervisor:
        pids = [supervisor.start(name, SLEEP).pid for name in ("a", "b")]
        _up(supervisor, "a")
        _up(supervisor, "b")
        assert set(pids) <= set(leftovers.tagged_processes(tag))
    assert all(_gone(pid) for pid in pids)
    assert leftovers.tagged_processes(tag) == {}


def test_children_end_when_the_block_fails(tmp_path: Path, tag: str) -> None:
    pid = 0

    def run() -> None:
        nonlocal pid
        with Supervisor(tmp_path, tag) as supervisor:
            pid = supervisor.start("a", SLEEP).pid
            raise RuntimeError("middle")

    with pytest.raises(RuntimeError, match="middle"):
        run()
    assert _gone(pid)


def test_a_deaf_child_is_killed(tmp_path: Path, tag: str) -> None:
    with Supervisor(tmp_path, tag) as supervisor:
        supervisor.start("deaf", DEAF)
        _up(supervisor, "deaf")
        assert supervisor.stop("deaf", timeout_s=0.2) == -signal.SIGKILL


def test_a_death_is_told_with_its_last_words(tmp_path: Path, tag: str) -> None:
    with Supervisor(tmp_path, tag) as supervisor:
        supervisor.start("weak", [sys.executable, "-c", "print('no socket'); raise SystemExit(3)"])
        with pytest.raises(DemoError, match=r"weak ended with status 3.*\n.*no socket"):
            supervisor.wait_until("it works", lambda: False, 20)


def test_a_wait_is_bounded(tmp_path: Path, tag: str) -> None:
    with Supervisor(tmp_path, tag) as supervisor:
        supervisor.start("a", SLEEP)
        with pytest.raises(DemoError, match="it works: not within 0 s"):
            supervisor.wait_until("it works", lambda: False, 0.3)


def test_a_missing_program_is_named(tmp_path: Path, tag: str) -> None:
    with (
        Supervisor(tmp_path, tag) as supervisor,
        pytest.raises(DemoError, match="cannot start /nonexistent/x"),
    ):
        supervisor.start("a", ["/nonexistent/x"])


def test_children_end_when_the_demo_is_killed(tmp_path: Path, tag: str) -> None:
    script = (
        "import sys, time, pathlib\n"
        "from flexnpu.cli.demo.processes import Supervisor\n"
        f"s = Supervisor(pathlib.Path({str(tmp_path)!r}), {tag!r})\n"
        f"s.start('a', {SLEEP!r}); print('started', flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"started\n"
    parent.kill()
    parent.wait(60)
    deadline = time.monotonic() + 120
    while leftovers.tagged_processes(tag) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert leftovers.tagged_processes(tag) == {}


@pytest.fixture
def shared_file() -> Iterator[Path]:
    path = Path("/dev/shm") / f"flexnpu-test-{uuid.uuid4().hex}"
    path.write_bytes(b"x" * 4096)
    yield path
    path.unlink()


def test_orphaned_shared_memory_is_found(shared_file: Path) -> None:
    assert str(shared_file) in leftovers.orphaned_shared_memory()
    with shared_file.open("rb"):
        assert str(shared_file) not in leftovers.orphaned_shared_memory()


def test_dead_sockets_are_found(tmp_path: Path) -> None:
    path = tmp_path / "npu0.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        assert leftovers.dead_sockets([tmp_path]) == []
    assert leftovers.dead_sockets([tmp_path]) == [str(path)]
    assert leftovers.dead_sockets([tmp_path / "nowhere"]) == []
