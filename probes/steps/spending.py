"""Keeps what probes cost within the budget: evidence is given up, said so and counted, and taken back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from probes.placing import budget
from probes.placing.attach import AttachError, Probe
from probes.placing.plan import Plan
from probes.steps.programs import Programs
from probes.steps.targets import Target, Targets
from probes.steps.windows import PERIOD_S


class Spending:
    """Compares cost and budget (`account`). `percent`: the budget; None: whatever it costs. `place` places
    what a process has lost, `describe` tells the programs of a change, `remove` takes probes away."""

    def __init__(
        self,
        programs: Programs,
        targets: Targets,
        *,
        costs: budget.Costs | None,
        percent: float | None,
        plan: Plan,
        rotates: bool,
        note: Callable[[str], None],
        counts: dict[str, int],
        place: Callable[[Target], None],
        describe: Callable[[Target], None],
        remove: Callable[[Target, list[Probe]], None],
    ) -> None:
        self._programs = programs
        self._targets = targets
        self._costs = costs
        self._percent = percent
        self._plan: Plan = plan
        self._rotates = rotates
        self._note = note
        self._counts = counts
        self._place = place
        self._describe = describe
        self._remove = remove
        self._run_times = budget.RunTimes(programs.fds)
        self._last = time.monotonic()

    def account(self, now: float) -> None:
        """An interval is over. `now`: of time.monotonic."""
        seconds, self._last = now - self._last, now
        if self._costs is None:
            return
        targets = list(self._targets.by_pid.values())
        if targets:
            self._run_times.tick()
        for target in targets:
            hits = {name: sum(cpus) for name, cpus in self._programs.hits(target.pid).items()}
            costs = target.account.costs(hits, seconds, self._run_times.mean_us)
            if self._percent is None:
                target.account.percent = sum(costs.values())
                continue
            in_window = costs.pop("operator", 0.0)
            if self._plan == "default":
                in_window += costs.pop("launch", 0.0)
            # A window's cost comes once a period.
            costs["windows"] = in_window * seconds / PERIOD_S
            decision = budget.decide(
                target.account,
                costs,
                self._percent,
                lambda evidence, target=target: self._can_shed(target, evidence),  # type: ignore[misc]
            )
            if decision is not None:
                self._act(target, *decision)

    def _can_shed(self, target: Target, evidence: budget.Evidence) -> bool:
        if target.kind == "client":
            return evidence == "launches" and target.tells_operators
        if evidence == "launches":
            return self._plan == "detail"
        if evidence == "windows":
            return self._rotates
        return any(role in budget.ROLES[evidence] for role, _ in target.probes)

    def _act(self, target: Target, what: str, evidence: budget.Evidence | None) -> None:
        share = f"{target.account.percent:.1f} % of the steps' time, the budget is {self._percent:g} %"
        who = f"{target.comm} ({target.pid})"
        if evidence is None:
            self._counts["over_budget"] += 1
            self._note(f"{who}: probes cost {share}, and nothing is left that steps can do without")
            return
        if what == "shed":
            self._counts[f"shed_{evidence}"] += 1
            self._note(f"{who}: probes cost {share}; doing without {evidence}")
            self._shed(target, evidence)
            return
        self._counts["restored"] += 1
        self._note(f"{who}: there is room in the budget; {evidence} again")
        with contextlib.suppress(AttachError, OSError):
            self._place(target)

    def _shed(self, target: Target, evidence: budget.Evidence) -> None:
        if evidence == "launches":
            self._describe(target)
        roles = budget.ROLES[evidence]
        gone = [probe for role, probe in target.probes if role in roles]
        target.probes = [(role, probe) for role, probe in target.probes if role not in roles]
        symbols_gone = {placed.symbol for placed in target.placed if placed.role in roles}
        target.placed = [placed for placed in target.placed if placed.role not in roles]
        target.keys = {key for key in target.keys if key[0] not in symbols_gone}
        self._remove(target, gone)

    def close(self) -> None:
        """Stop measuring the programs."""
        self._run_times.close()
