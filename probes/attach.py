"""Place a BPF program on an instruction of a mapped file, through a perf event of the kernel's uprobe unit.

The probe lives as long as the file descriptor: it is gone when the tracer ends, whichever way, kill -9
included. (The older way, writing to tracefs' uprobe_events, leaves probes behind; it is not used.)
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
from pathlib import Path

_UNIT = Path("/sys/bus/event_source/devices/uprobe")
_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_IOC_ENABLE = 0x2400
_IOC_SET_BPF = 0x40042408
_FLAG_FD_CLOEXEC = 8


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


class AttachError(RuntimeError):
    """A probe could not be placed; the message says where and what to do."""


_libc = ctypes.CDLL(None, use_errno=True)


def supported() -> bool:
    return (_UNIT / "type").is_file() and platform.machine() in _PERF_EVENT_OPEN


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
            ctypes.c_int(pid),
            ctypes.c_int(-1),
            ctypes.c_int(-1),
            ctypes.c_ulong(_FLAG_FD_CLOEXEC),
        )
        if fd < 0:
            code = ctypes.get_errno()
            raise AttachError(f"cannot probe {path}+{offset:#x} in process {pid}: {_explain(code)}")
        self._fd: int = fd
        try:
            fcntl.ioctl(fd, _IOC_SET_BPF, program_fd)
            fcntl.ioctl(fd, _IOC_ENABLE, 0)
        except OSError as error:
            os.close(fd)
            where = f"{path}+{offset:#x} in process {pid}"
            raise AttachError(f"cannot bind a BPF program to {where}: {_explain(error.errno or 0)}") from None

    def close(self) -> None:
        """Remove the probe; the kernel takes about 0.1 s for it. May be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _explain(code: int) -> str:
    permission = "not permitted (run as root, or with CAP_PERFMON and CAP_BPF; see also kernel lockdown)"
    hint = {
        errno.EPERM: permission,
        errno.EACCES: permission,
        errno.ESRCH: "no such process",
        errno.ENOENT: "the file is gone",
        errno.EMFILE: "too many open files (raise `ulimit -n`)",
        errno.EINVAL: "the kernel refuses a probe on this instruction or file",
    }.get(code)
    return f"{os.strerror(code)}: {hint}" if hint else os.strerror(code)
