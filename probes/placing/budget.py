"""What probes cost, and what to do without when they cost too much.

A hit's cost is the kernel's way into a program and out again, calibrated at start on code of our own, and
the program's own time, which the kernel measures now and then. Hits are counted in the kernel. Their product,
divided by the time of the steps in which they happened, is the overhead. Over the budget, the dearest
evidence that can be done without goes first; it comes back when there is room.
"""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from probes.placing import attach, cost
from probes.placing.attach import AttachError, Point
from probes.placing.plan import HIT_OF, RETURN_HIT_OF, Role
from probes.placing.sites import HitCost

Evidence = Literal["launches", "windows", "attention", "copies", "shapes"]

ORDER: tuple[Evidence, ...] = ("launches", "windows", "attention", "copies", "shapes")
"""What is done without, in this order. Without ``launches`` a process has the default plan; without
``windows`` launches a step and the mix are not known; without ``shapes`` steps are cut and not classified."""

ROLES: Mapping[Evidence, tuple[Role, ...]] = {
    "launches": (Role.COUNT, Role.OPERATOR),
    "windows": (),
    "attention": (Role.ATTENTION,),
    "copies": (Role.COPY,),
    "shapes": (Role.SHAPE, Role.OBJECT),
}

_HITS = 1500
_ROUNDS = 3
_OVER_TICKS = 3
_ROOM_TICKS = 10
_MEASURE_EVERY = 15
_ROOM = 0.7
"""Evidence comes back when it is expected to keep the overhead below this part of the budget."""


@dataclass(frozen=True)
class Costs:
    """Microseconds a hit."""

    emulated: float
    stepped: float
    on_return: float
    """More when the return is probed, too."""

    def of(self, cost: HitCost, *, on_return: bool) -> float:
        """Microseconds of a hit of that cost, on a function's entry or its return."""
        if on_return:
            return self.on_return
        return self.emulated if cost is HitCost.EMULATED else self.stepped


def calibrate(program_fd: int, *, multi: bool) -> Costs:
    """Measure on this machine, within some 50 ms. Raises `AttachError`.

    `program_fd`: a program loaded for uprobe_multi links if `multi`. Probes of the measurement go in the
    background, since each removal takes a grace period.
    """
    machine = platform.machine()
    if machine not in cost.INSTRUCTIONS:
        raise AttachError(f"no code to measure on {machine}")
    codes: list[cost.Code] = []
    probes: list[attach.Probe] = []

    def clean() -> None:
        attach.remove(probes)
        for code in codes:
            code.close()

    def measure(name: str, *, on_return: bool) -> float:
        text, offset = cost.INSTRUCTIONS[machine][name]
        code = cost.Code(machine, text)
        codes.append(code)
        plain = cost.best_of(code, _HITS, _ROUNDS)
        path = f"/proc/self/fd/{code.fd}"
        points = [Point(cost.BODY + offset)]
        for returns in (True, False) if on_return else (False,):
            probes.extend(attach.place(program_fd, path, points, os.getpid(), multi=multi, on_return=returns))
        return max(0.0, cost.best_of(code, _HITS, _ROUNDS) - plain) / 1e3

    try:
        emulated = measure(cost.CHEAP[machine], on_return=False)
        stepped = measure(cost.DEAR[machine], on_return=False)
        both = measure(cost.CHEAP[machine], on_return=True)
        return Costs(emulated, max(emulated, stepped), max(0.0, both - emulated))
    finally:
        threading.Thread(target=clean, name="calibration's end", daemon=True).start()


