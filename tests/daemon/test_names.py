"""A program may be named anything: the daemon's status tells of it all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flexnpu.control.client import ControlClient
from tests.cli.test_commands import Daemon, command

pytest.importorskip("flexnpu.daemon._plane", reason="run make build")

PROGRAM = """
import ctypes, sys
libc = ctypes.CDLL(None)
assert libc.prctl(15, b"\\x1b[31m\\xff\\xfe[red]", 0, 0, 0) == 0  # PR_SET_NAME
acl = ctypes.CDLL("libascendcl.so")
assert acl.aclInit(None) == 0 and acl.aclrtSetDevice(0) == 0
assert acl.aclrtMalloc(ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(64), 0) == 0
print("ready", flush=True)
sys.stdin.readline()
"""


def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "run")
    environment = os.environ | {"FLEXNPU_RUN_DIR": str(daemon.run_dir)}
    try:
        with subprocess.Popen(
            command("flexnpu", "run", "--", sys.executable, "-c", PROGRAM),
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as program:
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
            (session,) = ControlClient(daemon.run_dir / "npu0.ctl").status().sessions
            assert session.comm == "\x1b[31m\ufffd\ufffd[red]"
            shown = subprocess.run(
                command("flexnpu", "status"), env=environment, capture_output=True, timeout=60
            )
            program.communicate("\n", timeout=60)
    finally:
        daemon.end()
    assert shown.returncode == 0, shown.stderr
    assert b"\x1b" not in shown.stdout
    assert b"\\x1b[31m" in shown.stdout
