"""The client's library as a guest in the program's house: descriptors, visible devices, start scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PROGRAMS, Machine

from flexnpu.client import environment

HOLDER = PROGRAMS / "holder.py"


@pytest.mark.parametrize("how", ["direct", "interposed"])
def test_a_program_without_standard_descriptors(
    daemon: Any, direct: Callable[..., str], tmp_path: Path, how: str
) -> None:
    """What it prints must not reach memory or messages of ours."""
    found = tmp_path / "found"
    run = direct if how == "direct" else daemon.run
    run("closed.py", str(found))
    assert json.loads(found.read_text()) == {
        "printed": ["Bad file descriptor"] * 3,
        "pinned": True,
        "device": "device memory",
    }


@pytest.mark.parametrize(
    ("value", "seen"),
    [("1", [1]), ("2,0", [2, 0]), (" 0 , 2", [0, 2]), ("1,7,0", [1]), ("0,0,1", [0]), ("2,x", [2])],
)
def test_visible_devices(tmp_path: Path, value: str, seen: list[int]) -> None:
    machine = Machine(tmp_path, 3, {"ASCEND_RT_VISIBLE_DEVICES": value})
    saw = json.loads(machine.direct("visible.py"))
    assert saw.pop("why")
    assert saw == {"count": len(seen), "numbers": seen, "beyond": 107001}


@pytest.mark.parametrize("value", ["", "-1", "7", "x"])
def test_no_visible_device(tmp_path: Path, daemon: Any, value: str) -> None:
    saw = json.loads(Machine(tmp_path, 2, {"ASCEND_RT_VISIBLE_DEVICES": value}).direct("visible.py"))
    assert saw["count"] == 0
    assert saw["beyond"] == 107001
    daemon.environment["ASCEND_RT_VISIBLE_DEVICES"] = value
    saw = json.loads(daemon.run("visible.py"))
    assert saw["count"] == 0
    assert saw["beyond"] == 107001
    assert f"ASCEND_RT_VISIBLE_DEVICES is '{value}'" in saw["why"]


def test_visible_devices_through_daemons(tmp_path: Path) -> None:
    """Each worker of a launcher has one device of its own, its number 0."""
    machine = Machine(tmp_path, 3)
    with machine.daemons() as daemons:
        command = [*machine.prefix, sys.executable, str(PROGRAMS / "visible.py"), "0,1,2"]
        workers = []
        for value in ("2", "0"):
            variables = machine.environment | {"ASCEND_RT_VISIBLE_DEVICES": value}
            workers.append(
                subprocess.Popen(
                    command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
        told = []
        for worker in workers:
            assert worker.stdout is not None
            told.append(json.loads(worker.stdout.readline()))
        used = [[session.pid for session in daemon.status().sessions] for daemon in daemons]
        for worker in workers:
            worker.communicate(timeout=120)
        assert [one["count"] for one in told] == [1, 1]
        assert [one["beyond"] for one in told] == [107001, 107001]
        assert used == [[workers[1].pid], [], [workers[0].pid]]


def in_a_script(daemon: Any, script: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("flexnpu")), "run", "--", "bash", "-c", script]
    return subprocess.run(
        command, env=daemon.environment, capture_output=True, text=True, timeout=240, check=False
    )


VENDOR = environment.EMULATOR_HOME / "lib"
WHOSE = (
    "import ctypes, os, sys; sys.path.insert(0, sys.argv[1]); from ascendcl import acl, start; start();"
    "ctypes.CDLL('libopapi.so');"
    "print([line.split()[-1] for line in open('/proc/self/maps') if 'emulator/lib' in line],"
    " os.environ['ASCEND_HOME_PATH'])"
)


def test_a_start_script_that_sources_the_vendors_environment(daemon: Any) -> None:
    done = in_a_script(
        daemon,
        f'export LD_LIBRARY_PATH="{VENDOR}:$LD_LIBRARY_PATH" ASCEND_HOME_PATH="{VENDOR}/toolkit"; '
        f'exec {sys.executable} -c "{WHOSE}" {PROGRAMS}',
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"[] {environment.CLIENT_HOME}/lib/toolkit/\n"


def test_a_program_linked_with_the_vendors_libraries(daemon: Any, tmp_path: Path) -> None:
    """Its own path to them comes before LD_LIBRARY_PATH: nothing can take their place, so it is ended."""
    source = tmp_path / "linked.c"
    source.write_text("int aclInit(const char *); int main(void) { return aclInit(0); }")
    program = tmp_path / "linked"
    libraries = ["-Wl,--no-as-needed", f"-L{VENDOR}", "-lascendcl", "-lacl_rt"]
    path = f"-Wl,--disable-new-dtags,-rpath,{VENDOR}"
    subprocess.run(["cc", source, "-o", program, *libraries, path], check=True)
    done = in_a_script(daemon, f"echo before; {program}; echo status $?")
    assert done.stdout == "before\nstatus 126\n"
    assert f"flexnpu: {program} is linked with {VENDOR}/libascendcl.so" in done.stderr
    assert "set_env.sh" in done.stderr


def test_other_programs_are_left_alone(daemon: Any) -> None:
    done = in_a_script(
        daemon, f"export LD_LIBRARY_PATH={VENDOR}:$LD_LIBRARY_PATH; ls / | head -1; echo $LD_PRELOAD"
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.endswith(f"{environment.GUARD}\n")


def test_the_programs_own_preloads_stay() -> None:
    base = {"LD_PRELOAD": f"/a.so {environment.GUARD}:/b.so", "PATH": os.environ["PATH"]}
    ours = environment.environment(environment.CLIENT_HOME, [], base)
    assert ours["LD_PRELOAD"] == f"/a.so:/b.so:{environment.GUARD}"
    direct = environment.environment(environment.EMULATOR_HOME, [], base)
    assert direct["LD_PRELOAD"] == "/a.so:/b.so"
    assert "LD_PRELOAD" not in environment.environment(environment.EMULATOR_HOME, [], {})


@pytest.mark.parametrize("how", ["direct", "interposed"])
def test_a_fork_copies_no_pinned_memory(daemon: Any, direct: Callable[..., str], how: str) -> None:
    run = direct if how == "direct" else daemon.run
    saw = json.loads(run("guest_ways.py", "forks"))
    assert saw["more in a child, MiB"] < 64  # of 1,024 that are pinned
    assert saw["read there"] == ord("p")


@pytest.mark.parametrize("how", ["direct", "interposed"])
def test_spawning_beside_launches(daemon: Any, direct: Callable[..., str], how: str) -> None:
    run = direct if how == "direct" else daemon.run
    assert json.loads(run("guest_ways.py", "spawns")) == {"ends": [0], "memory": "aaaa"}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the filter's numbers are those of x86-64")
def test_the_client_needs_no_call_that_containers_forbid(daemon: Any) -> None:
    assert json.loads(daemon.run("guest_ways.py", "confined")) == {"told": ["hello"] * 3}
