"""What /proc says of a process.

Once the first thread of a process has ended, /proc/PID shows neither memory nor files nor namespaces,
though the process lives on in its other threads. /proc/TID of one of those shows them, although no
listing of /proc names it. So paths in /proc are made with `folder_of`, and system calls that read a
process take `thread_of`.
"""

from __future__ import annotations

import os
from pathlib import Path


def _fields(pid: int) -> list[str] | None:
    """From the state on (field 3 of /proc/PID/stat, see proc(5)); None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _has_ended(fields: list[str]) -> bool:
    return fields[0] in "ZX"


def thread_of(pid: int) -> int | None:
    """A thread of process `pid` that runs: the first one, unless it has ended. None when none is left."""
    fields = _fields(pid)
    if fields is None:
        return None
    if not _has_ended(fields):
        return pid
    try:
        threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return None
    for thread in threads:
        fields = _fields(thread)
        if fields is not None and not _has_ended(fields):
            return thread
    return None


def folder_of(pid: int) -> str:
    """Where /proc shows what process `pid` has, as long as one of its threads runs."""
    return f"/proc/{thread_of(pid) or pid}"


def comm_of(pid: int, tid: int | None = None) -> str:
    """The name of process `pid`, or of its thread `tid`; empty when it is gone."""
    path = f"/proc/{pid}/comm" if tid is None else f"/proc/{pid}/task/{tid}/comm"
    try:
        return Path(path).read_text(errors="replace").rstrip("\n")
    except OSError:
        return ""


def start_time_of(pid: int) -> int | None:
    """When `pid` started, in clock ticks since boot (tells apart two processes that had the same id).

    None when no thread of it runs.
    """
    fields = _fields(pid)
    if fields is None or (_has_ended(fields) and thread_of(pid) is None):
        return None
    return int(fields[19])
