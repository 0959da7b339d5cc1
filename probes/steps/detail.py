"""Windows of detail, one process at a time, and the operators that they and FlexNPU's client tell of."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Mapping

from probes.feed.events import Event, OperatorMix
from probes.placing import budget, groups, symbols
from probes.placing.attach import AttachError, Probe
from probes.placing.plan import SITES, Role
from probes.steps import operator_mix
from probes.steps.programs import Programs
from probes.steps.targets import Target, Targets
from probes.steps.windows import ENOUGH, LONGEST_S, MIX_EVERY, PERIOD_S, SHORTEST_S, Window

FIRST_S = 1.0
"""From attaching to a process to its first window."""


class Detail:
    """Opens and closes windows (`turn`). `remove` takes probes away in the background."""

    def __init__(
        self,
        programs: Programs,
        targets: Targets,
        on_event: Callable[[Event], None],
        remove: Callable[[Target, list[Probe]], None],
        *,
        multi: bool,
        only: Collection[str] | None,
        costs: budget.Costs | None,
        counts: dict[str, int],
    ) -> None:
        self._programs = programs
        self._targets = targets
        self._on_event = on_event
        self._remove = remove
        self._multi = multi
        self._only = only
        self._costs = costs
        self._counts = counts
        self._open: Target | None = None
        self._next = time.monotonic() + FIRST_S

    def welcome(self, target: Target) -> None:
        """A process was attached to."""
        target.next_window = time.monotonic() + FIRST_S
        if self._multi and target.kind == "cann":
            threading.Thread(target=self._find_operators, args=(target,), daemon=True).start()

    def _find_operators(self, target: Target) -> None:
        # Some seconds for a library that was not read before.
        with contextlib.suppress(symbols.ProcessGone, OSError):
            target.operators = operator_mix.operators_of(target.pid, only=self._only)

    def turn(self, now: float) -> None:
        """Open and close windows, one at a time. `now`: of time.monotonic."""
        target = self._open
        if target is not None:
            window = target.window
            assert window is not None
            age = (time.monotonic_ns() - window.since) / 1e9
            gone = self._targets.by_pid.get(target.pid) is not target
            if gone or (age >= SHORTEST_S and (window.steps >= ENOUGH or age >= LONGEST_S)):
                self.close(target)
            return
        if now < self._next:
            return
        turn = [
            target
            for target in self._targets.by_pid.values()
            if target.kind == "cann" and "windows" not in target.account.without and target.next_window <= now
        ]
        if turn:
            self._begin(min(turn, key=lambda target: target.next_window))

    def _begin(self, target: Target) -> None:
        target.windows += 1
        target.next_window = time.monotonic() + PERIOD_S
        names = None
        try:
            found = symbols.resolve(target.pid, [site.symbol for site in _COUNTED], only=self._only)
            launches, _ = groups.groups_of(_COUNTED, found)
            probes = groups.place(launches, self._programs.fds, target.pid, multi=self._multi)
            operators = target.operators
            if operators is not None and not target.mixes % MIX_EVERY:
                probes += groups.place([operators.group], self._programs.fds, target.pid, multi=True)
                names = operators.names
            target.mixes += operators is not None
        except (AttachError, OSError, symbols.ProcessGone):
            return  # it ends, or its libraries change: the next refresh tells
        if self._costs is not None:
            for group in launches:
                for placed in group.placed:
                    target.account.note(placed.program, self._costs.of(placed.cost, on_return=False))
            target.account.note("on_operator", self._costs.emulated)
        target.window = Window(target.pid, time.monotonic_ns(), names=names, probes=probes)
        self._open = target
        self._counts["windows"] += 1

    def close(self, target: Target) -> None:
        """Close the window of `target`, if it is open."""
        window = target.window
        if self._open is not target or window is None:
            return
        self._open = None
        window.until = time.monotonic_ns()
        probes, window.probes = window.probes, []
        self._remove(target, probes)
        if window.names is not None:
            self._publish(target, window.since, window.until, dict(enumerate(window.names)))

    def tell_client(self, target: Target) -> None:
        """Publish what FlexNPU's client told of its operators since the last time."""
        since, target.mix_since = target.mix_since, time.monotonic_ns()
        self._publish(target, since, target.mix_since, self._programs.client_names(target.pid))

    def _publish(self, target: Target, since: int, until: int, names: Mapping[int, str]) -> None:
        for stream, counted in self._programs.take_operators(target.pid).items():
            operators = {names[one]: count for one, count in counted.items() if names.get(one)}
            if not operators:
                continue
            self._on_event(
                OperatorMix(
                    t_ns=until,
                    pid=target.pid,
                    comm=target.comm,
                    stream=stream,
                    window_us=(until - since) / 1e3,
                    operators=dict(sorted(operators.items(), key=lambda item: -item[1])),
                )
            )


_COUNTED = [site for site in SITES if site.role is Role.COUNT]
