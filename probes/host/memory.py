"""What a process has in its memory, read from outside. Needs CAP_SYS_PTRACE for other users' processes."""

from __future__ import annotations

import ctypes
import errno
import os

from flexnpu.common.processes import folder_of, thread_of
from probes.placing import symbols


def address_of(pid: int, library: symbols.Mapped, offset: int, size: int) -> int | None:
    """Where process `pid` has the `size` bytes at `offset` of the file `library`; None: nowhere.

    Of data that the program writes to that is its private copy. Raises OSError.
    """
    inode = f" {library.inode} "
    with open(f"{folder_of(pid)}/maps", errors="surrogateescape") as maps:
        for line in maps:
            fields = line.split(maxsplit=5)
            if len(fields) < 6 or inode not in f" {fields[4]} ":
                continue
            start, end = (int(part, 16) for part in fields[0].split("-"))
            at = start + offset - int(fields[2], 16)
            # Code is where probes go; what the program writes to is a private copy of the file.
            if start <= at and at + size <= end and ("w" in fields[1] or "x" in fields[1]):
                return at
    return None


class _Span(ctypes.Structure):
    """``struct iovec``."""

    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


_read = ctypes.CDLL(None, use_errno=True).process_vm_readv
_read.restype = ctypes.c_ssize_t
_read.argtypes = (
    ctypes.c_int,
    *(ctypes.POINTER(_Span), ctypes.c_ulong) * 2,
    ctypes.c_ulong,
)


def read(pid: int, at: int, size: int) -> bytes:
    """`size` bytes at address `at` of process `pid`, which is not stopped meanwhile.

    Raises OSError: there is no such process, it has not as much there, or it may not be read.
    """
    # Not /proc/PID/mem, whose owner alone may open it: CAP_SYS_PTRACE would not do.
    data = ctypes.create_string_buffer(size)
    here, there = _Span(ctypes.addressof(data), size), _Span(at, size)
    got = _read(thread_of(pid) or pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    if got != size:
        error = ctypes.get_errno() if got < 0 else errno.EFAULT
        raise OSError(error, f"{os.strerror(error)}: process {pid}, {size} bytes at {at:#x}")
    return data.raw
