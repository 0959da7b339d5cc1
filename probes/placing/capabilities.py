"""Which rights tracing needs, which this process has, and what each is for.

What was found out by trying, on Linux 6.18 as user nobody with ambient capabilities, attaching to another
user's process:

    CAP_BPF, CAP_PERFMON     load the BPF programs (CAP_SYS_ADMIN holds both)
    CAP_SYS_PTRACE           read another user's /proc/PID/maps and reach its root
    CAP_SYS_ADMIN            place probes through perf's uprobe unit, which asks for it and nothing less.
                             Links of many uprobes (uprobe_multi, Linux 6.6) do not: with them the three
                             above are enough.

and what is better with more:

    CAP_DAC_READ_SEARCH      open libraries in folders that others may not enter; read tracefs, for the
                             wire's tracepoints; with CAP_CHECKPOINT_RESTORE open a library that was
                             replaced on disk, by /proc/PID/map_files
    CAP_SETUID, CAP_SETGID   run the learning program as the traced process's user
    CAP_NET_ADMIN            the kernel's process events (Linux before 6.6) and task statistics

Nothing is inferred that can be tried: `missing` loads a program and asks the kernel for what it will do.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path

NUMBERS = {
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_RESOURCE": 24,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
    "CAP_CHECKPOINT_RESTORE": 40,
}

_BPF = {"x86_64": 321, "aarch64": 280}
_PROG_LOAD, _LINK_CREATE = 5, 28
_KPROBE = 2
_UPROBE_MULTI, _UPROBE_SESSION = 48, 57
# r0 = 0; exit
_PROGRAM = struct.pack("<BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)


@dataclass(frozen=True)
class Missing:
    """A right that is not there, what it is for, and what to do about it."""

    capability: str
    step: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.capability} is missing, needed to {self.step}. {self.remedy}"


def held(pid: int | str = "self") -> frozenset[str]:
    """The capabilities of `NUMBERS` that a process may use at this moment (its effective set)."""
    for line in Path(f"/proc/{pid}/status").read_text(errors="surrogateescape").splitlines():
        if line.startswith("CapEff:"):
            bits = int(line.split()[1], 16)
            return frozenset(name for name, number in NUMBERS.items() if bits >> number & 1)
    return frozenset()


def bpf(command: int, attributes: bytes, size: int) -> int:
    """The system call bpf(2): a file descriptor, or minus the error number."""
    number = _BPF.get(platform.machine())
    if number is None:
        return -errno.ENOSYS
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(attributes.ljust(max(size, 128), b"\0"))
    result: int = libc.syscall(number, command, buffer, size)
    return result if result >= 0 else -ctypes.get_errno()


def load_nothing(attach_type: int = 0) -> int:
    """Load a program that does nothing; a file descriptor, or minus the error number."""
    code = ctypes.create_string_buffer(_PROGRAM)
    licence = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "<IIQQIIQII16sII",
        _KPROBE,
        len(_PROGRAM) // 8,
        ctypes.addressof(code),
        ctypes.addressof(licence),
        *(0, 0, 0, 0, 0),
        b"",
        0,
        attach_type,
    )
    return bpf(_PROG_LOAD, attributes, len(attributes))


def may_load() -> bool:
    """Whether the kernel loads a tracing program for this process."""
    program = load_nothing()
    if program >= 0:
        os.close(program)
    return program >= 0


def uprobe_multi() -> bool:
    """Whether the kernel places many uprobes by one link. Asked of the kernel, which may refuse it for want
    of rights: False then."""
    return _links(_UPROBE_MULTI)


def uprobe_session() -> bool:
    """Whether a link's program may say, at a function's entry, if its return is to be probed."""
    return _links(_UPROBE_SESSION)


@cache
def _links(attach_type: int) -> bool:
    program = load_nothing(attach_type)
    if program < 0:
        return False
    try:
        # A folder cannot be probed. A kernel that knows such links says so; another does not get that far.
        path = ctypes.create_string_buffer(b"/")
        offsets = (ctypes.c_uint64 * 1)(0)
        attributes = struct.pack(
            "<IIIIQQQQIIII",
            program,
            *(0, attach_type, 0),
            ctypes.addressof(path),
            ctypes.addressof(offsets),
            *(0, 0, 1, 0, 0, 0),
        )
        link = bpf(_LINK_CREATE, attributes, len(attributes))
        if link >= 0:
            os.close(link)
        return link in (-errno.EBADF, -errno.EISDIR)
    finally:
        os.close(program)


def _setcap(names: str) -> str:
    return (
        "Type: sudo flexnpu-probe ..., or give a service these: "
        f"AmbientCapabilities={names} (systemd) or setpriv --ambient-caps"
    )


def missing(*, multi: bool | None = None) -> list[Missing]:
    """What keeps this process from tracing other users' processes; empty when nothing does.

    `multi`: whether probes are placed by uprobe_multi links alone; by default, whether the kernel has them.
    """
    have = held()
    found = []
    needed = "CAP_BPF CAP_PERFMON CAP_SYS_PTRACE"
    if not may_load():
        lacking = [name for name in ("CAP_BPF", "CAP_PERFMON") if name not in have]
        if "CAP_SYS_ADMIN" in have or not lacking:
            found.append(
                Missing(
                    "bpf(2)",
                    "load BPF programs",
                    "The capabilities are there and the kernel refuses: lockdown "
                    "(/sys/kernel/security/lockdown) or a container's seccomp profile forbids it.",
                )
            )
        else:
            found += [Missing(name, "load BPF programs", _setcap(needed)) for name in lacking]
    elif not (uprobe_multi() if multi is None else multi) and "CAP_SYS_ADMIN" not in have:
        found.append(
            Missing(
                "CAP_SYS_ADMIN",
                "place probes on a kernel without uprobe_multi links (before Linux 6.6)",
                _setcap(needed + " CAP_SYS_ADMIN"),
            )
        )
    if "CAP_SYS_PTRACE" not in have:
        found.append(
            Missing("CAP_SYS_PTRACE", "read the memory maps of other users' processes", _setcap(needed))
        )
    return found


def explain(lacking: list[Missing]) -> str:
    """What `missing` found, one line a right, and what to type."""
    remedies = dict.fromkeys(one.remedy for one in lacking)
    lines = [f"{one.capability} is missing, needed to {one.step}." for one in lacking]
    return "\n".join([*lines, *remedies])
