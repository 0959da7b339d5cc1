from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import mockset
import pytest

from probes.host import finder as finding
from probes.host.finder import Changes, Finder
from probes.host.process_events import ProcessEvents
from probes.host.selection import Selection, SelectionError, cgroups_of, containers_of
from probes.steps.tracer import uses_npu
from tests.common.exit_thread import wait_for_zombie

ROOT = Path(__file__).resolve().parents[2]
ALL = Selection(everything=True)
SOURCES = pytest.mark.parametrize("source", [ProcessEvents, None], ids=["events", "scanning"])
ID = "0123456789abcdef" * 4


def wait(finder: Finder, attached: Mapping[int, int], seconds: float = 120.0) -> Changes:
    """The first changes."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        changes = finder.poll(attached)
        if changes.appeared or changes.ended:
            return changes
        time.sleep(0.01)
    return Changes()


def appears(finder: Finder, pid: int, attached: dict[int, int]) -> bool:
    """Whether `pid` does; what else appears (another test's) is passed over."""
    while True:
        changes = wait(finder, attached)
        if pid in changes.appeared:
            return True
        if not changes.appeared:
            return False
        attached |= dict.fromkeys(changes.appeared, 0)


@SOURCES
def test_programs_that_load_the_library_late_are_found(
    mock_driver: Path, source: type[ProcessEvents] | None
) -> None:
    library = mock_driver.parent / "libacl_rt.so"
    code = f"import ctypes, time; input(); ctypes.CDLL({str(library)!r}); print('ok', flush=True); input()"
    with Finder(ALL, uses_npu, source=source) as finder:
        assert (finder.why_scanning is None) == (source is not None)
        attached = dict.fromkeys(finder.poll({}).appeared, 0)
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            begun = time.monotonic()
            while time.monotonic() < begun + 0.5:
                assert child.pid not in finder.poll(attached).appeared
                time.sleep(0.01)
            child.stdin.write("\n")
            assert child.stdout.readline() == "ok\n"
            assert appears(finder, child.pid, attached)
            child.stdin.write("\n")
            child.stdin.close()


FORKING = """
import ctypes, os, sys
ctypes.CDLL(sys.argv[1])
print("ok", flush=True)
sys.stdin.readline()
child = os.fork()
if child:
    print(child, flush=True)
else:
    open("/proc/self/comm", "w").write("forked-one")
sys.stdin.readline()
"""


@SOURCES
def test_a_forked_child_inherits_and_is_found(mock_driver: Path, source: type[ProcessEvents] | None) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", FORKING, str(mock_driver.parent / "libacl_rt.so")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    with parent:
        assert parent.stdout.readline() == "ok\n"
        with Finder(Selection(comms=("forked*",)), uses_npu, source=source) as finder:
            finder.poll({})
            parent.stdin.write("\n")
            parent.stdin.flush()
            child = int(parent.stdout.readline())
            assert wait(finder, {parent.pid: 0}).appeared == (child,)
        parent.stdin.close()


def test_an_end_and_another_program_are_noticed_without_a_scan(
    mock_driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "SCAN_S", 3600.0)  # so that only the kernel can have said it
    with Finder(Selection(pids=(1,)), uses_npu) as finder:
        with mockset.Driver(mock_driver) as driver:
            since = time.monotonic_ns()
            assert finder.poll({driver.pid: since}) == Changes()  # it began before it was attached
        assert wait(finder, {driver.pid: since}).ended == (driver.pid,)
        shell = subprocess.Popen(["sh", "-c", "read x; exec sleep 20"], stdin=subprocess.PIPE)
        try:
            assert shell.stdin is not None
            time.sleep(0.1)
            since = time.monotonic_ns()
            assert finder.poll({shell.pid: since}) == Changes()
            shell.stdin.write(b"\n")
            shell.stdin.close()
            assert wait(finder, {shell.pid: since}).ended == (shell.pid,)
        finally:
            shell.kill()
            shell.wait()


@SOURCES
def test_a_process_is_found_whose_first_thread_has_ended(
    mock_driver: Path, source: type[ProcessEvents] | None
) -> None:
    """Also when that happened while it was watched, and it loads the library later."""
    code = (
        "import ctypes, os, sys, threading; from tests.common import exit_thread\n"
        "def stay():\n"
        f"    sys.stdin.readline(); library = ctypes.CDLL({str(mock_driver.parent / 'libacl_rt.so')!r})\n"
        "    sys.stdin.readline(); os._exit(0)\n"
        "threading.Thread(target=stay).start(); exit_thread.leave_process_to_others()\n"
    )
    with Finder(ALL, uses_npu, source=source) as finder:
        attached = dict.fromkeys(finder.poll({}).appeared, 0)
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, text=True, cwd=ROOT
        ) as child:
            assert child.stdin is not None
            wait_for_zombie(child.pid)
            assert child.pid not in finder.poll(attached).appeared
            child.stdin.write("\n")
            child.stdin.flush()
            assert appears(finder, child.pid, attached)
            child.stdin.write("\n")
            child.stdin.close()


