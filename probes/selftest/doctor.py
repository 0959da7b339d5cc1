"""Whether tracing works on this machine: what is there, what is missing, and what to do about it.

What can be tried is tried: programs are loaded, maps made, probes placed on code of our own. Files that only
say what should be possible are shown beside it.
"""

from __future__ import annotations

import importlib
import os
import platform
import struct
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from probes.host.inventory import Inventory, take
from probes.placing import (
    attach,
    capabilities,
    cost,
    headers,
    kernel_faults,
    libbpf,
    loader,
    loader_bcc,
    symbols,
)
from probes.placing.sites import HitCost
from probes.steps import layouts

_RINGBUF, _MAP_CREATE = 27, 0
_LOADERS = {"core": "libbpf, from the compiled object", "bcc": "bcc, which compiles it here"}


class Status(StrEnum):
    """A check's verdict."""

    OK = "ok"
    INFO = "info"
    """Neither good nor bad."""
    WARN = "warn"
    """Something works less well, or not at all that not everybody needs."""
    FAIL = "fail"
    """Tracing does not work."""


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    group: str
    name: str
    status: Status
    detail: str
    remedy: str = ""
    """What to do, for WARN and FAIL."""

    def to_dict(self) -> dict[str, Any]:
        """Its fields, for JSON."""
        return asdict(self)


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


# -- the kernel ---------------------------------------------------------------------------------------------


def _either(
    group: str, name: str, fine: bool, good: str, bad: str, remedy: str, *, otherwise: Status = Status.WARN
) -> Check:
    """OK and `good` when it is `fine`; else `otherwise`, `bad` and the remedy."""
    return Check(group, name, Status.OK, good) if fine else Check(group, name, otherwise, bad, remedy)


def kernel() -> Iterator[Check]:
    """What the kernel can do for us, as far as this process may ask."""
    group = "kernel"
    machine = platform.machine()
    release = f"Linux {platform.release()}, {machine}"
    yield _either(
        group,
        "release",
        machine in ("x86_64", "aarch64"),
        release,
        release,
        "probes are placed on x86-64 and aarch64 only",
        otherwise=Status.FAIL,
    )
    perf, multi = attach.supported(), capabilities.uprobe_multi()
    unit = "perf's uprobe unit is there" if perf else "perf has no uprobe unit"
    yield _either(
        group,
        "uprobes",
        perf or multi,
        unit,
        unit,
        "Linux 4.17 or newer with CONFIG_UPROBE_EVENTS is needed",
        otherwise=Status.FAIL,
    )
    asked = capabilities.may_load()
    if multi or asked:
        yield _either(
            group,
            "uprobe_multi",
            multi,
            "many probes by one link, without CAP_SYS_ADMIN, with cookies",
            "not available",
            "Linux 6.6 or newer; till then CAP_SYS_ADMIN, and no operator mix",
        )
        yield _either(
            group,
            "uprobe sessions",
            capabilities.uprobe_session(),
            "a copy's return is probed only when it matters",
            "not available: every copy's return is probed",
            "Linux 6.13 or newer makes tracing of captured graphs cheaper",
            otherwise=Status.INFO,
        )
        yield from _faults(group)
    else:
        yield Check(group, "uprobe_multi", Status.INFO, "not known: it cannot be asked without CAP_BPF")
    ring = _ring_buffer()
    if ring or asked:
        yield _either(
            group,
            "ring buffer",
            ring,
            "there",
            "not available: perf buffers, one a CPU, are used",
            "Linux 5.8 or newer",
        )
    else:
        yield Check(group, "ring buffer", Status.INFO, "not known: it cannot be asked without CAP_BPF")
    yield _either(
        group,
        "BTF",
        Path("/sys/kernel/btf/vmlinux").exists(),
        "there",
        "not available",
        "a kernel with CONFIG_DEBUG_INFO_BTF; --wire reads what the kernel holds back by it",
    )
    yield _lockdown(group)
    for name, meaning in (
        ("perf_event_paranoid", "what perf allows without CAP_PERFMON"),
        ("unprivileged_bpf_disabled", "whether BPF needs CAP_BPF: 0 no, 1 and 2 yes"),
    ):
        value = _read(f"/proc/sys/kernel/{name}")
        yield Check(group, name, Status.INFO, f"{value or 'not there'} ({meaning})")
    seccomp = next(
        (line.split()[1] for line in (_read("/proc/self/status") or "").splitlines() if "Seccomp:" in line),
        "0",
    )
    if seccomp != "0":
        yield Check(
            group, "seccomp", Status.INFO, "a filter is active: it may forbid bpf and perf_event_open"
        )
    yield _tracefs(group)


