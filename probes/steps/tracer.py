"""Trace steps of running processes.

    with Tracer(print) as tracer:
        tracer.attach(pid)
        while True:
            tracer.poll(0.1)

`Tracer` loads the programs of `SOURCES` through bcc, places them on whichever libraries of a process define
the AscendCL functions of `plan.SITES`, decodes the records and hands `Step`s to a callback. The callback
runs inside `poll`.

Needs root (or CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE), bcc, and kernel headers; `check` says what is
missing. A probe costs the traced thread 1 to 10 us a hit; `flexnpu-probe attach --help` has the figures.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flexnpu.control.closing import Closing
from probes.feed.events import Event, Losses, Mix, Step, StepBegin
from probes.host.processes import comm_of, start_time_of
from probes.placing import attach, budget, capabilities, groups, headers, symbols
from probes.placing.attach import AttachError, Probe
from probes.placing.groups import Key, Placed
from probes.placing.plan import CLIENT, FUNNELS, HITS, SITES, Plan, Role, Site, sites
from probes.steps import client_steps, layouts, operator_mix, waiting
from probes.steps.phases import IDLE_NS, Evidence, Verdict, classify
from probes.steps.records import (
    BEGIN,
    BETWEEN,
    COUNTERS,
    EMBEDDING,
    FROM_CAPTURE,
    GRAPH,
    PLAIN,
    TOTALS,
    Record,
    Totals,
    decode,
    evidence_of,
    of_client,
)
from probes.steps.windows import ENOUGH, LONGEST_S, MIX_EVERY, PERIOD_S, SHORTEST_S, Typical, Window

GAP_NS = 1_000_000_000
"""Silence on a lane, without a synchronise, that ends a plain step."""

STALL_NS = 2_000_000_000
"""Like `phases.IDLE_NS`, for a step that has so far come to less than half of the one before it."""

OWN_COUNTERS = (
    "unclassified",
    "reopened",
    "foreign",
    "unreadable",
    "layout_unknown",
    "windows",
    "over_budget",
    *(f"shed_{evidence}" for evidence in budget.ORDER),
    "restored",
)
"""Counted here: steps without evidence of their phase; steps that went on after they were published as
idle; records of processes that are no longer attached; records of a client of another version; processes
whose objects' layout could not be learned; windows of detail; intervals over the budget with nothing left to
shed; evidence given up for the budget, and taken back."""

SOURCES = ("layout.h", "common.h", "cann.c", "client.c")
"""Files of `bpf/` that make up the program, in the order in which they are put together."""

_RING_PAGES = 256
_SWEEP_S = 0.1
_REFRESH_S = 1.0
_FIRST_WINDOW_S = 1.0
_BUDGET_S = 1.0
_BY_HANDLE = (b"lanes", b"executors", b"models", b"operators", b"client_names")
_BY_PROCESS = (b"processes", b"targets", b"layouts", b"hits")
_TARGETS = 256
_INIT_PIDNS = 0xEFFFFFFC  # PROC_PID_INIT_INO of the kernel


class TracerError(RuntimeError):
    """Tracing is not possible here; the message says what is missing and what to type."""


@dataclass
class Target:
    """An attached process."""

    pid: int
    comm: str
    start_time: int
    placed: list[Placed] = field(default_factory=list)
    maps: frozenset[str] = frozenset()
    layout: layouts.Learned | None = None
    """Where its objects keep what is read of them; None for FlexNPU's client, which tells itself."""
    account: budget.Account = field(default_factory=budget.Account)
    window: Window | None = None
    """The last window of detail."""
    windows: int = 0
    attached: int = field(default_factory=time.monotonic_ns)
    """CLOCK_MONOTONIC, ns."""
    mix_since: int = field(default_factory=time.monotonic_ns)
    """Since when operators are counted by name, in a client that tells of them."""
    _keys: set[Key] = field(default_factory=set)
    _probes: list[tuple[Role, Probe]] = field(default_factory=list)
    _next_window: float = 0.0
    _waiting: waiting.Waiting | None = None
    _operators: operator_mix.Operators | None = None
    _mixes: int = 0
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


@dataclass
class _Lane:
    delivered: int = -1
    """Sequence number of the last step that the kernel side closed."""
    published: int = -1
    """Sequence number of the last step that was published before the kernel side closed it."""
    published_launches: int = 0
    published_graphs: int = 0
    usual: int = 0
    """Launches of the last model step of FlexNPU's client."""


