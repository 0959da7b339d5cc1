"""The first thread of a process ends, and the others go on."""

from __future__ import annotations

import ctypes
import platform
import time
from pathlib import Path

_EXIT = {"x86_64": 60, "aarch64": 93}
"""The system call `exit`, which ends the calling thread alone (the C library's function ends all)."""


def leave_process_to_others() -> None:
    """Called by the first thread: does not return."""
    ctypes.CDLL(None).syscall(ctypes.c_long(_EXIT[platform.machine()]), ctypes.c_long(0))


def wait_for_zombie(pid: int, seconds: float = 60.0) -> None:
    """Until the first thread of `pid` has ended."""
    stat = Path(f"/proc/{pid}/stat")
    deadline = time.monotonic() + seconds
    while stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)