def _faults(group: str) -> Iterator[Check]:
    """What some kernels do wrong, tried on a thread and a child of our own."""
    yield _either(
        group,
        "calls of other threads",
        not kernel_faults.hides_threads(),
        "a link for a process sees those of all its threads",
        "a link for a process leaves out those of all threads but the first: perf's uprobes are used instead",
        "Linux 6.10 or newer needs no CAP_SYS_ADMIN for this, and shows the operator mix",
    )
    yield _either(
        group,
        "returns under seccomp",
        not kernel_faults.ends_confined_programs(),
        "a probed return does not end a process under a seccomp filter",
        "a probed return ends a process under a seccomp filter: such processes are not attached to",
        "Linux 6.14 or newer, or 6.10 and older; FlexNPU's client needs no probed returns",
    )


def _ring_buffer() -> bool:
    attributes = struct.pack("<IIII", _RINGBUF, 0, 0, 4096)
    fd = capabilities.bpf(_MAP_CREATE, attributes, 48)
    if fd >= 0:
        os.close(fd)
    return fd >= 0


def _lockdown(group: str) -> Check:
    text = _read("/sys/kernel/security/lockdown")
    if text is None:
        return Check(group, "lockdown", Status.OK, "none (the kernel has no such module)")
    mode = text.partition("[")[2].partition("]")[0]
    if mode == "confidentiality":
        return Check(
            group,
            "lockdown",
            Status.FAIL,
            "confidentiality: the kernel forbids tracing",
            "start the kernel with lockdown=integrity or lower (secure boot may set it)",
        )
    return Check(group, "lockdown", Status.OK, mode or "none")


def _tracefs(group: str) -> Check:
    folder = Path("/sys/kernel/tracing")
    remedy = "Type: mount -t tracefs tracefs /sys/kernel/tracing (--wire does it by itself as root)"
    try:
        if (folder / "events" / "syscalls").is_dir():
            return Check(group, "tracefs", Status.OK, f"at {folder}, with system calls")
        if (folder / "events").is_dir():
            return Check(
                group,
                "tracefs",
                Status.WARN,
                "without system calls: no request times",
                "a kernel with CONFIG_FTRACE_SYSCALLS",
            )
    except PermissionError:
        remedy = "CAP_DAC_READ_SEARCH, or mount it with another mode"
        return Check(group, "tracefs", Status.WARN, "may not be read: no request times (--wire)", remedy)
    return Check(group, "tracefs", Status.WARN, "not mounted: needed for request times (--wire)", remedy)


# -- rights -------------------------------------------------------------------------------------------------


def rights() -> Iterator[Check]:
    """Which capabilities there are, and which steps work with them, by trying."""
    group = "rights"
    have = capabilities.held()
    names = ", ".join(sorted(have)) or "none of those that tracing uses"
    if len(have) == len(capabilities.NUMBERS):
        names = "all"
    yield Check(group, "effective capabilities", Status.INFO, f"user {os.geteuid()}: {names}")
    lacking = {one.capability: one for one in capabilities.missing()}
    bpf = [one for name, one in lacking.items() if name in ("CAP_BPF", "CAP_PERFMON", "bpf(2)")]
    yield _either(
        group,
        "load programs",
        capabilities.may_load(),
        "tried (CAP_BPF, CAP_PERFMON)",
        "; ".join(f"{one.capability} is missing" for one in bpf),
        bpf[0].remedy if bpf else "",
        otherwise=Status.FAIL,
    )
    yield _place(group)
    yield _maps(group, have)
    try:
        os.stat(f"/proc/self/map_files/{os.listdir('/proc/self/map_files')[0]}")
        yield Check(group, "replaced libraries", Status.OK, "tried (map_files; CAP_CHECKPOINT_RESTORE)")
    except (OSError, IndexError):
        yield Check(
            group,
            "replaced libraries",
            Status.WARN,
            "map_files may not be followed: a library that was replaced on disk cannot be probed",
            "CAP_CHECKPOINT_RESTORE, and CAP_DAC_READ_SEARCH for other users' processes",
        )
    yield _either(
        group,
        "learning as another user",
        {"CAP_SETUID", "CAP_SETGID"} <= have,
        "the learning program runs as the traced process's user, without privileges",
        "layouts are learned only from libraries that no other user could have changed",
        "CAP_SETUID and CAP_SETGID",
    )


