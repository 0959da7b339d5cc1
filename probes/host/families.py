"""Which processes belong to one server.

A server's HTTP front and the process that launches its operators need not be one: vLLM has an API server
above an engine core, SGLang an HTTP server above a scheduler, TGI a router beside its shards. They are
parent and child, or children of one launcher.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

MAX_LEVELS: Final = 4
"""Generations that are looked at upwards."""
MAX_KNOWN: Final = 65_536

_NAMES: Final = (
    "sh bash dash zsh fish busybox systemd init tini dumb-init docker-init supervisord s6-svscan runsvdir",
    "containerd-shim conmon runc crun podman dockerd screen sshd login su sudo kubelet slurmstepd make",
)
STRANGERS: Final = frozenset(name for line in _NAMES for name in line.split())
"""Programs that start anything: their children have nothing to do with one another."""


class _Entry(NamedTuple):
    parent: int
    name: str
    started: str


def _read(pid: int) -> _Entry | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    return _Entry(int(fields[1]), name, fields[19])


def _children(pid: int) -> list[int]:
    """Direct children, of all the process's threads."""
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(word) for word in file.read_text().split()]
        except OSError:
            continue
    return found


class ProcessFamilies:
    """Remembers who descends from whom, beyond the end of a process."""

    def __init__(self) -> None:
        self._known: dict[int, _Entry] = {}

    def _look(self, pid: int) -> _Entry | None:
        now, known = _read(pid), self._known.get(pid)
        if now is None or (known is not None and known.started == now.started):
            # Whose parent has died is given another, which is no relative.
            return known
        self._known[pid] = now
        if len(self._known) > MAX_KNOWN:
            self._known.pop(next(iter(self._known)))
        return now

    def ancestors(self, pid: int) -> list[int]:
        """The parent, its parent and so on, up to `MAX_LEVELS`, without the first process of the machine or
        container and without what starts anything (shells, init systems, container runtimes)."""
        found: list[int] = []
        while len(found) < MAX_LEVELS:
            entry = self._look(pid)
            if entry is None or entry.parent <= 1:
                break
            pid = entry.parent
            parent = self._look(pid)
            if parent is None or parent.name in STRANGERS or parent.name.startswith("tmux"):
                break
            found.append(pid)
        return found

    def closeness(self, front: int, engine: int) -> float:
        """How surely two processes are one server's: 1 for the same or parent and child at any distance,
        0.7 for children of one launcher, 0 for others."""
        if front == engine:
            return 1.0
        above, beneath = self.ancestors(front), self.ancestors(engine)
        if engine in above or front in beneath:
            return 1.0
        return 0.7 if set(above) & set(beneath) else 0.0

    def fronts(self, engine: int) -> list[int]:
        """Processes that may serve HTTP for `engine`: its ancestors, and their other children and its own
        (one generation down)."""
        ancestors = self.ancestors(engine)
        beside = [child for pid in (engine, *ancestors) for child in _children(pid)]
        return [pid for pid in dict.fromkeys((*ancestors, *beside)) if pid not in (engine, os.getpid())]
