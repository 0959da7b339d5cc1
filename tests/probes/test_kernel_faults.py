"""Faults of kernels that this one may not have: the trials are tried on what looks like them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from probes.placing import capabilities, kernel_faults
from probes.placing.attach import AttachError
from probes.selftest import run
from probes.steps.tracer import Tracer

pytestmark = pytest.mark.ebpf
_GETPPID = 110


@pytest.fixture
def other_process() -> Iterator[int]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process.pid
        process.kill()


def test_all_calls_of_another_thread_are_counted() -> None:
    if not capabilities.uprobe_multi():
        assert not kernel_faults.hides_threads()
        return
    seen = kernel_faults._seen_from_a_thread(os.getpid())
    assert seen in (0, kernel_faults._CALLS)
    assert kernel_faults.hides_threads() == (seen == 0)


@pytest.mark.skipif(not capabilities.uprobe_multi(), reason="this kernel has no uprobe_multi links")
def test_calls_that_a_link_leaves_out_are_missed(other_process: int) -> None:
    assert kernel_faults._seen_from_a_thread(other_process) == 0


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="returns are no system calls on this machine")
def test_a_process_that_its_filter_ends_does_not_survive() -> None:
    def ask(_code: object) -> None:
        os.getppid()

    assert not kernel_faults._survives(_GETPPID, ask)
    assert kernel_faults._survives(_GETPPID)  # the kernel's own way to return is another call
    assert isinstance(kernel_faults.ends_confined_programs(), bool)


def test_a_filter_is_seen() -> None:
    code = (
        "from probes.placing import kernel_faults as k; import os\n"
        "before = k.is_confined(os.getpid()); k._confine(9999); print(before, k.is_confined(os.getpid()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_a_confined_process_is_refused_where_it_would_end(monkeypatch: pytest.MonkeyPatch) -> None:
    program = run._Program("vendor")
    try:
        monkeypatch.setattr(kernel_faults, "is_confined", lambda pid: pid == program.pid)
        monkeypatch.setattr(kernel_faults, "ends_confined_programs", lambda: True)
        with Tracer(lambda _event: None, budget_percent=None) as tracer:
            with pytest.raises(AttachError, match=f"process {program.pid} .* is under seccomp"):
                tracer.attach(program.pid)
            assert not tracer.targets
    finally:
        program.stop()


def test_probes_are_placed_the_other_way_where_threads_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_faults, "hides_threads", lambda: True)
    monkeypatch.setattr(kernel_faults.attach, "supported", lambda: True)
    assert not kernel_faults.links_work()
    monkeypatch.setattr(capabilities, "held", lambda: frozenset({"CAP_BPF", "CAP_PERFMON"}))
    assert kernel_faults.links_work() == capabilities.uprobe_multi()