def _place(group: str) -> Check:
    """A probe on code of our own, by whichever way the kernel has."""
    name = "place probes"
    machine = platform.machine()
    if machine not in cost.CHEAP:
        return Check(group, name, Status.FAIL, f"nothing is known of {machine}")
    kinds = {cost.CHEAP[machine]: "emulated", cost.DEAR[machine]: "single-stepped"}
    try:
        costs = cost.measure(kinds, hits=1000, rounds=3)
    except attach.AttachError as error:
        lacking = [one.remedy for one in capabilities.missing()]
        return Check(group, name, Status.FAIL, str(error), lacking[0] if lacking else "see the lines above")
    shown = [
        f"{'refused' if cost is None else f'{cost / 1000:.2f} us'} {kinds[one]}"
        for one, cost in costs.items()
    ]
    return Check(group, name, Status.OK, f"tried; a hit costs {' and '.join(shown)}")


def _maps(group: str, have: frozenset[str]) -> Check:
    """The maps of other users' processes, until one may be read: some may be out of bounds for everybody."""
    name = "read other processes"
    refused = 0
    for pid in symbols.processes():
        try:
            if os.stat(f"/proc/{pid}").st_uid == os.geteuid() or not _read(f"/proc/{pid}/cmdline"):
                continue
            symbols.mapped_paths(pid)
            return Check(group, name, Status.OK, f"tried on process {pid} (CAP_SYS_PTRACE)")
        except symbols.ProcessGone:
            continue
        except OSError:
            refused += 1
    tried = f"refused by all {refused} of other users" if refused else "no other user's process to try it on"
    if "CAP_SYS_PTRACE" in have:
        if not refused:
            return Check(group, name, Status.OK, f"CAP_SYS_PTRACE is there; {tried}")
        remedy = "a security module or a user namespace forbids it: run outside of the container"
        return Check(group, name, Status.WARN, f"CAP_SYS_PTRACE is there, and yet {tried}", remedy)
    remedy = next(one.remedy for one in capabilities.missing() if one.capability == "CAP_SYS_PTRACE")
    return Check(group, name, Status.FAIL, f"CAP_SYS_PTRACE is missing; {tried}", remedy)


# -- what has to be installed -------------------------------------------------------------------------------


def software() -> Iterator[Check]:
    """Checks of the programs and libraries that tracing uses."""
    group = "software"
    yield from _loaders(group)
    try:
        capstone: Any = importlib.import_module("capstone")
        yield Check(group, "disassembler", Status.OK, f"capstone {capstone.__version__}")
    except ImportError:
        yield Check(
            group,
            "disassembler",
            Status.WARN,
            "capstone is missing: probes go on first instructions, which may cost ten times as much",
            "Type: pip install capstone",
        )
    yield _events(group)
    yield _delays(group)


def _loaders(group: str) -> Iterator[Check]:
    """Which way BPF programs come into the kernel, by trying; what the other way lacks matters only then."""
    name = "BPF programs"
    kind = loader.Kind.MULTI if capabilities.uprobe_multi() else loader.Kind.PROBE
    request = loader.Request(loader.STEPS, {"on_calibrate": kind}, {"ring_pages": 1})
    found = libbpf.library()
    yield _either(
        group,
        "libbpf",
        found is not None,
        "1.0 or newer: maps are read by it, and objects loaded",
        "libbpf (1.0 or newer) is missing",
        f"Type: sudo apt-get install {libbpf.PACKAGE}",
        otherwise=Status.FAIL,
    )
    served = ""
    if capabilities.may_load():
        try:
            with loader.load(request) as loaded:
                served = loaded.loader
                detail = f"tried: loaded by {_LOADERS[loaded.loader]}, since {loaded.why}"
            yield Check(group, name, Status.OK, detail)
        except loader.LoadError as error:
            first, *rest = str(error).splitlines()
            yield Check(group, name, Status.FAIL, first, " ".join(rest) or "see the lines below")
    # Where the compiled objects serve, bcc is not needed.
    otherwise = Status.INFO if served == "core" else Status.FAIL
    spare = "not needed here: " if served == "core" else ""
    try:
        version = getattr(loader_bcc.module(), "__version__", "")
        yield Check(group, "bcc", Status.OK, f"version {version} (python3-bpfcc)".replace("version  ", ""))
    except loader.LoadError as error:
        first, *rest = str(error).splitlines()
        yield Check(
            group, "bcc", otherwise, spare + first, " ".join(rest) or "sudo apt-get install python3-bpfcc"
        )
    try:
        headers_found = headers.prepare()
        yield Check(group, "kernel headers", Status.OK, f"{headers_found.path}: {headers_found.how}")
    except headers.HeadersMissing as error:
        first, *rest = str(error).splitlines()
        yield Check(group, "kernel headers", otherwise, spare + first, " ".join(rest))


