"""Mistakes that can be told before anything is loaded are told before anything is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from probes.feed.socket import FeedServer
from tests.console.programs import PROGRAMS, commands

HEAVY = ("bcc", "capstone", "elftools", "pyroute2", "rich", "probes.steps.tracer", "probes.placing.attach")

MAIN = """
import importlib, json, sys
module, attribute = sys.argv[1].split(":")
try:
    getattr(importlib.import_module(module), attribute).main(sys.argv[2:])
except SystemExit as ending:
    print(json.dumps([ending.code, sorted(sys.modules)]), file=sys.stderr)
"""


def run(program: str, *words: str | Path, **options: object) -> tuple[int, str, set[str]]:
    """Exit status, standard error and the modules that were imported."""
    done = subprocess.run(
        [sys.executable, "-c", MAIN, PROGRAMS[program], *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
        **options,  # type: ignore[call-overload]
    )
    *told, last = done.stderr.splitlines()
    status, modules = json.loads(last)
    return status or 0, "\n".join(told), set(modules)


def refused_early(*words: str | Path, **options: object) -> str:
    status, told, modules = run("flexnpu-probe", *words, **options)
    assert status == 1, told
    assert told.startswith("flexnpu-probe: ")
    assert not modules & set(HEAVY)
    return told


@pytest.mark.parametrize("command", ["attach", "hist", "trace -o /dev/null"])
def test_no_such_process(command: str) -> None:
    assert refused_early(*command.split(), "--pid", "999999") == "flexnpu-probe: no process 999999"


def test_a_thread_names_its_process() -> None:
    ready, end = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: (ready.set(), end.wait(60)))
    thread.start()
    ready.wait(60)
    try:
        told = refused_early("attach", "--pid", str(thread.native_id))
    finally:
        end.set()
        thread.join()
    assert f"is a thread of process {os.getpid()}: give --pid {os.getpid()}" in told


def test_a_process_that_has_ended() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    try:
        assert "has ended" in refused_early("attach", "--pid", str(child))
    finally:
        os.waitpid(child, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives root up")
def test_a_process_of_another_user() -> None:
    told = refused_early("attach", "--pid", str(os.getpid()), user=65534, group=65534, extra_groups=[])
    assert f"may not read the memory map of process {os.getpid()}" in told
    assert "sudo" in told


def test_control_groups_and_containers() -> None:
    assert "no control group /no/such/group" in refused_early("attach", "--cgroup", "/no/such/group")
    assert "is no container id" in refused_early("attach", "--container", "my-container")
    assert "no process is in a container" in refused_early("attach", "--container", "f00f00f00f00")


def test_where_to_write(tmp_path: Path) -> None:
    assert "there is no folder" in refused_early("trace", "-o", tmp_path / "missing" / "run.zst")
    assert "is no folder" in refused_early("attach", "--feed-socket", "/dev/null/probe.sock")
    assert "no group 'none-has-it'" in refused_early("attach", "--feed", "--feed-group", "none-has-it")
    path = tmp_path / "probe.sock"
    with FeedServer(path):
        assert f"another tracer serves {path}" in refused_early("attach", "--feed-socket", path)


def test_no_metrics_page() -> None:
    assert "is no address of a metrics page" in refused_early("attach", "--engine-metrics", "gopher://x")


HELP = [" ".join(path) for path, _ in commands()]


@pytest.mark.parametrize("command", [*PROGRAMS, *(one for one in HELP if "bench" not in one)])
def test_help_loads_little(command: str) -> None:
    program, *words = command.split()
    status, told, modules = run(program, *words, "--help")
    assert (status, told) == (0, "")
    assert not modules & {"bcc", "pyroute2", "capstone", "probes.steps.tracer"}
