"""Trace steps of running processes.

    with Tracer(print) as tracer:
        tracer.attach(pid)
        while True:
            tracer.poll(0.1)

`Tracer` loads the programs of `SOURCES` through bcc, places them on whichever libraries of a process define
the AscendCL functions of `plan.SITES`, decodes the records and hands `Step`s to a callback. The callback
runs inside `poll`.

Needs root (or CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE), bcc, and kernel headers; `check` says what is
missing. A probe costs the traced thread 1 to 6 us a hit; `flexnpu-probe attach --help` has the figures.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from probes import capabilities, client_steps, headers, symbols
from probes.attach import AttachError, Uprobe
from probes.events import Event, Losses, Step, StepBegin
from probes.phases import IDLE_NS, Evidence, Lengths, Verdict, classify
from probes.plan import CLIENT, CLIENT_BEGIN, FUNNELS, SITES, Role
from probes.sites import cheap_offset

GAP_NS = 1_000_000_000
"""Silence on a lane, without a synchronise, that ends a plain step."""

STALL_NS = 2_000_000_000
"""Like `phases.IDLE_NS`, for a step that has so far launched less than half of the one before it."""

COUNTERS = (
    "steps_sent",
    "steps_lost",
    "begins_lost",
    "map_full",
    "no_first_call",
    "bad_reads",
    "lanes_untracked",
)
"""Counted in the kernel, in the order of its enum: records delivered to the ring; step and begin records
that found it full; calls dropped because a map was full; embeddings whose first call was not seen; user
memory that could not
be read; streams of a process beyond those that a device synchronise ends."""

OWN_COUNTERS = ("unclassified", "reopened", "foreign", "unreadable")
"""Counted here: steps without evidence of their phase; steps that went on after they were published as
idle; records of processes that are no longer attached; records of a client of another version."""

SOURCES = ("common.h", "cann.c", "client.c")
"""Files of `bpf/` that make up the program, in the order in which they are put together."""

_RING_PAGES = 256
_SWEEP_S = 0.1
_REFRESH_S = 1.0
_INIT_PIDNS = 0xEFFFFFFC  # PROC_PID_INIT_INO of the kernel

_BETWEEN, _EMBEDDING, _GRAPH, _PLAIN, _BEGIN, _CAPTURE = range(6)
_ENDED_BY = ("sync", "embedding", "graph", "gap", "none")
_HAS_INDICES, _HAS_TABLE, _HAS_OUTPUT, _FROM_CAPTURE = 1, 2, 4, 8
_DIMS = 4
_ARRAYS = 3


class TracerError(RuntimeError):
    """Tracing is not possible here; the message says what is missing and what to type."""


_TOTALS = ("launches", "graphs", "h2d", "d2h", "h2d_copies")


class _Totals(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in _TOTALS)


class _Array(ctypes.Structure):
    _fields_ = (
        ("n", ctypes.c_uint32),
        ("seen", ctypes.c_uint32),
        ("ones", ctypes.c_uint32),
        ("rising", ctypes.c_uint32),
        ("first", ctypes.c_int64),
        ("last", ctypes.c_int64),
        ("max", ctypes.c_int64),
        ("sum", ctypes.c_int64),
    )


class _Evidence(ctypes.Structure):
    _fields_ = (
        ("t_first", ctypes.c_uint64),
        ("model", ctypes.c_uint64),
        ("ndim", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("dims", ctypes.c_int64 * _DIMS),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("arrays", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("array", _Array * _ARRAYS),
    )


class _Record(ctypes.Structure):
    _fields_ = (
        ("t_start", ctypes.c_uint64),
        ("t_end", ctypes.c_uint64),
        ("seq", ctypes.c_uint64),
        ("tgid", ctypes.c_uint64),
        ("stream", ctypes.c_uint64),
        ("kind", ctypes.c_uint32),
        ("ended_by", ctypes.c_uint32),
        ("work", _Totals),
        ("evidence", _Evidence),
    )


RECORD_SIZE = ctypes.sizeof(_Record)


@dataclass(frozen=True)
class Record:
    """A decoded record of the kernel side: one step, or the beginning of one."""

    t_start: int
    t_end: int
    seq: int
    pid: int
    stream: int
    kind: int
    ended_by: str
    launches: int
    graphs: int
    h2d: int
    d2h: int
    evidence: Evidence
    gated_ns: int | None = None
    """How long a daemon's gate held the lane meanwhile; None where there is none, or it did not say."""

    @property
    def lane(self) -> tuple[int, int]:
        return self.pid, self.stream


