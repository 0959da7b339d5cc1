"""Tracing with no more rights than it needs, tried as another user with ambient capabilities."""

from __future__ import annotations

import os
from pathlib import Path

import mockset
import nobody
import pytest

from probes.placing import capabilities

ebpf = pytest.mark.ebpf

NEEDED = ("bpf", "perfmon", "sys_ptrace")


ASK = """
from probes.placing import capabilities
for one in capabilities.missing(multi={multi}): print(one.capability)
"""


@pytest.mark.parametrize(
    ("names", "multi", "lacking"),
    [
        (NEEDED, True, []),
        (NEEDED, False, ["CAP_SYS_ADMIN"]),
        (("sys_admin", "sys_ptrace"), False, []),
        (("perfmon", "sys_ptrace"), True, ["CAP_BPF"]),
        (("bpf", "sys_ptrace"), True, ["CAP_PERFMON"]),
        (("bpf", "perfmon"), True, ["CAP_SYS_PTRACE"]),
        ((), True, ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE"]),
    ],
)
def test_what_is_missing_is_named(names: tuple[str, ...], multi: bool, lacking: list[str]) -> None:
    if Path("/proc/sys/kernel/unprivileged_bpf_disabled").read_text().strip() == "0":
        pytest.skip("this kernel loads some programs for everybody")
    result = nobody.python(["-c", ASK.format(multi=multi)], names)
    assert result.stdout.split() == lacking, result.stderr


def test_root_lacks_nothing() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    assert capabilities.missing() == []
    assert {"CAP_BPF", "CAP_SYS_ADMIN"} <= capabilities.held()


@ebpf
def test_attaching_with_what_is_said_to_be_enough(driver: mockset.Driver) -> None:
    attach = f"""
from probes.steps.tracer import Tracer
with Tracer(print) as tracer:
    print(len(tracer.attach({driver.pid}).placed))
"""
    names = set(NEEDED)
    if not capabilities.uprobe_multi():
        names.add("sys_admin")
    # The libraries are in a folder that only root may enter.
    result = nobody.python(["-c", attach], [*names, "dac_read_search"])
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 10


@ebpf
def test_what_is_missing_is_told_before_anything_is_tried(driver: mockset.Driver) -> None:
    result = nobody.python(["-c", "from probes.steps.tracer import check; check()"], ["bpf", "perfmon"])
    assert result.returncode != 0
    assert "CAP_SYS_PTRACE is missing, needed to read the memory maps of other users" in result.stderr
    assert "Type: sudo flexnpu-probe" in result.stderr
