"""Which processes the user means: `--pid`, `--comm`, `--cgroup`, `--container`, `--all`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

_CONTAINER = re.compile(r"[0-9a-f]{32,64}")
_MIN_ID = 4


class SelectionError(ValueError):
    """A selection that can match nothing; the message names the part at fault."""


def cgroups_of(pid: int) -> tuple[str, ...]:
    """The paths of the control groups of `pid`, one a hierarchy; empty when it is gone."""
    try:
        text = Path(f"/proc/{pid}/cgroup").read_text(errors="replace")
    except OSError:
        return ()
    return tuple(line.split(":", 2)[2] for line in text.splitlines() if line.count(":") >= 2)


def containers_of(cgroups: Sequence[str]) -> set[str]:
    """Ids of containers in the paths of control groups, as Docker, containerd, CRI-O and Podman put them
    there.

    >>> sorted(containers_of(["/system.slice/docker-" + "ab" * 32 + ".scope"]))[0][:8]
    'abababab'
    """
    return {found for path in cgroups for part in path.split("/") for found in _CONTAINER.findall(part)}


def container_of(cgroup: str) -> str | None:
    """The id of the innermost container in a control group's path: containers may stand in containers."""
    return next(reversed(_CONTAINER.findall(cgroup)), None)


@dataclass(frozen=True)
class Selection:
    """Processes that `matches`. Within one kind of criterion any may fit; of different kinds, all must.

    `pids` are meant whatever else is given. Without `pids` and any criterion, every process is meant.
    """

    pids: tuple[int, ...] = ()
    comms: tuple[str, ...] = ()
    cgroups: tuple[str, ...] = ()
    containers: tuple[str, ...] = ()
    everything: bool = False

    @property
    def criteria(self) -> bool:
        """Whether processes are chosen by what they are, and not only by id."""
        return bool(self.comms or self.cgroups or self.containers)

    @property
    def follows(self) -> bool:
        """Whether processes that start later are meant too."""
        return self.everything or self.criteria

    def check(self, pids: Sequence[int]) -> None:
        """Raise `SelectionError` for a control group or container that does not exist; `pids`: all
        processes."""
        for path in self.cgroups:
            name = _relative(path)
            exists = any(Path(mount + name).is_dir() for mount in _mounts())
            if not exists and not any(_inside(group, name) for pid in pids for group in cgroups_of(pid)):
                raise SelectionError(
                    f"no control group {path}: give its folder in /sys/fs/cgroup, or its path as in "
                    "/proc/PID/cgroup (systemd-cgls lists them)"
                )
        for wanted in self.containers:
            if len(wanted) < _MIN_ID or not re.fullmatch("[0-9a-f]+", wanted):
                raise SelectionError(
                    f"{wanted!r} is no container id: give {_MIN_ID} or more of its hexadecimal digits, as "
                    "`docker ps` shows them (a name is known to the container engine only)"
                )
            ids = {found for pid in pids for found in containers_of(cgroups_of(pid))}
            fitting = sorted(one for one in ids if one.startswith(wanted))
            if not fitting:
                raise SelectionError(f"no process is in a container whose id begins with {wanted}")
            if len(fitting) > 1:
                raise SelectionError(f"{wanted} begins the ids of {len(fitting)} containers: give more of it")

    def matches(self, pid: int) -> bool:
        """Whether `pid`, by its present name and control groups, is meant."""
        if pid in self.pids:
            return True
        if not self.follows:
            return not self.pids
        if self.comms and not _has_name(pid, self.comms):
            return False
        if self.cgroups or self.containers:
            groups = cgroups_of(pid)
            if self.cgroups and not any(_inside(g, _relative(c)) for g in groups for c in self.cgroups):
                return False
            if self.containers:
                ids = containers_of(groups)
                return any(one.startswith(wanted) for one in ids for wanted in self.containers)
        return True


def _has_name(pid: int, patterns: Sequence[str]) -> bool:
    try:
        name = Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return False
    return any(fnmatchcase(name, pattern) for pattern in patterns)


@cache
def _mounts() -> tuple[str, ...]:
    """Where hierarchies of control groups are mounted, the longest path first: one, or with version 1 one a
    controller."""
    try:
        text = Path("/proc/self/mounts").read_text(errors="replace")
    except OSError:
        return ("/sys/fs/cgroup",)
    fields = [line.split() for line in text.splitlines()]
    found = {field[1] for field in fields if len(field) > 2 and field[2] in ("cgroup", "cgroup2")}
    return tuple(sorted(found, key=len, reverse=True))


def _relative(path: str) -> str:
    """A control group as the kernel names it: from the root of its hierarchy."""
    for mount in _mounts():
        if path == mount or path.startswith(mount + "/"):
            path = path.removeprefix(mount)
            break
    return "/" + path.strip("/")


def _inside(group: str, wanted: str) -> bool:
    return wanted == "/" or group == wanted or group.startswith(wanted + "/")
