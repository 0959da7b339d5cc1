"""Attached processes, and what is known of their lanes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from probes.placing.attach import Probe
from probes.placing.budget import Account
from probes.placing.groups import Key, Placed
from probes.placing.plan import CLIENT, SITES, Plan, Role
from probes.steps.layouts import Learned
from probes.steps.operator_mix import Operators
from probes.steps.waiting import Waiting
from probes.steps.windows import MAX_LANES, Window


@dataclass
class Target:
    """An attached process."""

    pid: int
    comm: str
    start_time: int
    placed: list[Placed] = field(default_factory=list)
    maps: frozenset[str] = frozenset()
    layout: Learned | None = None
    """Where its objects keep what is read of them; None for FlexNPU's client, which tells itself."""
    account: Account = field(default_factory=Account)
    window: Window | None = None
    """The last window of detail."""
    windows: int = 0
    attached: int = field(default_factory=time.monotonic_ns)
    """CLOCK_MONOTONIC, ns."""
    mix_since: int = field(default_factory=time.monotonic_ns)
    """Since when operators are counted by name, in a client that tells of them."""
    keys: set[Key] = field(default_factory=set)
    """What is placed."""
    probes: list[tuple[Role, Probe]] = field(default_factory=list)
    next_window: float = 0.0
    """When its next window of detail is due, of time.monotonic."""
    waiting: Waiting | None = None
    """The table of steps in the memory of FlexNPU's client."""
    operators: Operators | None = None
    mixes: int = 0
    """Windows since its operators were known."""

    @property
    def missing(self) -> list[str]:
        """Symbols of `SITES` that no mapped library defines (yet); most programs define only some."""
        have = {placed.symbol for placed in self.placed}
        if CLIENT in have:
            return []
        needed = (Role.BOUNDARY, Role.SHAPE, Role.COPY, Role.ATTENTION)
        return [site.symbol for site in SITES if site.role in needed and site.symbol not in have]

    @property
    def tells_operators(self) -> bool:
        """Whether FlexNPU's client tells of each operator."""
        return any(p.role is Role.OPERATOR for p in self.placed)

    @property
    def kind(self) -> str:
        """Whose libraries they are: ``client`` (FlexNPU's) or ``cann``."""
        return "client" if any(p.symbol == CLIENT for p in self.placed) else "cann"

    def is_counted(self, plan: Plan) -> bool:
        """Whether every launch is probed, all the time."""
        return plan == "detail" and "launches" not in self.account.without


@dataclass
class Lane:
    """What was delivered and published of a stream's steps."""

    delivered: int = -1
    """Sequence number of the last step that the kernel side closed."""
    published: int = -1
    """Sequence number of the last step that was published before the kernel side closed it."""
    published_launches: int = 0
    published_graphs: int = 0
    usual: int = 0
    """Launches of the last model step of FlexNPU's client."""


class Lanes(dict[tuple[int, int], Lane]):
    """Lanes by (process, stream), each made when it is first asked for. Of more than `MAX_LANES` those that
    were asked for last stay: a program may make a stream for each request."""

    def __getitem__(self, key: tuple[int, int]) -> Lane:
        lane = self.pop(key, None)
        if lane is None:
            lane = Lane()
            if len(self) >= MAX_LANES:
                del self[next(iter(self))]
        self[key] = lane  # behind all others
        return lane


DETACHED_S = 60.0
"""How long records of a process may still come after it was detached from."""


class Lately:
    """Numbers of processes, each for `DETACHED_S` after it was added."""

    def __init__(self) -> None:
        self._added: dict[int, float] = {}

    def __contains__(self, pid: object) -> bool:
        return pid in self._added

    def __len__(self) -> int:
        return len(self._added)

    def add(self, pid: int) -> None:
        """Add a process, and drop those that were added too long ago."""
        now = time.monotonic()
        for known, at in list(self._added.items()):
            if now - at <= DETACHED_S:
                break  # they are in the order of their times
            del self._added[known]
        self._added.pop(pid, None)
        self._added[pid] = now

    def discard(self, pid: int) -> None:
        """Drop a process, if it is there."""
        self._added.pop(pid, None)


@dataclass
class Targets:
    """All attached processes with their lanes, and those that were detached lately."""

    by_pid: dict[int, Target] = field(default_factory=dict)
    lanes: Lanes = field(default_factory=Lanes)
    detached: Lately = field(default_factory=Lately)

    def forget_lanes(self, pid: int) -> None:
        """Forget all lanes of a process."""
        for key in [key for key in self.lanes if key[0] == pid]:
            del self.lanes[key]
