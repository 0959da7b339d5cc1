"""What /proc says of processes, also of one whose first thread has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexnpu.common.processes import comm_of, folder_of, start_time_of, thread_of
from probes.host import memory, services
from probes.host.listening import listening_of
from probes.placing import symbols
from probes.requests.kernel import is_open, is_socket
from tests.common.exit_thread import wait_for_zombie

HERE = Path(__file__).resolve().parent

LEAVER = """
import ctypes, os, socket, sys, threading
import exit_thread
held = ctypes.create_string_buffer(b"held by the others")
server = socket.create_server(("127.0.0.1", 0))
def stay():
    print(server.fileno(), server.getsockname()[1], ctypes.addressof(held), flush=True)
    sys.stdin.read()
    os._exit(0)
threading.Thread(target=stay).start()
exit_thread.leave_process_to_others()
"""


@pytest.fixture
def leaver() -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A process whose first thread has ended; the descriptor of a socket of it, its port, an address."""
    environment = os.environ | {"PYTHONPATH": str(HERE), "OTEL_SERVICE_NAME": "left"}
    with subprocess.Popen(
        [sys.executable, "-c", LEAVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as child:
        assert child.stdout is not None
        told = [int(word) for word in child.stdout.readline().split()]
        started = start_time_of(child.pid)
        wait_for_zombie(child.pid)
        assert start_time_of(child.pid) == started
        try:
            yield child, told
        finally:
            child.kill()


def test_of_a_process_that_runs_it_is_the_first_thread() -> None:
    assert thread_of(os.getpid()) == os.getpid()
    assert folder_of(os.getpid()) == f"/proc/{os.getpid()}"
    assert start_time_of(os.getpid())


def test_a_process_without_its_first_thread_shows_all_that_it_has(
    leaver: tuple[subprocess.Popen[str], list[int]],
) -> None:
    child, (fd, port, at) = leaver
    assert thread_of(child.pid) not in (None, child.pid)
    assert comm_of(child.pid)
    assert any(os.path.basename(one.real).startswith("libc") for one in symbols.mapped_files(child.pid))
    assert memory.read(child.pid, at, 4) == b"held"
    assert listening_of([child.pid])[child.pid].ports == (port,)
    assert services.of_process(child.pid) == services.Service("left", "environment")
    assert is_socket(child.pid, fd)
    assert not is_open(child.pid, 999)


def test_one_that_has_ended_has_none(leaver: tuple[subprocess.Popen[str], list[int]]) -> None:
    child, _ = leaver
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie, whole
    assert thread_of(child.pid) is None
    assert start_time_of(child.pid) is None
    child.wait()
    assert thread_of(child.pid) is None
    assert start_time_of(child.pid) is None
    assert folder_of(child.pid) == f"/proc/{child.pid}"
