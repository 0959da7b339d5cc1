"""A daemon that does not answer for a while: its clients wait, as they would for a hung device, and go on."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Daemon

PROGRAMS = Path(__file__).parent / "programs"

LONG = 11.0
"""Longer than any time-out that client and daemon have ever had between them, seconds."""


@contextmanager
def stopped(daemon: Daemon) -> Iterator[None]:
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        daemon.process.send_signal(signal.SIGCONT)


@contextmanager
def patient(daemon: Daemon, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """programs/patient.py."""
    program = subprocess.Popen(
        daemon.command("patient.py"),
        env=daemon.environment | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield program
    finally:
        program.kill()
        program.communicate()


def test_calls_amid_a_stop_are_right_afterwards(daemon: Daemon) -> None:
    with patient(daemon) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        with stopped(daemon):
            program.stdin.write("go\n")
            program.stdin.flush()
            assert program.stdout.readline() == "asking\n"
            time.sleep(LONG)
            assert program.poll() is None
        output, errors = program.communicate(timeout=120)
    assert output == "right\n"
    assert errors == ""


def test_a_new_client_says_what_it_waits_for_and_goes_on(daemon: Daemon) -> None:
    with stopped(daemon), patient(daemon) as program:
        assert program.stderr is not None
        # The first line comes after some seconds, and once.
        line = program.stderr.readline()
        assert str(daemon.directory / "npu0.sock") in line
        assert "FLEXNPU_CONNECT_TIMEOUT" in line
        daemon.process.send_signal(signal.SIGCONT)
        output, errors = program.communicate("go\n", timeout=120)
    assert output.splitlines() == ["ready", "asking", "right"]
    assert errors == ""
    daemon.wait_for(lambda status: not status.sessions)


def test_a_new_client_gives_up_after_the_time_it_was_given(daemon: Daemon) -> None:
    with stopped(daemon), patient(daemon, FLEXNPU_CONNECT_TIMEOUT="0.5") as program:
        _, errors = program.communicate("go\n", timeout=120)
        assert program.returncode != 0
        assert "npu0.sock has opened no session within 0.5 s: it is busy or stopped" in errors
        assert "is stopping" not in errors
    # What it asked for has nobody to go to.
    daemon.wait_for(lambda status: not status.sessions, timeout=20)


def test_a_daemon_that_is_killed_while_stopped_is_an_error_at_once(daemon: Daemon) -> None:
    with patient(daemon) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        daemon.process.send_signal(signal.SIGSTOP)
        program.stdin.write("go\n")
        program.stdin.flush()
        assert program.stdout.readline() == "asking\n"
        daemon.process.kill()
        output, _ = program.communicate(timeout=60)
    assert "is gone" in output


def test_the_library_outlives_its_unloading(daemon: Daemon) -> None:
    assert daemon.run("unloads.py") == "over [0, 0]\n"


@pytest.mark.parametrize("value", ["soon", "nan", "inf", "-1", "0"])
def test_a_time_that_is_none_is_refused_by_name(daemon: Daemon, value: str) -> None:
    result = subprocess.run(
        [*daemon.command("patient.py")],
        env=daemon.environment | {"FLEXNPU_CONNECT_TIMEOUT": value},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode != 0
    assert f"FLEXNPU_CONNECT_TIMEOUT is '{value}'" in result.stderr
