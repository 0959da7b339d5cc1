"""Who is watched: tells of each process what it belongs to, how it is watched, and that it has ended."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping
from typing import Final

from flexnpu.common.processes import comm_of, start_time_of
from probes.feed.events import ProcessState
from probes.host import services
from probes.host.families import ProcessFamilies
from probes.host.listening import Listening, listening_of
from probes.host.services import Service

LOOK_S: Final = 5.0
"""Between looks at names and sockets; a new process is looked at when it is found."""


class Registry:
    """Delivers `ProcessState`s to `on_event`: of a process that is new, that has changed, or that is gone."""

    def __init__(self, on_event: Callable[[ProcessState], None], families: ProcessFamilies) -> None:
        self._on_event = on_event
        self._families = families
        self._told: dict[int, ProcessState] = {}
        self._started: dict[int, int | None] = {}
        """When each of `_told` started: a number may be another process's by now."""
        self._failed: dict[int, int | None] = {}
        """Processes that could not be attached to, each with its start time."""
        self._next_look = 0.0

    def failed(self, pid: int) -> None:
        """`pid` uses an NPU and could not be attached to."""
        self._failed[pid] = start_time_of(pid)
        self._next_look = 0.0

    def poll(self, traced: Mapping[int, int], wired: Collection[int]) -> None:
        """`traced`: probes on each process that is traced. `wired`: those whose sockets are watched."""
        self._failed = {
            pid: started
            for pid, started in self._failed.items()
            if pid not in traced and started is not None and start_time_of(pid) == started
        }
        probes: dict[int, int | None] = {**dict.fromkeys(wired), **dict.fromkeys(self._failed, 0), **traced}
        now = time.monotonic()
        looks = now >= self._next_look
        if looks:
            self._next_look = now + LOOK_S
        for pid in list(self._told):
            if pid not in probes or (looks and start_time_of(pid) not in (None, self._started[pid])):
                self._end(pid)
        wanted = [pid for pid in probes if looks or pid not in self._told]
        names = {pid: self._name_of(pid) for pid in wanted}
        nameless = [pid for pid, name in names.items() if name is None or not services.is_final(name)]
        # An engine's work is its server's, which is above it.
        above = {pid: self._families.ancestors(pid) for pid in nameless}
        # A machine's table of sockets may be long: it is read once, for who is watched there or has no name.
        own = {pid for pid in wanted if pid in wired}.union(nameless)
        asked = own.union(*above.values())
        found = listening_of(asked) if asked else {}
        for pid in nameless:
            ports = {port for one in (pid, *above[pid]) if one in found for port in found[one].ports}
            names[pid] = self._better(names[pid], services.of_ports(ports))
        for pid in wanted:
            sockets = found.get(pid) if pid in own else None
            self._tell(pid, names[pid], probes[pid], pid in wired, sockets)

    def _name_of(self, pid: int) -> Service | None:
        """The service of `pid` as it was told, or else by what needs no sockets."""
        known = self._told.get(pid)
        if known is not None and known.service is not None and known.service_from is not None:
            return Service(known.service, known.service_from)
        return services.of_process(pid)

    @staticmethod
    def _better(known: Service | None, found: Service | None) -> Service | None:
        """What is counted under one name must not move to another, but from one that a restart changes."""
        if known is None or (found is not None and services.is_final(found)):
            return found
        return known

    def _end(self, pid: int) -> None:
        del self._started[pid]
        self._on_event(dataclasses.replace(self._told.pop(pid), t_ns=time.monotonic_ns(), ended=True))

    def _tell(
        self, pid: int, service: Service | None, probes: int | None, wire: bool, sockets: Listening | None
    ) -> None:
        known = self._told.get(pid)
        state = ProcessState(
            t_ns=time.monotonic_ns(),
            pid=pid,
            comm=comm_of(pid) or (known.comm if known else ""),
            service=service.name if service else None,
            service_from=service.source if service else None,
            probes=probes,
            wire=wire,
            listening=None if sockets is None else sockets.sockets,
            connections=None if sockets is None else sockets.connections,
            unread=None if sockets is None else sockets.unread,
        )
        if known is None or dataclasses.replace(known, t_ns=state.t_ns) != state:
            self._told[pid] = state
            if known is None:
                self._started[pid] = start_time_of(pid)
            self._on_event(state)
