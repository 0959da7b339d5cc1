"""Trace steps of running processes.

    with Tracer(print) as tracer:
        tracer.attach(pid)
        while True:
            tracer.poll(0.1)

`Tracer` loads the step programs (`programs`), places them on whichever libraries of a process define the
AscendCL functions of `plan.SITES`, and hands `Step`s to a callback, which runs inside `poll`. What it joins:
`publishing` makes steps of records, `silence` finds those that nothing follows, `detail` has windows of
detail, `spending` keeps the budget.

Needs root (or CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE); `check` says what is missing. A probe costs the
traced thread 1 to 10 us a hit; `flexnpu-probe attach --help` has the figures.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator

from flexnpu.common.closeable import Closeable
from flexnpu.common.processes import comm_of, start_time_of
from probes.feed.events import Event, Losses
from probes.placing import attach, budget, capabilities, groups, kernel_faults, symbols
from probes.placing.attach import AttachError, Probe
from probes.placing.loader import Loaded, LoadError
from probes.placing.plan import CLIENT, FUNNELS, SITES, Plan, Site, sites
from probes.steps import layouts, waiting
from probes.steps.detail import Detail
from probes.steps.programs import Programs
from probes.steps.publishing import OWN_COUNTERS, Publisher
from probes.steps.records import COUNTERS
from probes.steps.silence import GAP_NS, Silence
from probes.steps.spending import Spending
from probes.steps.targets import Target, Targets
from probes.steps.transfers import Transfer
from probes.steps.windows import PERIOD_S

__all__ = [
    "COUNTERS",
    "OWN_COUNTERS",
    "Target",
    "Tracer",
    "TracerError",
    "check",
    "find_processes",
    "is_daemon",
    "uses_npu",
]

_RING_PAGES = 256
_SWEEP_S = 0.1
_REFRESH_S = 1.0
_BUDGET_S = 1.0


class TracerError(RuntimeError):
    """Tracing is not possible here; the message says what is missing and what to type."""


def _to_stderr(text: str) -> None:
    print(f"flexnpu-probe: {text}", file=sys.stderr, flush=True)


def check() -> None:
    """Raise `TracerError` unless this process has the rights to trace."""
    lacking = capabilities.missing()
    if lacking:
        raise TracerError(f"tracing is not permitted here.\n{capabilities.explain(lacking)}")


def find_processes(*, only: Collection[str] | None = None, known: Collection[int] = ()) -> list[int]:
    """Processes that map a library through which operators are launched, other than this one and
    FlexNPU's daemon.

    The daemon launches on behalf of its clients, who are listed themselves; name it with `attach` to see
    its lanes.
    """
    return [pid for pid in symbols.processes() if pid not in known and uses_npu(pid, only=only)]


def uses_npu(pid: int, *, only: Collection[str] | None = None) -> bool:
    """Whether `pid` is one that `find_processes` would list."""
    if pid == os.getpid():
        return False
    try:
        return not is_daemon(pid) and bool(symbols.resolve(pid, FUNNELS, only=only))
    except (symbols.ProcessGone, OSError):
        return False


def is_daemon(pid: int) -> bool:
    """Whether `pid` is a FlexNPU daemon, by its data plane module."""
    return any("/flexnpu/daemon/_plane." in path for path in symbols.mapped_paths(pid))


def _check_confined(target: Target) -> None:
    """Raises `AttachError` where the probes of returns would end the process."""
    if kernel_faults.is_confined(target.pid) and kernel_faults.ends_confined_programs():
        raise AttachError(
            f"process {target.pid} ({target.comm}) is under seccomp, and this kernel would end it where a "
            "function returns that is probed (Linux 6.11 to 6.13): use another kernel, trace it through "
            "FlexNPU's client (flexnpu run), or take the filter away"
        )


@contextlib.contextmanager
def _reading_map(pid: int) -> Iterator[None]:
    try:
        yield
    except symbols.ProcessGone:
        raise AttachError(f"no process {pid}") from None
    except PermissionError as error:
        raise AttachError(f"may not read the memory map of process {pid}: {error}") from None


class Tracer(Closeable):
    """Attach to processes and deliver their steps.

    `on_event` gets `Step`s and `OperatorMix`es, and `StepBegin`s when `begins` is set. It must not block.
    `plan`: ``default`` probes sentinels, and every launch in short `windows`; ``detail`` probes every launch.
    `budget_percent`: evidence is shed while probes cost more of the steps' time than that; None: never.
    `on_note` gets lines for people (default: standard error). `multi`: whether probes are placed by
    uprobe_multi links; default: where the kernel has them.
    Not thread-safe: use one thread, or a lock. Raises `TracerError`.
    """

    def __init__(
        self,
        on_event: Callable[[Event], None],
        *,
        begins: bool = False,
        only: Collection[str] | None = None,
        plan: Plan = "default",
        budget_percent: float | None = 1.0,
        windows: bool = True,
        on_note: Callable[[str], None] | None = None,
        ring_pages: int = _RING_PAGES,
        multi: bool | None = None,
    ) -> None:
        check()
        self._plan: Plan = plan
        self._rotate = windows and plan == "default"
        self._note = on_note or _to_stderr
        self._multi = kernel_faults.links_work() if multi is None else multi
        self._sessions = self._multi and capabilities.uprobe_session()
        self._begins = begins
        self._only = only
        self._known = Targets()
        self._removing: list[tuple[Target, threading.Thread]] = []
        self._next_sweep = self._next_refresh = 0.0
        self._next_budget = time.monotonic() + _BUDGET_S
        self._hits_before: dict[str, list[int]] = {}
        self._closed = False
        self._final: Losses | None = None
        self._publisher = Publisher(self._known, on_event, plan=plan, begins=begins)
        try:
            self._programs = Programs(
                self._publisher.take,
                multi=self._multi,
                sessions=self._sessions,
                begins=begins,
                gap_ns=GAP_NS,
                ring_pages=ring_pages,
            )
        except LoadError as error:
            raise TracerError(str(error)) from None
        try:
            self.costs: budget.Costs | None = budget.calibrate(
                self._programs.fds["on_calibrate"], multi=self._multi
            )
        except (AttachError, OSError) as error:
            self.costs = None
            self._note(f"what a probe costs cannot be measured, so there is no budget: {error}")
        counts = self._publisher.counts
        self._silence = Silence(self._programs, self._known, self._publisher, plan)
        self._detail = Detail(
            self._programs,
            self._known,
            on_event,
            self._take_away,
            multi=self._multi,
            only=only,
            costs=self.costs,
            counts=counts,
        )
        self._spending = Spending(
            self._programs,
            self._known,
            costs=self.costs,
            percent=budget_percent,
            plan=plan,
            rotates=self._rotate,
            note=self._note,
            counts=counts,
            place=self._place,
            describe=self._describe,
            remove=self._take_away,
        )

    # -- attaching ------------------------------------------------------------------------------------------

    @property
    def targets(self) -> list[Target]:
        """The processes that are attached."""
        return list(self._known.by_pid.values())

    @property
    def loaded(self) -> Loaded:
        """The programs: by which loader, and why."""
        return self._programs.loaded

    def threads(self, pid: int) -> list[int]:
        """Ids of the threads of `pid` that have called a probed function, as far as the kernel side knows."""
        return self._programs.threads(pid)

    def attach(self, pid: int) -> Target:
        """Place the probes in process `pid`, which goes on running.

        Raises `AttachError` when there is no such process, or it maps no library to trace.
        """
        if pid in self._known.by_pid:
            return self._known.by_pid[pid]
        self._reap(pid)
        started = start_time_of(pid)
        if started is None:
            raise AttachError(f"no process {pid}")
        target = Target(pid, comm_of(pid), started)
        try:
            self._place(target)
        except BaseException:
            self._remove(target)
            self._forget(pid)
            raise
        if not target.placed:
            self._forget(pid)
            where = f" among {', '.join(sorted(self._only))}" if self._only else ""
            raise AttachError(
                f"process {pid} ({target.comm}) maps no library{where} that defines any of "
                f"{', '.join(sorted(FUNNELS))}: it does not use an NPU, or has not loaded AscendCL yet"
            )
        if self._rotate:
            self._detail.welcome(target)
        self._known.by_pid[pid] = target
        return target

    def detach(self, pid: int) -> None:
        """Publish the running steps of `pid` and forget it; its probes go within the next moments."""
        target = self._known.by_pid.get(pid)
        if target is None:
            return
        self._settle(target)
        self._aside(target, self._remove, target)

    def _aside(self, target: Target, remove: Callable[..., None], *arguments: object) -> None:
        """Remove probes of `target` on a thread: the kernel takes a grace period, for which the records of
        other processes must not wait."""
        thread = threading.Thread(target=remove, args=arguments, name=f"remove probes of {target.pid}")
        thread.start()
        self._removing = [(owner, one) for owner, one in self._removing if one.is_alive()]
        self._removing.append((target, thread))

    def _take_away(self, target: Target, probes: list[Probe]) -> None:
        self._aside(target, attach.remove, probes)

    def _settle(self, target: Target) -> None:
        """Publish what `target` holds. From here on its records are ignored: probes go one by one."""
        self._detail.close(target)
        self._silence.flush(target)
        if target.tells_operators:
            self._detail.tell_client(target)
        self._silence.flush_client(target)
        self._forget(target.pid)
        del self._known.by_pid[target.pid]
        self._known.detached.add(target.pid)

    def _resolve(self, target: Target) -> dict[str, tuple[symbols.Definition, ...]]:
        names = [name for site in SITES for name in (site.symbol, site.semaphore) if name]
        names.append(waiting.TABLE)
        with _reading_map(target.pid):
            found = symbols.resolve(target.pid, names, only=self._only)
        return found if found.keys() & FUNNELS else {}

    def _place(self, target: Target) -> None:
        """Place what the plan says, as far as it is not there yet."""
        with _reading_map(target.pid):
            target.maps = symbols.mapped_paths(target.pid)
        found = self._resolve(target)
        if not found:
            return
        client = CLIENT in found
        if not client and target.layout is None:
            self._learn(target)
        if client and target.waiting is None:
            self._watch(target, found.get(waiting.TABLE, ()))
        objects = not client and (target.layout is None or not target.layout.complete)
        self._describe(target)
        wanted = [
            site
            for site in sites(self._plan, client=client, objects=objects, begins=self._begins)
            if not any(site.role in budget.ROLES[evidence] for evidence in target.account.without)
        ]
        if any(site.on_return for site in wanted):
            _check_confined(target)
        self._put(target, wanted, found)
        if start_time_of(target.pid) != target.start_time:
            raise AttachError(f"process {target.pid} ended while it was being attached to")

    def _learn(self, target: Target) -> None:
        try:
            target.layout = layouts.learn(target.pid)
        except (symbols.ProcessGone, PermissionError) as error:
            raise AttachError(f"process {target.pid}: {error}") from None
        if not target.layout.complete:
            self._publisher.counts["layout_unknown"] += 1
            self._note(
                f"{target.comm} ({target.pid}): {target.layout.reason}; so every tensor and array is probed "
                "when it is made, which costs more"
            )

    def _watch(self, target: Target, tables: tuple[symbols.Definition, ...]) -> None:
        try:
            for table in tables:
                target.waiting = waiting.Waiting(target.pid, table)
        except OSError as error:
            self._note(
                f"{target.comm} ({target.pid}): its memory cannot be read ({error}), so the last step "
                "before a silence is told when the next one opens"
            )

    def _describe(self, target: Target) -> None:
        """Tell the programs about a process."""
        try:
            counted = target.is_counted(self._plan)
            self._programs.describe(target.pid, counted=counted, layout=target.layout)
        except OSError as error:
            others = len(self._known.by_pid)
            raise AttachError(
                f"process {target.pid} cannot be attached to beside {others} others: {error}"
            ) from None

    def _put(
        self, target: Target, wanted: list[Site], found: dict[str, tuple[symbols.Definition, ...]]
    ) -> None:
        wanted_groups, keys = groups.groups_of(wanted, found, target.keys, sessions=self._sessions)
        for group in wanted_groups:
            probes = groups.place([group], self._programs.fds, target.pid, multi=self._multi)
            target.probes += [(group.role, probe) for probe in probes]
            target.placed += group.placed
            for placed in group.placed:
                if self.costs is not None:
                    cost = self.costs.of(placed.cost, on_return=placed.on_return)
                    target.account.note(placed.program, cost, on_return=placed.on_return)
        target.keys |= set(keys)

    def _remove(self, target: Target) -> None:
        window = target.window
        attach.remove([probe for _, probe in target.probes] + (window.probes if window else []))
        target.probes.clear()
        if window:
            window.probes.clear()

    def _reap(self, pid: int) -> None:
        """Wait for the probes of an earlier process `pid`, or of an earlier attachment, to be gone."""
        for target, thread in self._removing:
            if target.pid == pid:
                thread.join()
        self._removing = [(target, thread) for target, thread in self._removing if thread.is_alive()]
        self._programs.drain()
        self._known.detached.discard(pid)
        self._forget(pid)

    def _forget(self, pid: int) -> None:
        for hit, cpus in self._programs.hits(pid).items():
            before = self._hits_before.setdefault(hit, [0] * len(cpus))
            self._hits_before[hit] = [a + b for a, b in zip(before, cpus, strict=True)]
        self._publisher.typical.forget(pid)
        self._programs.forget(pid)
        self._known.forget_lanes(pid)

    # -- delivering -----------------------------------------------------------------------------------------

    def poll(self, timeout_s: float) -> None:
        """Deliver what there is; wait up to `timeout_s` for it. Call it often: it also publishes idle
        steps."""
        self._programs.poll(max(0, int(timeout_s * 1000)))
        now = time.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + _SWEEP_S
            self._silence.sweep()
        if now >= self._next_refresh:
            self._next_refresh = now + _REFRESH_S
            self._refresh()
        if self._rotate:
            self._detail.turn(now)
        for target in self.targets:
            if target.tells_operators and time.monotonic_ns() - target.mix_since > PERIOD_S * 1e9:
                self._detail.tell_client(target)
        if now >= self._next_budget:
            self._next_budget = now + _BUDGET_S
            self._spending.account(now)

    def _refresh(self) -> None:
        """Notice processes that ended, and libraries that were loaded since."""
        for target in self.targets:
            if start_time_of(target.pid) != target.start_time:
                self.detach(target.pid)
                continue
            target.comm = comm_of(target.pid) or target.comm
            if not target.missing:
                continue
            with contextlib.suppress(symbols.ProcessGone, AttachError, OSError):
                if symbols.mapped_paths(target.pid) != target.maps:
                    self._place(target)

    def on_transfer(self, take: Callable[[Transfer], None]) -> None:
        """`take` gets each move of memory between engines (libllm_datadist), from `poll`."""
        self._publisher.on_transfer = take

    # -- accounts -------------------------------------------------------------------------------------------

    def losses(self) -> Losses:
        """What was counted so far (after `close`, by then); see `COUNTERS` and `OWN_COUNTERS`."""
        if self._final is not None:
            return self._final
        cpus = self._programs.counters()
        for name, counted in self._hits_before.items():
            cpus[f"hits_{name}"] = list(counted)
        for target in self.targets:
            for name, counted in self._programs.hits(target.pid).items():
                sofar = cpus.get(f"hits_{name}", [0] * len(counted))
                cpus[f"hits_{name}"] = [a + b for a, b in zip(sofar, counted, strict=True)]
        counts = {name: sum(counted) for name, counted in cpus.items()}
        counts["steps_lost"] += self._programs.lost
        counts |= self._publisher.counts
        counts["steps_received"] = self._publisher.delivered
        return Losses(t_ns=time.monotonic_ns(), source="steps", counts=counts, cpus=cpus)

    def close(self) -> None:
        """Detach from everything and unload. Running steps are published first. May be called again."""
        if self._closed:
            return
        self._closed = True
        targets = self.targets
        try:
            for target in targets:
                self._settle(target)
        finally:
            self._final = self.losses()
            for target in targets:
                self._aside(target, self._remove, target)
            for _, thread in self._removing:
                thread.join()
            self._spending.close()
            self._programs.close()
