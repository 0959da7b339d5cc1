"""What /proc says of a process by itself."""

from __future__ import annotations

from pathlib import Path


def comm_of(pid: int, tid: int | None = None) -> str:
    """The name of process `pid`, or of its thread `tid`; empty when it is gone."""
    path = f"/proc/{pid}/comm" if tid is None else f"/proc/{pid}/task/{tid}/comm"
    try:
        return Path(path).read_text(errors="replace").rstrip("\n")
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