class RecordError(ValueError):
    """Bytes from the ring that are not a record."""


def _evidence(kind: int, raw: Any, work: Any) -> Evidence:
    indices = None
    if raw.flags & _HAS_INDICES and 0 <= raw.ndim <= _DIMS:
        indices = tuple(raw.dims[: raw.ndim])
    agreed = bool(raw.flags & _HAS_TABLE and raw.flags & _HAS_OUTPUT)
    arrays = tuple(
        Lengths(a.n, a.seen, a.ones, bool(a.rising), a.first, a.last, a.max, a.sum)
        for a in raw.array[: min(raw.arrays, _ARRAYS)]
    )
    return Evidence(
        embedding=kind == _EMBEDDING,
        indices=indices,
        agreed=agreed,
        graph=kind == _GRAPH,
        from_capture=bool(raw.flags & _FROM_CAPTURE),
        capture=kind == _CAPTURE,
        h2d_bytes=work.h2d,
        h2d_copies=work.h2d_copies,
        arrays=arrays,
    )


def decode(data: bytes) -> Record:
    """Decode one record of `bpf/common.h`. Raises `RecordError`."""
    if len(data) < RECORD_SIZE:
        raise RecordError(f"{len(data)} bytes, a record has {RECORD_SIZE}")
    raw = _Record.from_buffer_copy(data)
    if not _EMBEDDING <= raw.kind <= _CAPTURE:
        raise RecordError(f"unknown kind {raw.kind}")
    if raw.ended_by >= len(_ENDED_BY):
        raise RecordError(f"unknown end {raw.ended_by}")
    kind = raw.kind
    if kind == _BEGIN:
        kind = _GRAPH if raw.evidence.model else _EMBEDDING
    return Record(
        t_start=raw.t_start,
        t_end=raw.t_end,
        seq=raw.seq,
        pid=raw.tgid,
        stream=raw.stream,
        kind=raw.kind,
        ended_by=_ENDED_BY[raw.ended_by],
        launches=raw.work.launches,
        graphs=raw.work.graphs,
        h2d=raw.work.h2d,
        d2h=raw.work.d2h,
        evidence=_evidence(kind, raw.evidence, raw.work),
    )


_OPENED = {
    "plain": _PLAIN,
    "embedding": _EMBEDDING,
    "graph": _GRAPH,
    "capture": _CAPTURE,
    "attention": _PLAIN,
}


def _of_client(step: client_steps.ClientStep) -> Record:
    """A step of FlexNPU's client as a record."""
    return Record(
        t_start=step.t_start,
        t_end=step.t_end,
        seq=step.seq,
        pid=step.pid,
        stream=step.stream,
        kind=_BEGIN if step.kind == "begin" else _OPENED[step.opening],
        ended_by=step.ended_by,
        launches=step.launches,
        graphs=step.graphs,
        h2d=step.h2d,
        d2h=step.d2h,
        evidence=step.evidence,
        gated_ns=step.gated_ns,
    )


@dataclass(frozen=True)
class Placed:
    """One probe that was placed."""

    symbol: str
    library: str
    offset: int
    instruction: str
    on_return: bool


@dataclass
class Target:
    """An attached process."""

    pid: int
    comm: str
    start_time: int
    placed: list[Placed] = field(default_factory=list)
    maps: frozenset[str] = frozenset()
    _probes: dict[tuple[str, str, int, bool], Uprobe] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        """Symbols of `SITES` that no mapped library defines (yet); one of `FUNNELS` is enough."""
        have = {placed.symbol for placed in self.placed}
        if CLIENT in have:
            return []
        if have & FUNNELS:
            have |= FUNNELS
        return [site.symbol for site in SITES if site.symbol not in have]

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
    """Launches of the last model step."""


