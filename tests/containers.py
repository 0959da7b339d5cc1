"""Commands in PID namespaces of their own."""

from __future__ import annotations

from pathlib import Path

CONTAINER = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
"""What a command is behind that shall have one."""


def child_of(pid: int) -> int:
    """The one child of a process: of unshare, the command."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())