def _events(group: str) -> Check:
    from probes.host.process_events import EventsUnavailable, ProcessEvents

    try:
        ProcessEvents().close()
    except EventsUnavailable as error:
        return Check(
            group,
            "process events",
            Status.WARN,
            f"{error}; /proc is listed every second instead",
            "run in the first network and process namespaces; before Linux 6.6 with CAP_NET_ADMIN",
        )
    return Check(group, "process events", Status.OK, "tried: new processes and ends are told by the kernel")


def _delays(group: str) -> Check:
    from probes.host import taskstats

    name = "host delays"
    if taskstats.accounting():
        return Check(group, name, Status.OK, "delay accounting is on")
    return Check(
        group,
        name,
        Status.WARN,
        "delay accounting is off: waiting for a CPU is known, for disk and memory not",
        "Type: sysctl kernel.task_delayacct=1",
    )


# -- processes ----------------------------------------------------------------------------------------------


def process(pid: int) -> tuple[Inventory | None, list[Check]]:
    """What can be probed in process `pid`, and what stands in the way."""
    group = f"process {pid}"
    try:
        inventory = take(pid)
    except (symbols.ProcessGone, PermissionError) as error:
        return None, [
            Check(group, "memory map", Status.FAIL, str(error), "name another process, or use sudo")
        ]
    if inventory.kind == "none":
        return inventory, [
            Check(
                group,
                "libraries",
                Status.FAIL,
                f"{inventory.comm} maps no AscendCL library that could be probed",
                "it does not use an NPU, or has not loaded AscendCL yet",
            )
        ]
    checks = []
    dear = [entry.symbol for entry in inventory.entries if entry.cost is not HitCost.EMULATED]
    kind = "FlexNPU's client" if inventory.kind == "client" else "CANN"
    there = len(inventory.entries)
    detail = f"{kind}: {there} of {there + len(inventory.missing)} of the plan, {len(dear)} single-stepped"
    checks.append(Check(group, "functions", Status.OK, detail))
    if inventory.kind == "cann":
        checks.append(_layout(group, pid))
    return inventory, checks


def _layout(group: str, pid: int) -> Check:
    learned = layouts.learn(pid)
    if learned.complete and learned.tensor is not None:
        where = os.path.basename(learned.library)
        detail = f"learned from {where} in {learned.took_s:.2f} s: {learned.tensor.describe()}"
        return Check(group, "layout of tensors", Status.OK, detail)
    return Check(
        group,
        "layout of tensors",
        Status.WARN,
        learned.reason,
        "shapes are read where objects are made instead, which costs a probe hit a tensor",
    )


# -- the self-test ------------------------------------------------------------------------------------------


def selftest(report: Callable[[str], None] = lambda _what: None) -> Iterator[Check]:
    """Trace programs of our own, see `probes.selftest.run`. Takes some seconds."""
    from probes.selftest import run as test
    from probes.steps.tracer import TracerError

    for kind, plan, what in (
        ("vendor", "default", "CANN, default plan"),
        ("vendor", "detail", "CANN, every launch"),
        ("client", "detail", "FlexNPU's client"),
    ):
        group = f"self-test: {what}"
        report(group)
        try:
            results = test.run(kind, plan)  # type: ignore[arg-type]
        except (test.SelfTestError, TracerError, attach.AttachError) as error:
            yield Check(group, "run", Status.FAIL, str(error), "see the lines above")
            continue
        for result in results:
            yield Check(
                group,
                result.what,
                Status.OK if result.ok else Status.FAIL,
                result.detail,
                "" if result.ok else "report it, with this output: the figures of this probe are wrong here",
            )


def failed(checks: list[Check]) -> bool:
    """Whether tracing does not work."""
    return any(check.status is Status.FAIL for check in checks)