def _semaphore(
    name: str | None, beside: symbols.Definition, found: dict[str, tuple[symbols.Definition, ...]]
) -> int:
    """The file offset of a semaphore in the library of `beside`. Raises `AttachError` when it has none."""
    if name is None:
        return 0
    for definition in found.get(name, ()):
        if definition.library == beside.library:
            return definition.offset
    raise AttachError(f"{beside.library.path} defines {beside.symbol} without {name}")


def program_text() -> str:
    """The source of the BPF programs, as it is compiled."""
    folder = Path(__file__).parent / "bpf"
    return "".join(f'#line 1 "{name}"\n{(folder / name).read_text()}' for name in SOURCES)


def check() -> None:
    """Raise `TracerError` unless this process may trace: capabilities, bcc, headers."""
    # Probes are placed through perf's uprobe unit.
    lacking = capabilities.missing(multi=False)
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


def comm_of(pid: int) -> str:
    """The name of process `pid`, empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""


def start_time_of(pid: int) -> int | None:
    """When `pid` started, in clock ticks since boot (tells apart two processes that had the same id)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


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


class Tracer:
    """Attach to processes and deliver their steps.

    `on_event` gets `Step`s, and `StepBegin`s when `begins` is set. It must not block.
    Not thread-safe: use one thread, or a lock.
    """

    def __init__(
        self,
        on_event: Callable[[Event], None],
        *,
        begins: bool = False,
        only: Collection[str] | None = None,
        ring_pages: int = _RING_PAGES,
    ) -> None:
        check()
        self._on_event = on_event
        self._begins = begins
        self._only = only
        self._targets: dict[int, Target] = {}
        self._lanes: dict[tuple[int, int], _Lane] = {}
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
        namespace = _pid_namespace()
        if namespace is not None:
            flags += [
                f"-DTARGET_PIDNS_DEV={namespace.st_dev}ULL",
                f"-DTARGET_PIDNS_INO={namespace.st_ino}ULL",
            ]
        try:
            self._bpf = bcc.BPF(text=program_text().encode(), cflags=flags)
            names = {site.entry for site in SITES} | {site.on_return for site in SITES if site.on_return}
            self._programs = {
                name: self._bpf.load_func(name.encode(), bcc.BPF.KPROBE) for name in sorted(names)
            }
        except Exception as error:  # bcc raises bare Exception
            raise TracerError(
                f"the BPF program does not load: {error}. The kernel's log above says why; kernel lockdown "
                "(/sys/kernel/security/lockdown) and seccomp forbid it as well."
            ) from None
        events = self._bpf[b"events"]
        if self._ring:
            events.open_ring_buffer(self._on_ring)
        else:
            events.open_perf_buffer(self._on_perf, page_cnt=ring_pages, lost_cb=self._on_perf_lost)

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
            raise
        have = {placed.symbol for placed in target.placed}
        if not have & FUNNELS:
            self._remove(target)
            where = f" among {', '.join(sorted(self._only))}" if self._only else ""
            raise AttachError(
                f"process {pid} ({target.comm}) maps no library{where} that defines any of "
                f"{', '.join(sorted(FUNNELS))}: it does not use an NPU, or has not loaded AscendCL yet"
            )
        self._targets[pid] = target
        return target

    def detach(self, pid: int) -> None:
        """Publish the running steps of `pid` and forget it; its probes go within the next seconds."""
        target = self._targets.get(pid)
        if target is None:
            return
        self._settle(target)
        # The kernel takes 0.1 s a probe, for which the other processes' records must not wait.
        thread = threading.Thread(target=self._remove, args=(target,), name=f"detach {pid}")
        thread.start()
        self._removing.append((target, thread))

    def _settle(self, target: Target) -> None:
        """Publish what `target` holds. From here on its records are ignored: probes go one by one."""
        self._flush(target.pid)
        del self._targets[target.pid]
        self._detached.add(target.pid)

    def _place(self, target: Target) -> None:
        try:
            mapped = symbols.mapped_paths(target.pid)
            names = [name for site in SITES for name in (site.symbol, site.semaphore) if name]
            found = symbols.resolve(target.pid, names, only=self._only)
        except symbols.ProcessGone:
            raise AttachError(f"no process {target.pid}") from None
        except PermissionError as error:
            raise AttachError(f"may not read the memory map of process {target.pid}: {error}") from None
        target.maps = mapped
        for site in SITES:
            if (CLIENT in found) != (site.role is Role.CLIENT):
                continue  # the client tells of its steps itself
            if site.symbol == CLIENT_BEGIN and not self._begins:
                continue
            for definition in found.get(site.symbol, ()):
                # A return probe must see the return address where the call left it, and both share one trap.
                chosen = cheap_offset(
                    definition.code, definition.machine, keep_stack=site.on_return is not None
                )
                # Returns first: an entry without its return would leave a call open.
                if site.on_return is not None:
                    self._probe(target, definition, site.on_return, chosen, on_return=True)
                semaphore = _semaphore(site.semaphore, definition, found)
                self._probe(target, definition, site.entry, chosen, on_return=False, semaphore=semaphore)

    def _probe(
        self,
        target: Target,
        definition: symbols.Definition,
        program: str,
        chosen: tuple[int, str],
        *,
        on_return: bool,
        semaphore: int = 0,
    ) -> None:
        key = (definition.symbol, definition.library.path, definition.library.inode, on_return)
        if key in target._probes:
            return
        step, instruction = chosen
        offset = definition.offset + step
        fd = self._programs[program].fd
        target._probes[key] = Uprobe(
            fd, definition.library.real, offset, target.pid, on_return=on_return, semaphore=semaphore
        )
        target.placed.append(
            Placed(definition.symbol, definition.library.path, offset, instruction, on_return)
        )

    def _remove(self, target: Target) -> None:
        for probe in target._probes.values():  # the order of SITES: the dearest first
            probe.close()
        target._probes.clear()

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
                self._on_record(_of_client(client_steps.decode(record)))
            else:
                self._on_record(decode(record))
        except client_steps.ClientRecordError:
            self._own["unreadable"] += 1  # a client of another version must not end the tracing of others
        except BaseException as error:
            self._failure = self._failure or error

    def _on_perf_lost(self, lost: int) -> None:
        self._perf_lost += lost

    def _on_record(self, record: Record) -> None:
        target = self._targets.get(record.pid)
        if target is None:
            if record.pid not in self._detached:
                self._own["foreign"] += 1
            return
        if record.kind == _BEGIN:
            if self._begins:
                self._on_event(self._begin(target, record))
            return
        self._delivered += 1
        lane = self._lanes.setdefault(record.lane, _Lane())
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
                launches=record.launches,
                graph_launches=record.graphs,
                h2d_bytes=record.h2d,
                d2h_bytes=record.d2h,
                evidence=verdict.evidence,
                confidence=verdict.confidence,
                kv_len=verdict.kv_len,
                ended_by=record.ended_by,
                gated_us=None if record.gated_ns is None else record.gated_ns / 1e3,
            )
        )

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
            lane = self._lanes.setdefault((pid, stream), _Lane())
            if raw.seq == lane.published:
                continue
            silent = now - max(raw.t_last, raw.t_sync_out)
            if raw.kind == _EMBEDDING and raw.cand_t:
                launches = raw.cand.launches - raw.base.launches
                if silent > (IDLE_NS if launches * 2 >= lane.usual else STALL_NS):
                    self._publish_running(pid, stream, raw, "sync")
            elif raw.kind == _BETWEEN and not raw.has_model and raw.t_open and silent > GAP_NS:
                self._publish_running(pid, stream, raw, "gap")
        for step in self._perhaps_over():
            lane = self._lanes.setdefault((step.pid, step.stream), _Lane())
            whole = lane.usual and step.launches * 2 >= lane.usual
            if now - step.t_end > (IDLE_NS if whole else STALL_NS):
                self._publish_perhaps(step, "sync")

    def _perhaps_over(self) -> list[client_steps.ClientStep]:
        """Steps of FlexNPU's clients that may have ended, and were not published."""
        steps = []
        for key, value in self._bpf[b"maybes"].items():
            pid = int(key.tgid)
            if pid not in self._targets:
                continue
            lane = self._lanes.setdefault((pid, int(key.stream)), _Lane())
            if value.seq != lane.published and value.seq > lane.delivered:
                with contextlib.suppress(client_steps.ClientRecordError):
                    steps.append(client_steps.step_of(pid, value))
        return steps

    def _publish_perhaps(self, step: client_steps.ClientStep, ended_by: str) -> None:
        self._drain()  # records of earlier steps come first, perhaps that of this one
        lane = self._lanes.setdefault((step.pid, step.stream), _Lane())
        if step.seq <= lane.delivered:
            return
        lane.published = step.seq
        lane.published_launches, lane.published_graphs = step.launches, step.graphs
        record = replace(_of_client(step), ended_by=ended_by)
        self._publish(self._targets[step.pid], record, classify(record.evidence))

    def _publish_running(self, pid: int, stream: int, raw: Any, ended_by: str) -> None:
        self._drain()  # records of earlier steps come first, perhaps that of this one
        target = self._targets[pid]
        lane = self._lanes.setdefault((pid, stream), _Lane())
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
        kind = int(raw.kind) or _PLAIN
        evidence = Evidence()
        work = _Totals(*(getattr(end, name) - getattr(start, name) for name in _TOTALS))
        if raw.evidence:
            with contextlib.suppress(KeyError):
                found = self._bpf[b"evidences"][ctypes.c_uint64(raw.evidence)]
                evidence = _evidence(kind, found, work)
        if kind == _EMBEDDING and not evidence.embedding:
            evidence = Evidence(embedding=True)
        return Record(
            t_start=raw.t_open,
            t_end=t_end,
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

    def _flush(self, pid: int) -> None:
        """Publish whatever the lanes of `pid` hold, and forget them."""
        target = self._targets[pid]
        running = [(stream, raw) for owner, stream, raw in self._running() if owner == pid]
        self._drain()
        for stream, raw in running:
            lane = self._lanes.setdefault((pid, stream), _Lane())
            if raw.seq <= lane.delivered:
                continue  # it ended between the two lines above, and what followed is after the detaching
            rest = raw.base
            if raw.kind != _BETWEEN:
                over = raw.cand_t and (raw.cand.launches - raw.base.launches) * 2 >= lane.usual
                if not over:
                    raw.cand_t = 0  # in the middle of the step
                if raw.seq != lane.published:
                    self._publish_running(pid, stream, raw, "sync" if over else "detach")
                rest = raw.cand if over else raw.now
            elif raw.seq == lane.published:
                rest = raw.now
            if raw.now.launches != rest.launches or raw.now.graphs != rest.graphs:
                record = self._record_of(pid, stream, raw, rest, raw.now, raw.t_last, "detach")
                record = replace(record, kind=_PLAIN, evidence=Evidence())
                self._publish(target, record, classify(record.evidence))
        for step in self._perhaps_over():
            if step.pid == pid:
                lane = self._lanes.setdefault((pid, step.stream), _Lane())
                self._publish_perhaps(step, "sync" if step.launches * 2 >= lane.usual else "detach")
        self._forget(pid)

    def _forget(self, pid: int) -> None:
        for name in (b"lanes", b"executors", b"models", b"maybes"):
            table = self._bpf[name]
            for key in [key for key in table if key.tgid == pid]:
                with contextlib.suppress(KeyError):
                    del table[key]
        for name, shift in ((b"threads", 32), (b"processes", 0)):
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
        counts = {name: sum(table[ctypes.c_int(index)]) for index, name in enumerate(COUNTERS)}
        counts["steps_lost"] += self._perf_lost
        counts |= self._own
        counts["steps_received"] = self._delivered
        return Losses(t_ns=time.monotonic_ns(), source="steps", counts=counts)

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
                self._remove(target)
            for _, thread in self._removing:
                thread.join()
            self._bpf.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
