"""Many processes under a small limit of open files: what may be raised is, what is left out is said."""

from __future__ import annotations

import contextlib
import re
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import mockset
import pytest

from probes.selftest import run

COMMAND = [*mockset.python(), "-m", "probes.cli", "attach", "--all", "--wire", "--json", "--duration", "1"]
ROOT = Path(__file__).parents[2]
PROCESSES = 40

pytestmark = pytest.mark.ebpf


@pytest.fixture(scope="module")
def processes() -> Iterator[list[int]]:
    with contextlib.ExitStack() as stack:
        programs = [run._Program("vendor") for _ in range(PROCESSES)]
        for program in programs:
            stack.callback(program.stop)
        yield [program.pid for program in programs]


def attach(soft: int, hard: int, pids: list[int]) -> tuple[set[int], set[int], str]:
    """Those of `pids` that were attached to, those that were left out, and all that was said."""
    done = subprocess.run(
        ["prlimit", f"--nofile={soft}:{hard}", *COMMAND],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    attached = {int(pid) for pid in re.findall(r"attached to .*? \((\d+)\)", done.stderr)}
    left_out = {int(pid) for pid in re.findall(r"process (\d+) is left out", done.stderr)}
    return attached & set(pids), left_out & set(pids), done.stderr


def test_the_limit_is_raised_as_far_as_it_goes(processes: list[int]) -> None:
    attached, left_out, said = attach(128, resource.getrlimit(resource.RLIMIT_NOFILE)[1], processes)
    assert attached == set(processes), said
    assert not left_out


def test_what_the_limit_leaves_no_room_for_is_said(processes: list[int]) -> None:
    attached, left_out, said = attach(128, 256, processes)
    assert attached
    assert left_out
    assert attached | left_out == set(processes), said
    assert not attached & left_out
    assert "LimitNOFILE=" in said
    assert "Traceback" not in said