def _to_stderr(text: str) -> None:
    print(f"flexnpu-probe: {text}", file=sys.stderr, flush=True)


def program_text() -> str:
    """The source of the BPF programs, as it is compiled."""
    folder = Path(__file__).parents[1] / "bpf"
    return "".join(f'#line 1 "{name}"\n{(folder / name).read_text()}' for name in SOURCES)


def check() -> None:
    """Raise `TracerError` unless this process may trace: capabilities, bcc, headers."""
    lacking = capabilities.missing()
    if lacking:
        raise TracerError(f"tracing is not permitted here.\n{capabilities.explain(lacking)}")
    _bcc()
    try:
        headers.prepare()
    except headers.HeadersMissing as error:
        raise TracerError(str(error)) from None


def _bcc() -> Any:
    try:
        return importlib.import_module("bcc")
    except ImportError as error:
        raise TracerError(
            f"bcc's Python module is missing ({error}). Type: sudo apt-get install python3-bpfcc\n"
            "A virtual environment sees it only if it was made with --system-site-packages."
        ) from None


def _pid_namespace() -> os.stat_result | None:
    stat = os.stat("/proc/self/ns/pid")
    return None if stat.st_ino == _INIT_PIDNS else stat


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


@contextlib.contextmanager
def _reading_map(pid: int) -> Iterator[None]:
    try:
        yield
    except symbols.ProcessGone:
        raise AttachError(f"no process {pid}") from None
    except PermissionError as error:
        raise AttachError(f"may not read the memory map of process {pid}: {error}") from None


