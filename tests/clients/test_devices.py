"""Programs on several devices, of several processes and of many threads: directly and interposed alike."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import Machine

THREADS, LAUNCHES = 64, 20


def test_two_devices(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 2)
    saw = json.loads(machine.direct("two_devices.py"))
    with machine.daemons() as daemons:
        assert json.loads(machine.interposed("two_devices.py")) == saw
        for daemon in daemons:
            status = daemon.wait_for(lambda s: not s.sessions)
            assert status.counters["copies"] > 0
    assert set(saw.pop("the other's stream").values()) == {107003}
    assert set(saw.pop("without a device").values()) == {107002}
    assert saw == {
        "the other's event": {"aclrtRecordEvent": 107003, "aclrtResetEvent": 107003},
        "waits for it": 0,
        "devices": 2,
        "device": 1,
        "handles differ": True,
        "across": True,
        "and back": True,
        "after the other's event": True,
        "another thread": [107002, 0],
        "not this one's": 1,
        "its work": "bbbb",
        "no such device": 107001,
        "pinned": "bbbb",
        "after the other's reset": "bbbb",
        "anew": "again",
    }


def test_children_of_fork_and_of_exec(daemon: Any, direct: Callable[..., str]) -> None:
    saw = json.loads(direct("forks.py"))
    through = json.loads(daemon.run("forks.py"))
    daemon.wait_for(lambda s: not s.sessions)
    assert through == saw
    assert saw == {
        "before aclInit": 0,
        "after aclInit": 0,
        "the parent's memory": "parent",
        "exec inherits": [],
        "forked amid threads": [0] * 3,
        "wrong": [],
        "the parent's memory at the end": "parent",
    }


def test_pinned_memory_in_a_child_is_the_childs_own(daemon: Any, direct: Callable[..., str]) -> None:
    saw = json.loads(direct("pinned_fork.py"))
    through = json.loads(daemon.run("pinned_fork.py"))
    assert through == saw
    child = {"small": ["pp", "cc", 107000], "large": ["pp", "cc", 107000], "beside the grandchild": "cc"}
    assert saw == {
        "child": child,
        "parent": ["pp", "pp"],
        "copied": True,
        "child after the reset": child,
        "parent after the reset": ["pp", "pp"],
        "freed": [0, 0],
        "descriptors": 0,
    }


def test_setting_and_resetting_the_device_keeps_nothing(daemon: Any, direct: Callable[..., str]) -> None:
    through = json.loads(daemon.run("cycles.py"))
    assert through == {"descriptors": 0, "mappings": 0, "right": 120, "host functions": 120}
    assert json.loads(direct("cycles.py")) == through
    daemon.wait_for(lambda s: not s.sessions)


def test_many_threads_and_their_rings(daemon: Any, direct: Callable[..., str]) -> None:
    process = subprocess.Popen(
        daemon.command("many_threads.py"),
        env=daemon.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    rings = []
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(2):
            assert process.stdout.readline() == "over\n"
            (session,) = daemon.status().sessions
            rings.append(session.rings)
            process.stdin.write("\n")
            process.stdin.flush()
        saw = json.loads(process.stdout.readline())
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
    assert saw == [[THREADS, [LAUNCHES], [THREADS * LAUNCHES]]] * 2
    # Those of the threads that ended served the threads of the second wave.
    assert rings[1] <= THREADS + 1
    assert json.loads(direct("many_threads.py").splitlines()[-1]) == saw
