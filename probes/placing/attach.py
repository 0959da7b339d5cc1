"""Place BPF programs on instructions of a mapped file, for one process alone.

Two ways, chosen by what the kernel has (`capabilities.uprobe_multi` asks it):

- a *uprobe_multi* link (Linux 6.6): one program on any number of instructions of one file, made and removed
  at once, with a cookie for each instruction;
- a perf event of the kernel's uprobe unit (Linux 4.17), one a probe.

Either lives as long as its file descriptor: it is gone when the tracer ends, whichever way, kill -9 included.
(The oldest way, writing to tracefs' uprobe_events, leaves probes behind; it is not used.)
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flexnpu.common.processes import thread_of

_UNIT = Path("/sys/bus/event_source/devices/uprobe")
_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_BPF = {"x86_64": 321, "aarch64": 280}
_IOC_ENABLE = 0x2400
_IOC_SET_BPF = 0x40042408
_FLAG_FD_CLOEXEC = 8

# enum bpf_cmd and bpf_attach_type of the kernel's interface.
_RAW_TRACEPOINT_OPEN, _LINK_CREATE, _ENABLE_STATS = 17, 28, 32
_TYPE_TRACEPOINT = 2  # PERF_TYPE_TRACEPOINT
TRACE_UPROBE_MULTI = 48
"""The expected attach type that a program must be loaded with for a uprobe_multi link."""
TRACE_UPROBE_SESSION = 57
"""The same for one whose program runs at a function's entry, and at its return if it then returned 0 (Linux
6.13)."""
_F_RETURN = 1


class _Attr(ctypes.Structure):
    """The first 72 bytes of struct perf_event_attr (PERF_ATTR_SIZE_VER1), of which a uprobe uses little."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("config", ctypes.c_uint64),
        ("sample_period", ctypes.c_uint64),
        ("sample_type", ctypes.c_uint64),
        ("read_format", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("wakeup_events", ctypes.c_uint32),
        ("bp_type", ctypes.c_uint32),
        ("path", ctypes.c_uint64),  # config1
        ("offset", ctypes.c_uint64),  # config2
    )


