"""What a run of the chain has left behind: shared memory, sockets, processes and probes without an owner.

Other runs may be alive on the same machine, so nothing is judged by its name alone: a process counts by the
tag that it inherited, shared memory when no process has it open or mapped, a socket when nobody listens.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterable
from pathlib import Path

from flexnpu.common.processes import folder_of

#: A process started under a run inherits this variable, and is found by its value.
TAG_VARIABLE = "FLEXNPU_RUN_TAG"

_SHM = Path("/dev/shm")
_UPROBE_EVENTS = ("/sys/kernel/tracing/uprobe_events", "/sys/kernel/debug/tracing/uprobe_events")


def _processes() -> Iterable[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdigit())


def tagged_processes(tag: str) -> dict[int, str]:
    """Live processes, other than this one, that inherited ``tag``: pid to command line."""
    wanted = f"{TAG_VARIABLE}={tag}".encode()
    found: dict[int, str] = {}
    for pid in _processes():
        if pid == os.getpid():
            continue
        folder = folder_of(pid)
        try:
            if wanted not in Path(f"{folder}/environ").read_bytes().split(b"\0"):
                continue
            command = Path(f"{folder}/cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        found[pid] = command.decode(errors="replace").strip()
    return found


def _held_shared_memory() -> set[str]:
    held: set[str] = set()
    for pid in _processes():
        folder = folder_of(pid)
        try:
            maps = Path(f"{folder}/maps").read_text(errors="replace")
            held.update(line.split(maxsplit=5)[5] for line in maps.splitlines() if " /dev/shm/" in line)
            for entry in os.scandir(f"{folder}/fd"):
                held.add(os.readlink(entry.path))
        except OSError:
            continue
    return held


def orphaned_shared_memory() -> list[str]:
    """FlexNPU's shared memory that no process has open or mapped (only root sees all processes)."""
    files = sorted(str(path) for path in _SHM.glob("*flexnpu*"))
    if not files:
        return []
    held = _held_shared_memory()
    return [name for name in files if name not in held]


def dead_sockets(directories: Iterable[Path]) -> list[str]:
    """Unix sockets below ``directories`` that nobody listens on."""
    dead: list[str] = []
    for directory in directories:
        for path in sorted(directory.rglob("*")) if directory.is_dir() else ():
            try:
                if not stat.S_ISSOCK(path.lstat().st_mode):
                    continue
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.settimeout(1.0)
                    probe.connect(str(path))
            except ConnectionRefusedError:
                dead.append(str(path))
            except OSError:
                continue
    return dead


def tracefs_probes() -> list[str]:
    """Uprobes registered by name on our libraries (those of perf events end with their process)."""
    for name in _UPROBE_EVENTS:
        try:
            lines = Path(name).read_text().splitlines()
        except OSError:
            continue
        return [line for line in lines if "flexnpu" in line or "libacl_rt" in line]
    return []


def survey(tag: str | None = None, directories: Iterable[Path] = ()) -> dict[str, list[str]]:
    """All of the above by kind; every list is empty when nothing is left."""
    processes = tagged_processes(tag) if tag else {}
    return {
        "processes": [f"{pid} {command}" for pid, command in processes.items()],
        "shared_memory": orphaned_shared_memory(),
        "sockets": dead_sockets(directories),
        "probes": tracefs_probes(),
    }