def test_criteria_of_one_kind_are_joined_and_of_different_kinds_intersected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = os.getpid()
    name = Path("/proc/self/comm").read_text().strip()
    monkeypatch.setattr("probes.host.selection.cgroups_of", lambda pid: (f"/kubepods/pod1/cri-{ID}.scope",))
    monkeypatch.setattr("probes.host.selection._mounts", lambda: ("/sys/fs/cgroup",))
    for selection, meant in (
        (Selection(), True),
        (Selection(pids=(own,)), True),
        (Selection(pids=(own + 1,)), False),
        (Selection(pids=(own + 1,), everything=True), True),
        (Selection(comms=("nobody", name)), True),
        (Selection(comms=(name[:2] + "*",)), True),
        (Selection(comms=("nobody",)), False),
        (Selection(pids=(own,), comms=("nobody",)), True),
        (Selection(cgroups=("/kubepods",)), True),
        (Selection(cgroups=("/sys/fs/cgroup/kubepods/pod1/",)), True),
        (Selection(cgroups=("/kube",)), False),
        (Selection(containers=(ID[:12],)), True),
        (Selection(containers=("ffff",)), False),
        (Selection(containers=(ID[:12],), comms=("nobody",)), False),
    ):
        assert selection.matches(own) == meant, selection


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group named as Docker names that of a container."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    roots = [Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"]
    if not roots or not os.access(roots[0], os.W_OK):
        pytest.skip("no control groups (version 2) that may be made")
    made = roots[0] / f"docker-{os.getpid():064x}.scope"
    made.mkdir()
    yield made
    made.rmdir()


def test_processes_of_a_control_group_and_of_a_container_are_found(mock_driver: Path, group: Path) -> None:
    for selection in (Selection(cgroups=(str(group),)), Selection(containers=(f"{os.getpid():064x}",))):
        with mockset.Driver(mock_driver), mockset.Driver(mock_driver) as inside:
            (group / "cgroup.procs").write_text(str(inside.pid))
            selection.check([inside.pid])
            with Finder(selection, uses_npu) as finder:
                assert wait(finder, {}).appeared == (inside.pid,)


def test_what_can_match_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probes.host.selection.cgroups_of", lambda pid: (f"/docker/{ID[:-1]}{pid % 10}",))
    for selection, complaint in (
        (Selection(containers=("web",)), "'web' is no container id"),
        (Selection(containers=("ffffff",)), "begins with ffffff"),
        (Selection(containers=(ID[:12],)), "give more of it"),
        (Selection(cgroups=("/no/such",)), "no control group /no/such"),
    ):
        with pytest.raises(SelectionError, match=complaint):
            selection.check([1, 2])
    Selection(containers=(ID[:-1] + "2",), cgroups=("/docker",)).check([1, 2])


def test_containers_of_engines() -> None:
    for path in (
        f"/docker/{ID}",
        f"/system.slice/docker-{ID}.scope",
        f"/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope",
        f"/machine.slice/libpod-{ID}.scope/container",
    ):
        assert containers_of([path]) == {ID}
    assert containers_of(["/user.slice/user-1000.slice"]) == set()
    assert cgroups_of(os.getpid())
    assert cgroups_of(1 << 22) == ()
