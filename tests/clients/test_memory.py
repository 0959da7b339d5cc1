"""Device memory: quotas, virtual memory, memory shared between processes; directly and interposed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Machine

from tests.containers import CONTAINER

MIB = 1 << 20
QUOTA = 256 * MIB
PROGRAMS = Path(__file__).parent / "programs"
with_quota = pytest.mark.parametrize("daemon", [("--quota", "256MiB")], indirect=True)


@with_quota
def test_a_program_sees_its_quota_as_its_device(daemon: Any) -> None:
    saw = json.loads(daemon.run("quota.py"))
    assert saw["at the start"] == saw["huge"] == saw["at the end"] == [QUOTA, QUOTA]
    assert saw["DDR"] == [0, 0]
    assert saw["pieces"] == QUOTA // (8 * MIB)
    assert saw["when full"] == [0, QUOTA]
    assert saw["after a free"] == [8 * MIB, QUOTA]
    assert saw["device's size"] == QUOTA
    code, message = saw["refused with"]
    assert code == 207001
    for part in (f"quota of {QUOTA}", f"{8 * MIB} bytes asked", f"{QUOTA} of"):
        assert part in message
    assert daemon.status().counters["quota_refusals"] == 1


@with_quota
def test_a_program_may_ask_for_less_and_not_for_more(daemon: Any) -> None:
    def run(quota: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("flexnpu")), "run", "--quota", quota, "--"]
        program = [sys.executable, str(PROGRAMS / "quota.py")]
        return subprocess.run(
            command + program, env=daemon.environment, capture_output=True, text=True, timeout=60, check=False
        )

    less = run("64MiB")
    assert json.loads(less.stdout)["at the start"] == [64 * MIB, 64 * MIB], less.stderr
    more = run("1GiB")
    assert more.returncode != 0
    assert f"a quota of {1 << 30} bytes is more than the {QUOTA}" in more.stderr


@with_quota
def test_status_shows_what_is_used_of_the_quota(daemon: Any) -> None:
    holder = daemon.start("holder.py")
    try:
        holder.stdout.readline()
        (session,) = daemon.status().sessions
        assert (session.memory_bytes, session.memory_quota_bytes) == (32 * MIB, QUOTA)
        shown = subprocess.run(
            [str(Path(sys.executable).with_name("flexnpu")), "status"],
            env=daemon.environment | {"COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert "32 MiB" in shown.stdout
        assert "256 MiB" in shown.stdout
    finally:
        holder.kill()
        holder.communicate()
    # What the dead one held is free again: all of the quota, and of the device, can be had.
    assert json.loads(daemon.run("quota.py"))["pieces"] == QUOTA // (8 * MIB)


@pytest.mark.torch_npu
@with_quota
def test_torch_runs_out_at_the_quota_and_recovers(daemon: Any) -> None:
    saw = json.loads(daemon.run("torch_quota.py"))
    assert saw["total"] == QUOTA
    assert QUOTA - 64 * MIB <= saw["free"] <= QUOTA
    assert "out of memory" in saw["error"]
    assert saw["pieces"] >= 6
    assert saw["free after empty_cache"] >= saw["free"] - 8 * MIB
    assert saw["sum"] == 1000


def test_virtual_memory_is_the_same_directly_and_interposed(daemon: Any, direct: Callable[..., str]) -> None:
    saw = json.loads(direct("virtual_memory.py"))
    assert json.loads(daemon.run("virtual_memory.py")) == saw
    assert saw.pop("granularity") == 2 * MIB
    assert saw.pop("held") == 8 * MIB
    assert saw.pop("left") == 0
    assert saw.pop("at both addresses") == "twice"
    assert saw.pop("by another handle") == "still there"
    assert saw.pop("access") == [3, 0, 0]
    for what in ("for reading only", "of another device", "of the host"):
        assert saw.pop(f"access {what}") == 200001
    right = ("over a border", "filled", "a part")
    assert all(saw.pop(name) for name in right)
    assert set(saw.values()) == {107000, 107017}, saw
    daemon.wait_for(lambda s: not s.sessions)


@pytest.mark.torch_npu
def test_expandable_segments(
    daemon: Any, direct: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTORCH_NPU_ALLOC_CONF", "expandable_segments:True")
    daemon.environment["PYTORCH_NPU_ALLOC_CONF"] = "expandable_segments:True"
    saw = json.loads(direct("torch_expandable.py"))
    assert saw["expandable"]
    assert saw["matmul"]
    assert saw["reserved"]
    assert saw["right"] == [True] * 3
    assert saw["left"] == 0
    assert saw["too much"] == "refused"
    assert json.loads(daemon.run("torch_expandable.py")) == saw


@pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces")
@pytest.mark.parametrize(
    ("daemon_in", "programs_in"),
    [((), CONTAINER), (CONTAINER, ()), (CONTAINER, CONTAINER)],
    ids=["programs-in-containers", "daemon-in-a-container", "each-in-its-own"],
)
def test_memory_is_shared_between_containers(
    daemon_in: tuple[str, ...], programs_in: tuple[str, ...], tmp_path: Path
) -> None:
    """A process's number (aclrtDeviceGetBareTgid) means the same to all programs and to the daemon, whatever
    PID namespaces lie between them."""
    machine = Machine(tmp_path, 1)
    saw = json.loads(machine.direct("ipc.py", "exporter", "0"))
    with machine.daemons(*daemon_in) as (daemon,):
        assert json.loads(machine.interposed("ipc.py", "exporter", "0", prefix=programs_in)) == saw
        daemon.wait_for(lambda s: not s.sessions)


@pytest.mark.parametrize("device", [0, 1])
def test_shared_memory_is_the_same_directly_and_interposed(device: int, tmp_path: Path) -> None:
    machine = Machine(tmp_path, 2)
    saw = json.loads(machine.direct("ipc.py", "exporter", str(device)))
    with machine.daemons() as (*_, last):
        assert json.loads(machine.interposed("ipc.py", "exporter", str(device))) == saw
        last.wait_for(lambda s: not s.sessions)
    assert saw.pop("without a device") == [[107002]] * 4
    right = {
        "key's digits": 64,
        "read": "hello",
        "written there": "world",
        "filled there": "aaaaa",
        "same address": True,
        "imported once more": "aaaaa",
        "after the free": "aaaaa",
        "and after allocations": "aaaaa",
        "a part": "apart",
        "through the handle": "solid",
        "back": "fluid",
        "after its free": "fluid",
        "freed": None,
        "waited there": True,
        "after an importer's death": "alive",
        "after the owner's death": "testament",
    }
    for name, value in right.items():
        assert saw.pop(name) == value, name
    assert len(saw) == 25
    assert all(one == [107000] for one in saw.values()), saw


@pytest.mark.torch_npu
def test_torch_shares_a_tensor_between_processes(daemon: Any, direct: Callable[..., str]) -> None:
    expected = {"there": [1000.0, "npu:0", [1000]], "then": "added", "here": 2000.0}
    assert json.loads(direct("torch_share.py")) == expected
    assert json.loads(daemon.run("torch_share.py")) == expected