class RunTimes:
    """How long each program runs, as the kernel measures it while asked to (BPF_ENABLE_STATS).

    The measuring costs each run some 50 ns, so it is on for one interval in `_MEASURE_EVERY`.
    """

    def __init__(self, programs: Mapping[str, int]) -> None:
        self._programs = programs
        self._fd = -1
        self._before: dict[str, tuple[int, int]] = {}
        self._ticks = 0
        self.mean_us: dict[str, float] = {}
        """By program; those that were not run have none."""

    def tick(self) -> None:
        """An interval is over."""
        if self._fd >= 0:
            self.close()
            for name, (time_ns, count) in self._read().items():
                time_before, count_before = self._before.get(name, (0, 0))
                if count > count_before:
                    self.mean_us[name] = (time_ns - time_before) / (count - count_before) / 1e3
        elif self._ticks % _MEASURE_EVERY == 0:
            self._fd = attach.enable_run_times()
            self._before = self._read()
        self._ticks += 1

    def _read(self) -> dict[str, tuple[int, int]]:
        """(ns, runs) by program."""
        found = {}
        for name, fd in self._programs.items():
            told = attach.told_of(fd)
            if "run_cnt" in told:
                found[name] = int(told["run_time_ns"]), int(told["run_cnt"])
        return found

    def close(self) -> None:
        """The kernel measures no more, unless somebody else asks it to."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


@dataclass
class Account:
    """The probes of one process: what they cost, and what it does without."""

    without: list[Evidence] = field(default_factory=list)
    traps: dict[str, tuple[str, float]] = field(default_factory=dict)
    """By `plan.HITS`: the program, and what the kernel's way into it and out costs, in microseconds."""
    percent: float = 0.0
    """Of the last interval."""
    over: int = 0
    room: int = 0
    expected: dict[Evidence, float] = field(default_factory=dict)
    """Percent that an evidence cost when it was shed."""
    last: dict[str, int] = field(default_factory=dict)
    steps_ns: int = 0
    """Duration of the steps that were published since the last tick."""
    told: bool = False

    def note(self, program: str, cost_us: float, *, on_return: bool = False) -> None:
        """A probe with `program` was placed whose trap costs that; of several, the dearest counts."""
        name = RETURN_HIT_OF.get(program, HIT_OF[program]) if on_return else HIT_OF[program]
        if name not in self.traps or cost_us > self.traps[name][1]:
            self.traps[name] = program, cost_us

    def costs(self, hits: Mapping[str, int], seconds: float, run_us: Mapping[str, float]) -> dict[str, float]:
        """Percent of the steps' time (of all time where there were none) since the last call, by hit.

        `run_us`: what the programs themselves take, by name.
        """
        delta = {name: count - self.last.get(name, 0) for name, count in hits.items()}
        self.last = dict(hits)
        time_us = min(self.steps_ns / 1e3, seconds * 1e6) or seconds * 1e6
        self.steps_ns = 0
        percents = {}
        for name, count in delta.items():
            if count > 0 and name in self.traps:
                program, trap_us = self.traps[name]
                percents[name] = 100 * count * (trap_us + run_us.get(program, 0.0)) / time_us
        return percents


_HITS_OF: Mapping[Evidence, tuple[str, ...]] = {
    "launches": ("launch",),
    "windows": ("windows",),
    "attention": ("attention",),
    "copies": ("copy", "copy_return", "copy_async"),
    "shapes": ("embedding_first", "embedding_return", "tensor", "array"),
}


def decide(
    account: Account,
    costs: Mapping[str, float],
    percent: float,
    available: Callable[[Evidence], bool],
) -> tuple[Literal["shed", "restore", "over"], Evidence | None] | None:
    """What to do after an interval that cost `costs` (percent by hit, and by ``windows`` all that is hit in
    them), with a budget of `percent`.

    None: nothing. ``over``: there is nothing left to shed. `available`: whether the process has probes for
    an evidence.
    """
    total = sum(costs.values())
    account.percent = total
    if total > percent:
        account.over, account.room = account.over + 1, 0
        if account.over < _OVER_TICKS:
            return None
        account.over = 0
        for evidence in ORDER:
            if evidence not in account.without and available(evidence):
                account.expected[evidence] = sum(costs.get(name, 0.0) for name in _HITS_OF[evidence])
                account.without.append(evidence)
                return "shed", evidence
        if account.told:
            return None
        account.told = True
        return "over", None
    account.over = 0
    if account.without:
        evidence = account.without[-1]
        fits = total + account.expected.get(evidence, 0.0) <= _ROOM * percent
        account.room = account.room + 1 if fits else 0
        if account.room >= _ROOM_TICKS:
            account.room = 0
            account.without.pop()
            account.told = False
            return "restore", evidence
    return None
