"""How many files a program may have open."""

from __future__ import annotations

import contextlib
import os
import resource


def allow_many() -> None:
    """Raise this process's limit as far as it may be raised without a right.

    Most systems start programs with a soft limit of 1,024, for programs that still call select(2). One that
    watches hundreds of processes, with a descriptor or more for each, needs more.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def left() -> int:
    """How many more files this process may open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - len(os.listdir("/proc/self/fd"))