class Tracer(Closing):
    """Attach to processes and deliver their steps.

    `on_event` gets `Step`s and `Mix`es, and `StepBegin`s when `begins` is set. It must not block.
    `plan`: ``default`` probes sentinels, and every launch in short `windows`; ``detail`` probes every launch.
    `budget_percent`: evidence is shed while probes cost more of the steps' time than that; None: never.
    `on_note` gets lines for people (default: standard error). `multi`: whether probes are placed by
    uprobe_multi links; default: where the kernel has them.
    Not thread-safe: use one thread, or a lock.
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
        self._percent = budget_percent
        self._rotate = windows and plan == "default"
        self._note = on_note or _to_stderr
        self._multi = capabilities.uprobe_multi() if multi is None else multi
        self._sessions = self._multi and capabilities.uprobe_session()
        self._typical = Typical()
        self._open_window: Target | None = None
        self._next_window = time.monotonic() + _FIRST_WINDOW_S
        self._windows_us = 0.0
        self._next_budget = time.monotonic() + _BUDGET_S
        self._last_budget = time.monotonic()
        self._hits_before: dict[str, list[int]] = {}
        self._on_event = on_event
        self._begins = begins
        self._only = only
        self._targets: dict[int, Target] = {}
        self._lanes: defaultdict[tuple[int, int], _Lane] = defaultdict(_Lane)
        self._detached: set[int] = set()
        self._removing: list[tuple[Target, threading.Thread]] = []
        self._own = dict.fromkeys(OWN_COUNTERS, 0)
        self._perf_lost = 0
        self._delivered = 0
        self._next_sweep = 0.0
        self._next_refresh = 0.0
        self._closed = False
        self._final: Losses | None = None
        self._failure: BaseException | None = None
        bcc = _bcc()
        flags = [f"-DGAP_NS={GAP_NS}ULL", f"-DRING_PAGES={ring_pages}", "-Wno-macro-redefined"]
        self._ring = bool(bcc.BPF.kernel_struct_has_field(b"bpf_ringbuf", b"waitq") == 1)
        if self._ring:
            flags.append("-DEVENTS_RING")
        flags.append(f"-DTARGETS={_TARGETS}")
        if self._multi:
            flags.append("-DHAS_COOKIES")
        if begins:
            flags.append("-DBEGINS")
        namespace = _pid_namespace()
        if namespace is not None:
            flags += [
                f"-DTARGET_PIDNS_DEV={namespace.st_dev}ULL",
                f"-DTARGET_PIDNS_INO={namespace.st_ino}ULL",
            ]
        try:
            self._bpf = bcc.BPF(text=program_text().encode(), cflags=flags)
            names = {site.entry for site in SITES} | {site.on_return for site in SITES if site.on_return}
            names |= {"on_calibrate"} | ({"on_operator"} if self._multi else set())
            expected = {"attach_type": attach.TRACE_UPROBE_MULTI} if self._multi else {}
            self._programs: dict[str, int] = {
                name: self._bpf.load_func(name.encode(), bcc.BPF.KPROBE, **expected).fd
                for name in sorted(names)
            }
            for name in {site.session for site in SITES if site.session} if self._sessions else ():
                self._programs[name] = self._bpf.load_func(
                    name.encode(), bcc.BPF.KPROBE, attach_type=attach.TRACE_UPROBE_SESSION
                ).fd
        except Exception as error:  # bcc raises bare Exception
            raise TracerError(
                f"the BPF program does not load: {error}. The kernel's log above says why; kernel lockdown "
                "(/sys/kernel/security/lockdown) and seccomp forbid it as well."
            ) from None
        self._run_times = budget.RunTimes(self._programs)
        events = self._bpf[b"events"]
        if self._ring:
            events.open_ring_buffer(self._on_ring)
        else:
            events.open_perf_buffer(self._on_perf, page_cnt=ring_pages, lost_cb=self._on_perf_lost)
        try:
            self.costs: budget.Costs | None = budget.calibrate(
                self._programs["on_calibrate"], multi=self._multi
            )
        except (AttachError, OSError) as error:
            self.costs = None
            self._note(f"what a probe costs cannot be measured, so there is no budget: {error}")

    # -- attaching ------------------------------------------------------------------------------------------

    @property
    def targets(self) -> list[Target]:
        return list(self._targets.values())

    def threads(self, pid: int) -> list[int]:
        """Ids of the threads of `pid` that have called a probed function, as far as the kernel side knows."""
        return sorted(key.value & 0xFFFFFFFF for key in self._bpf[b"threads"] if key.value >> 32 == pid)

    def attach(self, pid: int) -> Target:
        """Place the probes in process `pid`, which goes on running.

        Raises `AttachError` when there is no such process, or it maps no library to trace.
        """
        if pid in self._targets:
            return self._targets[pid]
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
        target._next_window = time.monotonic() + _FIRST_WINDOW_S
        if self._rotate and self._multi and target.kind == "cann":
            threading.Thread(target=self._find_operators, args=(target,), daemon=True).start()
        self._targets[pid] = target
        return target

    def detach(self, pid: int) -> None:
        """Publish the running steps of `pid` and forget it; its probes go within the next moments."""
        target = self._targets.get(pid)
        if target is None:
            return
        self._settle(target)
        self._aside(target, self._remove, target)

    def _aside(self, target: Target, remove: Callable[..., None], *arguments: Any) -> None:
        """Remove probes of `target` on a thread: the kernel takes a grace period, for which the records of
        other processes must not wait."""
        thread = threading.Thread(target=remove, args=arguments, name=f"remove probes of {target.pid}")
        thread.start()
        self._removing.append((target, thread))

    def _settle(self, target: Target) -> None:
        """Publish what `target` holds. From here on its records are ignored: probes go one by one."""
        if self._open_window is target:
            self._close_window(target)
        self._flush(target.pid)
        del self._targets[target.pid]
        self._detached.add(target.pid)

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
        if client and target._waiting is None:
            self._watch(target, found.get(waiting.TABLE, ()))
        objects = not client and (target.layout is None or not target.layout.complete)
        self._describe(target)
        wanted = [
            site
            for site in sites(self._plan, client=client, objects=objects, begins=self._begins)
            if not any(site.role in budget.ROLES[evidence] for evidence in target.account.without)
        ]
        self._put(target, wanted, found)
        if start_time_of(target.pid) != target.start_time:
            raise AttachError(f"process {target.pid} ended while it was being attached to")

    def _learn(self, target: Target) -> None:
        try:
            target.layout = layouts.learn(target.pid)
        except (symbols.ProcessGone, PermissionError) as error:
            raise AttachError(f"process {target.pid}: {error}") from None
        if not target.layout.complete:
            self._own["layout_unknown"] += 1
            self._note(
                f"{target.comm} ({target.pid}): {target.layout.reason}; so every tensor and array is probed "
                "when it is made, which costs more"
            )

    def _watch(self, target: Target, tables: tuple[symbols.Definition, ...]) -> None:
        try:
            for table in tables:
                target._waiting = waiting.Waiting(target.pid, table)
        except OSError as error:
            self._note(
                f"{target.comm} ({target.pid}): its memory cannot be read ({error}), so the last step "
                "before a silence is told when the next one opens"
            )

    def _describe(self, target: Target) -> None:
        """Tell the programs about a process."""
        try:
            self._enter(target, ctypes.c_uint64(target.pid))
        except Exception as error:  # bcc raises bare Exception
            raise AttachError(
                f"process {target.pid} cannot be attached to beside {len(self._targets)} others: {error}"
            ) from None

    def _enter(self, target: Target, pid: ctypes.c_uint64) -> None:
        counted = self._is_counted(target)
        described = self._bpf[b"targets"]
        described[pid] = described.Leaf(counted, 0)
        hits = self._bpf[b"hits"]
        if pid not in hits:
            hits[pid] = hits.Leaf()
        if target.layout is not None:
            packed = bytes(layouts.pack(target.layout))
            table = self._bpf[b"layouts"]
            table[pid] = table.Leaf.from_buffer_copy(packed)

    def _put(
        self, target: Target, wanted: list[Site], found: dict[str, tuple[symbols.Definition, ...]]
    ) -> None:
        wanted_groups, keys = groups.groups_of(wanted, found, target._keys, sessions=self._sessions)
        for group in wanted_groups:
            probes = groups.place([group], self._programs, target.pid, multi=self._multi)
            target._probes += [(group.role, probe) for probe in probes]
            target.placed += group.placed
            for placed in group.placed:
                if self.costs is not None:
                    cost = self.costs.of(placed.cost, on_return=placed.on_return)
                    target.account.note(placed.program, cost, on_return=placed.on_return)
        target._keys |= set(keys)

    def _remove(self, target: Target) -> None:
        window = target.window
        attach.remove([probe for _, probe in target._probes] + (window.probes if window else []))
        target._probes.clear()
        if window:
            window.probes.clear()

    def _reap(self, pid: int) -> None:
        """Wait for the probes of an earlier process `pid`, or of an earlier attachment, to be gone."""
        for target, thread in self._removing:
            if target.pid == pid:
                thread.join()
        self._removing = [(target, thread) for target, thread in self._removing if thread.is_alive()]
        self._drain()
        self._detached.discard(pid)
        self._forget(pid)

    # -- delivering -----------------------------------------------------------------------------------------

    def poll(self, timeout_s: float) -> None:
        """Deliver what there is; wait up to `timeout_s` for it. Call it often: it also publishes idle
        steps."""
        timeout_ms = max(0, int(timeout_s * 1000))
        if self._ring:
            self._bpf.ring_buffer_poll(timeout_ms)
            self._bpf.ring_buffer_consume()  # not every record wakes us
        else:
            self._bpf.perf_buffer_poll(timeout_ms)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        now = time.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + _SWEEP_S
            self._sweep()
        if now >= self._next_refresh:
            self._next_refresh = now + _REFRESH_S
            self._refresh()
        if self._rotate:
            self._turn(now)
        for target in self.targets:
            if target.tells_operators and time.monotonic_ns() - target.mix_since > PERIOD_S * 1e9:
                self._tell_operators(target)
        if now >= self._next_budget:
            self._account(now)

    def _drain(self) -> None:
        if self._ring:
            self._bpf.ring_buffer_consume()
        else:
            self._bpf.perf_buffer_poll(0)

    def _on_ring(self, _context: Any, data: Any, size: int) -> None:
        self._take(data, size)

    def _on_perf(self, _cpu: int, data: Any, size: int) -> None:
        self._take(data, size)

    def _take(self, data: Any, size: int) -> None:
        # Called from C, where an exception would be printed and forgotten: `poll` raises it.
        try:
            record = ctypes.string_at(data, size)
            if client_steps.is_client_record(record):
                self._on_client(client_steps.decode(record))
            else:
                self._on_record(decode(record))
        except client_steps.ClientRecordError:
            self._own["unreadable"] += 1  # a client of another version must not end the tracing of others
        except BaseException as error:
            self._failure = self._failure or error

    def _on_client(self, step: client_steps.ClientStep) -> None:
        target = self._targets.get(step.pid)
        # It may have opened for another reader, and its lane been silent since: that is no news to this one.
        if target is None or step.kind == "begin" or step.t_end >= target.attached:
            self._on_record(of_client(step))

    def _on_perf_lost(self, lost: int) -> None:
        self._perf_lost += lost

    def _on_record(self, record: Record) -> None:
        target = self._targets.get(record.pid)
        if target is None:
            if record.pid not in self._detached:
                self._own["foreign"] += 1
            return
        if record.kind == BEGIN:
            if self._begins:
                self._on_event(self._begin(target, record))
            return
        self._delivered += 1
        lane = self._lanes[record.lane]
        lane.delivered = record.seq
        if record.seq == lane.published:
            rest = record.launches - lane.published_launches, record.graphs - lane.published_graphs
            lane.published = -1
            if rest == (0, 0):
                return
            # It went on after it was taken to be over. What came later must not be lost, nor counted twice.
            self._own["reopened"] += 1
            late = replace(record, launches=rest[0], graphs=rest[1], h2d=0, d2h=0, evidence=Evidence())
            verdict = Verdict("other", None, None, "rest of a step that had fallen silent", 0.0)
            self._publish(target, late, verdict)
            return
        self._publish(target, record, classify(record.evidence))
        if record.evidence.embedding:
            lane.usual = record.launches

    def _begin(self, target: Target, record: Record) -> StepBegin:
        verdict = classify(record.evidence)
        return StepBegin(
            t_ns=record.t_start,
            pid=record.pid,
            comm=target.comm,
            stream=record.stream,
            phase=verdict.phase,
            tokens=verdict.tokens,
            batch=verdict.batch,
            evidence=verdict.evidence,
            confidence=verdict.confidence,
        )

    def _publish(self, target: Target, record: Record, verdict: Verdict) -> None:
        if verdict.unclassified:
            self._own["unclassified"] += 1
        launches = record.launches if self._sees_launches(target, record) else None
        at = (record.pid, record.stream, verdict.phase)
        if launches is not None and verdict.phase != "other":
            self._typical.add(*at, launches)
            if target.window is not None:
                target.window.steps += 1
        target.account.steps_ns += max(0, record.t_end - record.t_start)
        self._on_event(
            Step(
                t_start_ns=record.t_start,
                t_end_ns=max(record.t_end, record.t_start),
                pid=record.pid,
                comm=target.comm,
                stream=record.stream,
                phase=verdict.phase,
                tokens=verdict.tokens,
                batch=verdict.batch,
                launches=launches,
                graph_launches=record.graphs,
                h2d_bytes=record.h2d,
                d2h_bytes=record.d2h,
                evidence=verdict.evidence,
                confidence=verdict.confidence,
                kv_len=verdict.kv_len,
                ended_by=record.ended_by,
                gated_us=None if record.gated_ns is None else record.gated_ns / 1e3,
                launches_typical=self._typical.get(*at),
            )
        )

    def _sees_launches(self, target: Target, record: Record) -> bool:
        """Whether every launch of the step was probed: of that in `record`, from where its counting began."""
        if target.kind == "client" or self._is_counted(target):
            return True
        start = min(record.t_start, record.t_base or record.t_start)
        return target.window is not None and target.window.covers(start, record.t_end)

    # -- windows of detail ----------------------------------------------------------------------------------

    def _turn(self, now: float) -> None:
        """Open and close windows of detail, one at a time."""
        target = self._open_window
        if target is not None:
            window = target.window
            assert window is not None
            age = (time.monotonic_ns() - window.since) / 1e9
            gone = self._targets.get(target.pid) is not target
            if gone or (age >= SHORTEST_S and (window.steps >= ENOUGH or age >= LONGEST_S)):
                self._close_window(target)
            return
        if now < self._next_window:
            return
        turn = [
            target
            for target in self.targets
            if target.kind == "cann"
            and "windows" not in target.account.without
            and target._next_window <= now
        ]
        if turn:
            self._begin_window(min(turn, key=lambda target: target._next_window))

    def _begin_window(self, target: Target) -> None:
        target.windows += 1
        target._next_window = time.monotonic() + PERIOD_S
        wanted = [site for site in SITES if site.role is Role.COUNT]
        names = None
        try:
            launches, _ = groups.groups_of(wanted, self._resolve(target))
            probes = groups.place(launches, self._programs, target.pid, multi=self._multi)
            operators = target._operators
            if operators is not None and not target._mixes % MIX_EVERY:
                probes += groups.place([operators.group], self._programs, target.pid, multi=True)
                names = operators.names
            target._mixes += operators is not None
        except (AttachError, OSError, symbols.ProcessGone):
            return  # it ends, or its libraries change: the next refresh tells
        if self.costs is not None:
            for group in launches:
                for placed in group.placed:
                    cost = self.costs.of(placed.cost, on_return=False)
                    target.account.note(placed.program, cost)
            target.account.note("on_operator", self.costs.emulated)
        target.window = Window(target.pid, time.monotonic_ns(), names=names, probes=probes)
        self._open_window = target
        self._own["windows"] += 1

    def _find_operators(self, target: Target) -> None:
        # Some seconds for a library that was not read before.
        with contextlib.suppress(symbols.ProcessGone, OSError):
            target._operators = operator_mix.operators_of(target.pid, only=self._only)

    def _close_window(self, target: Target) -> None:
        window = target.window
        assert window is not None
        self._open_window = None
        window.until = time.monotonic_ns()
        probes, window.probes = window.probes, []
        self._removing = [(owner, one) for owner, one in self._removing if one.is_alive()]
        self._aside(target, attach.remove, probes)
        if window.names is not None:
            self._publish_mix(target, window.since, window.until, dict(enumerate(window.names)))

    def _tell_operators(self, target: Target) -> None:
        """Publish what FlexNPU's client told of its operators since the last time."""
        since, target.mix_since = target.mix_since, time.monotonic_ns()
        names = {
            int(key.handle): bytes(value.text).decode(errors="replace")
            for key, value in self._bpf[b"client_names"].items()
            if key.tgid == target.pid
        }
        self._publish_mix(target, since, target.mix_since, names)

    def _publish_mix(self, target: Target, since: int, until: int, names: Mapping[int, str]) -> None:
        table = self._bpf[b"operators"]
        streams: dict[int, dict[str, int]] = {}
        for key, value in list(table.items()):
            if key.tgid != target.pid:
                continue
            if name := names.get(int(key.operator)):
                streams.setdefault(int(key.stream), {})[name] = int(value.value)
            with contextlib.suppress(KeyError):
                del table[key]
        for stream, operators in streams.items():
            self._on_event(
                Mix(
                    t_ns=until,
                    pid=target.pid,
                    comm=target.comm,
                    stream=stream,
                    window_us=(until - since) / 1e3,
                    operators=dict(sorted(operators.items(), key=lambda item: -item[1])),
                )
            )

    # -- the budget -----------------------------------------------------------------------------------------

    def _account(self, now: float) -> None:
        """Compare what probes cost with what they may."""
        seconds, self._last_budget = now - self._last_budget, now
        self._next_budget = now + _BUDGET_S
        if self.costs is None:
            return
        if self._targets:
            self._run_times.tick()
        for target in self.targets:
            costs = target.account.costs(self._hits(target.pid), seconds, self._run_times.mean_us)
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
            return self._rotate
        return any(role in budget.ROLES[evidence] for role, _ in target._probes)

    def _act(self, target: Target, what: str, evidence: budget.Evidence | None) -> None:
        share = f"{target.account.percent:.1f} % of the steps' time, the budget is {self._percent:g} %"
        who = f"{target.comm} ({target.pid})"
        if evidence is None:
            self._own["over_budget"] += 1
            self._note(f"{who}: probes cost {share}, and nothing is left that steps can do without")
            return
        if what == "shed":
            self._own[f"shed_{evidence}"] += 1
            self._note(f"{who}: probes cost {share}; doing without {evidence}")
            self._shed(target, evidence)
            return
        self._own["restored"] += 1
        self._note(f"{who}: there is room in the budget; {evidence} again")
        with contextlib.suppress(AttachError, OSError):
            self._place(target)

    def _shed(self, target: Target, evidence: budget.Evidence) -> None:
        if evidence == "launches":
            self._describe(target)
        roles = budget.ROLES[evidence]
        gone = [probe for role, probe in target._probes if role in roles]
        target._probes = [(role, probe) for role, probe in target._probes if role not in roles]
        symbols_gone = {placed.symbol for placed in target.placed if placed.role in roles}
        target.placed = [placed for placed in target.placed if placed.role not in roles]
        target._keys = {key for key in target._keys if key[0] not in symbols_gone}
        self._aside(target, attach.remove, gone)

    def _hits(self, pid: int) -> dict[str, int]:
        """Hits of the probes of `pid` so far."""
        return {name: sum(cpus) for name, cpus in self._hits_by_cpu(pid).items()}

    def _hits_by_cpu(self, pid: int) -> dict[str, list[int]]:
        try:
            cpus = self._bpf[b"hits"][ctypes.c_uint64(pid)]
        except KeyError:
            return {}
        return {name: [int(cpu.of[index]) for cpu in cpus] for index, name in enumerate(HITS)}

    # -- steps that nothing follows -------------------------------------------------------------------------

    def _running(self) -> Iterator[tuple[int, int, Any]]:
        for key, value in self._bpf[b"lanes"].items():
            yield int(key.tgid), int(key.stream), value

    def _sweep(self) -> None:
        """Publish steps that have been over for a while without another one opening on their lane."""
        now = time.monotonic_ns()
        for pid, stream, raw in self._running():
            if pid not in self._targets or raw.capturing or raw.t_sync_in > raw.t_sync_out:
                continue
            lane = self._lanes[pid, stream]
            if raw.seq == lane.published:
                continue
            silent = now - max(raw.t_last, raw.t_sync_out)
            if raw.kind == EMBEDDING and raw.cand_t:
                if silent > (IDLE_NS if self._looks_whole(pid, stream, raw) else STALL_NS):
                    self._publish_running(pid, stream, raw, "sync")
            elif raw.kind == BETWEEN and not raw.has_model and raw.t_open and silent > GAP_NS:
                self._publish_running(pid, stream, raw, "gap")
        for step in [step for target in self.targets for step in self._perhaps_over(target)]:
            lane = self._lanes[step.pid, step.stream]
            whole = lane.usual and step.launches * 2 >= lane.usual
            if now - step.t_end > (IDLE_NS if whole else STALL_NS):
                self._publish_perhaps(step, "sync")

    def _perhaps_over(self, target: Target) -> list[client_steps.ClientStep]:
        """Steps of FlexNPU's client that may have ended, and were not published."""
        if target._waiting is None:
            return []
        return [
            step
            for step in target._waiting.read()
            # The table remembers what was told to readers of old.
            if step.t_end >= target.attached
            and step.seq != (lane := self._lanes[target.pid, step.stream]).published
            and step.seq > lane.delivered
        ]

    def _publish_perhaps(self, step: client_steps.ClientStep, ended_by: str) -> None:
        self._drain()  # records of earlier steps come first, perhaps that of this one
        lane = self._lanes[step.pid, step.stream]
        if step.seq <= lane.delivered:
            return
        lane.published = step.seq
        lane.published_launches, lane.published_graphs = step.launches, step.graphs
        record = replace(of_client(step), ended_by=ended_by)
        self._publish(self._targets[step.pid], record, classify(record.evidence))

    def _looks_whole(self, pid: int, stream: int, raw: Any) -> bool:
        """Whether a running step (struct lane) has come to half the length of the one before it: in launches
        where all are probed, else in time."""
        if self._is_counted(self._targets[pid]):
            lane = self._lanes[pid, stream]
            return (int(raw.cand.launches) - int(raw.base.launches)) * 2 >= lane.usual
        return (int(raw.cand_t) - int(raw.t_open)) * 2 >= int(raw.usual)

    def _is_counted(self, target: Target) -> bool:
        return self._plan == "detail" and "launches" not in target.account.without

    def _publish_running(self, pid: int, stream: int, raw: Any, ended_by: str) -> None:
        self._drain()  # records of earlier steps come first, perhaps that of this one
        target = self._targets[pid]
        lane = self._lanes[pid, stream]
        if raw.seq <= lane.delivered:
            return
        end, t_end = (raw.cand, raw.cand_t) if raw.cand_t else (raw.now, raw.t_last)
        record = self._record_of(pid, stream, raw, raw.base, end, t_end, ended_by)
        lane.published = raw.seq
        lane.published_launches, lane.published_graphs = record.launches, record.graphs
        self._publish(target, record, classify(record.evidence))

    def _record_of(
        self, pid: int, stream: int, raw: Any, start: Any, end: Any, t_end: int, ended_by: str
    ) -> Record:
        kind = int(raw.kind) or PLAIN
        evidence = Evidence()
        work = Totals(*(getattr(end, name) - getattr(start, name) for name in TOTALS))
        if raw.evidence:
            with contextlib.suppress(KeyError):
                found = self._bpf[b"evidences"][ctypes.c_uint64(raw.evidence)]
                evidence = evidence_of(kind, found, work)
        elif kind == GRAPH:
            evidence = self._evidence_of_graph(pid, raw, work)
        if kind == EMBEDDING and not evidence.embedding:
            evidence = Evidence(embedding=True)
        return Record(
            t_start=raw.t_open,
            t_end=t_end,
            t_base=raw.t_base,
            seq=raw.seq,
            pid=pid,
            stream=stream,
            kind=kind,
            ended_by=ended_by,
            launches=work.launches,
            graphs=work.graphs,
            h2d=work.h2d,
            d2h=work.d2h,
            evidence=evidence,
        )

    def _evidence_of_graph(self, pid: int, raw: Any, work: Totals) -> Evidence:
        """As `tell_graph` of `bpf/common.h` does it."""
        models = self._bpf[b"models"]
        learned = models.Leaf()
        with contextlib.suppress(KeyError):
            learned = models[models.Key(pid, raw.model)]
            learned.flags |= FROM_CAPTURE
        learned.arrays = 0
        return evidence_of(GRAPH, learned, work)

    def _flush(self, pid: int) -> None:
        """Publish whatever the lanes of `pid` hold, and forget them."""
        target = self._targets[pid]
        running = [(stream, raw) for owner, stream, raw in self._running() if owner == pid]
        self._drain()
        for stream, raw in running:
            lane = self._lanes[pid, stream]
            if raw.seq <= lane.delivered:
                continue  # it ended between the two lines above, and what followed is after the detaching
            rest = raw.base
            if raw.kind != BETWEEN:
                over = raw.cand_t and self._looks_whole(pid, stream, raw)
                if not over:
                    raw.cand_t = 0  # in the middle of the step
                if raw.seq != lane.published:
                    self._publish_running(pid, stream, raw, "sync" if over else "detach")
                rest = raw.cand if over else raw.now
            elif raw.seq == lane.published:
                rest = raw.now
            counted = raw.now.launches != rest.launches and self._plan == "detail"
            if counted or raw.now.graphs != rest.graphs:
                record = self._record_of(pid, stream, raw, rest, raw.now, raw.t_last, "detach")
                record = replace(record, kind=PLAIN, evidence=Evidence())
                self._publish(target, record, classify(record.evidence))
        if target.tells_operators:
            self._tell_operators(target)
        for step in self._perhaps_over(target):
            lane = self._lanes[pid, step.stream]
            self._publish_perhaps(step, "sync" if step.launches * 2 >= lane.usual else "detach")
        self._forget(pid)

    def _forget(self, pid: int) -> None:
        for name in _BY_HANDLE:
            table = self._bpf[name]
            for key in [key for key in table if key.tgid == pid]:
                with contextlib.suppress(KeyError):
                    del table[key]
        for hit, cpus in self._hits_by_cpu(pid).items():
            before = self._hits_before.setdefault(hit, [0] * len(cpus))
            self._hits_before[hit] = [a + b for a, b in zip(before, cpus, strict=True)]
        self._typical.forget(pid)
        for name, shift in ((b"threads", 32), *((name, 0) for name in _BY_PROCESS)):
            table = self._bpf[name]
            for key in [key for key in table if key.value >> shift == pid]:
                with contextlib.suppress(KeyError):
                    del table[key]
        for lane in [lane for lane in self._lanes if lane[0] == pid]:
            del self._lanes[lane]

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

    # -- accounts -------------------------------------------------------------------------------------------

    def losses(self) -> Losses:
        """What was counted so far (after `close`, by then); see `COUNTERS` and `OWN_COUNTERS`."""
        if self._final is not None:
            return self._final
        table = self._bpf[b"counters"]
        cpus = {
            name: [int(count) for count in table[ctypes.c_int(index)]] for index, name in enumerate(COUNTERS)
        }
        for name, counted in self._hits_before.items():
            cpus[f"hits_{name}"] = list(counted)
        for target in self.targets:
            for name, counted in self._hits_by_cpu(target.pid).items():
                sofar = cpus.get(f"hits_{name}", [0] * len(counted))
                cpus[f"hits_{name}"] = [a + b for a, b in zip(sofar, counted, strict=True)]
        counts = {name: sum(counted) for name, counted in cpus.items()}
        counts["steps_lost"] += self._perf_lost
        counts |= self._own
        counts["steps_received"] = self._delivered
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
            self._run_times.close()
            self._bpf.cleanup()
