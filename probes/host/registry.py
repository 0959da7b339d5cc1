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
        # A machine's table of sockets may be long: it is read for who is watched there, or has no name yet.
        asked = [pid for pid in wanted if pid in wired or not self._named(pid)]
        found = listening_of(asked) if asked else {}
        for pid in wanted:
            self._tell(pid, probes[pid], pid in wired, found.get(pid))

    def _named(self, pid: int) -> bool:
        state = self._told.get(pid)
        return state is not None and state.service is not None

    def _end(self, pid: int) -> None:
        del self._started[pid]
        self._on_event(dataclasses.replace(self._told.pop(pid), t_ns=time.monotonic_ns(), ended=True))

    def _tell(self, pid: int, probes: int | None, wire: bool, sockets: Listening | None) -> None:
        known = self._told.get(pid)
        service = self._service(pid, sockets)
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

    def _service(self, pid: int, sockets: Listening | None) -> Service | None:
        """Once it is known it stays: what is counted under one name must not move to another."""
        known = self._told.get(pid)
        if known is not None and known.service is not None and known.service_from is not None:
            return Service(known.service, known.service_from)
        ports = sockets.ports if sockets is not None else ()
        if not ports:
            # An engine's work is its server's, which is above it.
            above = listening_of(self._families.ancestors(pid))
            ports = next((one.ports for one in above.values() if one.ports), ())
        return services.service_of(pid, ports)