class _MultiAttr(ctypes.Structure):
    """The part of union bpf_attr that makes a uprobe_multi link."""

    _fields_ = (
        ("program", ctypes.c_uint32),
        ("target", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("path", ctypes.c_uint64),
        ("offsets", ctypes.c_uint64),
        ("ref_ctr_offsets", ctypes.c_uint64),
        ("cookies", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
        ("multi_flags", ctypes.c_uint32),
        ("pid", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


class _StatsAttr(ctypes.Structure):
    """The part of union bpf_attr that says what to measure: BPF_STATS_RUN_TIME."""

    _fields_ = (("type", ctypes.c_uint32),)


class _RawTracepointAttr(ctypes.Structure):
    """The part of union bpf_attr that opens a raw tracepoint."""

    _fields_ = (("name", ctypes.c_uint64), ("program", ctypes.c_uint32), ("pad", ctypes.c_uint32))


class AttachError(RuntimeError):
    """A probe could not be placed; the message says where and what to do."""


@dataclass(frozen=True)
class Point:
    """An instruction to probe."""

    offset: int
    """In the file."""
    cookie: int = 0
    """What the program gets by bpf_get_attach_cookie; only with uprobe_multi."""
    semaphore: int = 0
    """File offset of a 16-bit word in writable data, one higher while the probe is there; 0: none."""


class Probe(Protocol):
    """One or more probes, removed by `close`."""

    def close(self) -> None:
        """Remove the probes."""


_libc = ctypes.CDLL(None, use_errno=True)


def supported() -> bool:
    """Whether the kernel has perf uprobes, the older of the two ways."""
    return (_UNIT / "type").is_file() and platform.machine() in _PERF_EVENT_OPEN


def _bpf(command: int, attr: ctypes.Structure) -> int:
    """The bpf system call: a file descriptor. Raises OSError."""
    number = _BPF.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    fd = _libc.syscall(
        ctypes.c_long(number),
        ctypes.c_int(command),
        ctypes.byref(attr),
        ctypes.c_uint(ctypes.sizeof(attr)),
    )
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(fd)


def enable_run_times() -> int:
    """Have the kernel measure how long BPF programs run, as long as the file descriptor that is returned is
    open; -1 where it refuses."""
    try:
        return _bpf(_ENABLE_STATS, _StatsAttr())
    except OSError:
        return -1


def told_of(fd: int) -> dict[str, str]:
    """What the kernel tells of a program, link or map of ours, by name: /proc/self/fdinfo."""
    with open(f"/proc/self/fdinfo/{fd}") as file:
        pairs = (line.split(":", 1) for line in file if ":" in line)
        return {name: value.strip() for name, value in pairs}


class MultiUprobe:
    """A program on several instructions of the file `path` for process `pid` alone: one link."""

    def __init__(
        self,
        program_fd: int,
        path: str,
        points: Sequence[Point],
        pid: int,
        *,
        on_return: bool = False,
        session: bool = False,
    ) -> None:
        if thread_of(pid) not in (pid, None):
            # The kernel would take the link and place nothing: it asks the first thread for its memory.
            raise AttachError(
                f"process {pid} goes on without its first thread, by which this kernel finds where to place "
                "probes: attach before that thread ends"
            )
        words = ctypes.c_uint64 * len(points)
        name = ctypes.create_string_buffer(os.fsencode(path))
        offsets = words(*(point.offset for point in points))
        cookies = words(*(point.cookie for point in points))
        counters = words(*(point.semaphore for point in points))
        attr = _MultiAttr(
            program=program_fd,
            attach_type=TRACE_UPROBE_SESSION if session else TRACE_UPROBE_MULTI,
            path=ctypes.addressof(name),
            offsets=ctypes.addressof(offsets),
            cookies=ctypes.addressof(cookies),
            ref_ctr_offsets=(ctypes.addressof(counters) if any(point.semaphore for point in points) else 0),
            count=len(points),
            multi_flags=_F_RETURN if on_return else 0,
            pid=pid,
        )
        try:
            self._fd = _bpf(_LINK_CREATE, attr)
        except OSError as error:
            where = f"{path} ({len(points)} places, the first at {points[0].offset:#x}) in process {pid}"
            raise AttachError(f"cannot probe {where}: {_explain(error.errno or 0)}") from None

    def close(self) -> None:
        """Remove the probes; the kernel takes one grace period (some 10 ms). May be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _return_bit() -> int:
    """The bit of `config` that asks for the function's return, as the kernel describes it ("config:0")."""
    text = (_UNIT / "format" / "retprobe").read_text().strip()
    return 1 << int(text.removeprefix("config:"))


def _semaphore_bits(offset: int) -> int:
    """`offset` in the bits of `config` that the kernel describes for it ("config:32-63")."""
    path = _UNIT / "format" / "ref_ctr_offset"
    if not path.is_file():
        raise AttachError("this kernel raises no semaphores (Linux 4.20 or newer is needed)")
    first, _, last = path.read_text().strip().removeprefix("config:").partition("-")
    if offset >= 1 << (int(last) - int(first) + 1):
        raise AttachError(f"the semaphore at {offset:#x} lies too far in its file")
    return offset << int(first)


class Uprobe:
    """One probe: entry (or return) at `offset` in the file `path`, for process `pid` alone.

    `semaphore`: offset in the file of a 16-bit word of the process's data, which is one higher while the
    probe is there; 0: none.
    """

    def __init__(
        self,
        program_fd: int,
        path: str,
        offset: int,
        pid: int,
        *,
        on_return: bool = False,
        semaphore: int = 0,
    ) -> None:
        if not supported():
            raise AttachError(
                "this kernel has no perf uprobe unit (/sys/bus/event_source/devices/uprobe); "
                "Linux 4.17 or newer on x86-64 or aarch64 is needed"
            )
        name = ctypes.create_string_buffer(os.fsencode(path))
        attr = _Attr(
            type=int((_UNIT / "type").read_text()),
            size=ctypes.sizeof(_Attr),
            config=(_return_bit() if on_return else 0) | (_semaphore_bits(semaphore) if semaphore else 0),
            path=ctypes.addressof(name),
            offset=offset,
        )
        fd = _libc.syscall(
            ctypes.c_long(_PERF_EVENT_OPEN[platform.machine()]),
            ctypes.byref(attr),
            ctypes.c_int(thread_of(pid) or pid),
            ctypes.c_int(-1),
            ctypes.c_int(-1),
            ctypes.c_ulong(_FLAG_FD_CLOEXEC),
        )
        where = f"{path}+{offset:#x} in process {pid}"
        if fd < 0:
            raise AttachError(f"cannot probe {where}: {_explain(ctypes.get_errno())}")
        self._fd: int = fd
        try:
            fcntl.ioctl(fd, _IOC_SET_BPF, program_fd)
            fcntl.ioctl(fd, _IOC_ENABLE, 0)
        except OSError as error:
            os.close(fd)
            raise AttachError(f"cannot bind a BPF program to {where}: {_explain(error.errno or 0)}") from None

    def close(self) -> None:
        """Remove the probe; the kernel takes about 0.1 s for it. May be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Tracepoint:
    """A program on the tracepoint `number` (`id` in its folder of tracefs), for all processes."""

    def __init__(self, program_fd: int, number: int) -> None:
        attr = _Attr(
            type=_TYPE_TRACEPOINT, size=ctypes.sizeof(_Attr), config=number, sample_period=1, wakeup_events=1
        )
        self._fd: int = _libc.syscall(
            ctypes.c_long(_PERF_EVENT_OPEN[platform.machine()]),
            ctypes.byref(attr),
            ctypes.c_int(-1),
            ctypes.c_int(0),
            ctypes.c_int(-1),
            ctypes.c_ulong(_FLAG_FD_CLOEXEC),
        )
        if self._fd < 0:
            raise AttachError(f"cannot probe tracepoint {number}: {_explain(ctypes.get_errno())}")
        try:
            fcntl.ioctl(self._fd, _IOC_SET_BPF, program_fd)
            fcntl.ioctl(self._fd, _IOC_ENABLE, 0)
        except OSError as error:
            os.close(self._fd)
            raise AttachError(
                f"cannot bind a BPF program to tracepoint {number}: {_explain(error.errno or 0)}"
            ) from None

    def close(self) -> None:
        """Remove it. May be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class RawTracepoint:
    """A program on the tracepoint `name`, whatever else runs there, for all processes."""

    def __init__(self, program_fd: int, name: str) -> None:
        text = ctypes.create_string_buffer(name.encode())
        try:
            self._fd = _bpf(_RAW_TRACEPOINT_OPEN, _RawTracepointAttr(ctypes.addressof(text), program_fd))
        except OSError as error:
            raise AttachError(f"cannot probe tracepoint {name}: {_explain(error.errno or 0)}") from None

    def close(self) -> None:
        """Remove it. May be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def place(
    program_fd: int,
    path: str,
    points: Sequence[Point],
    pid: int,
    *,
    multi: bool,
    on_return: bool = False,
    session: bool = False,
) -> list[Probe]:
    """Place one program on several instructions of one file: a link where `multi`, else a perf event each.

    The program must have been loaded for that way (`TRACE_UPROBE_MULTI`, `TRACE_UPROBE_SESSION`; the latter
    is a link always). Raises `AttachError`.
    """
    if multi or session:
        return [MultiUprobe(program_fd, path, points, pid, on_return=on_return, session=session)]
    made: list[Probe] = []
    try:
        for point in points:
            made.append(
                Uprobe(program_fd, path, point.offset, pid, on_return=on_return, semaphore=point.semaphore)
            )
    except AttachError:
        remove(made)
        raise
    return made


def remove(probes: Iterable[Probe]) -> None:
    """Close all of `probes`, at once: each waits for the kernel, and they wait together."""
    threads = [threading.Thread(target=probe.close, name="remove probes") for probe in probes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _explain(code: int) -> str:
    permission = "not permitted (run as root, or with CAP_PERFMON and CAP_BPF; see also kernel lockdown)"
    hint = {
        errno.EPERM: permission,
        errno.EACCES: permission,
        errno.ESRCH: "no such process",
        errno.ENOENT: "the file is gone",
        errno.EMFILE: "too many open files (raise `ulimit -n`)",
        # With another reference counter on the same instruction it is refused; bcc tools set a random one.
        errno.EINVAL: "the kernel refuses a probe on this instruction or file; if another tool (funclatency, "
        "bpftrace) probes the same function, end it first",
    }.get(code)
    return f"{os.strerror(code)}: {hint}" if hint else os.strerror(code)
