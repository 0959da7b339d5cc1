"""What a process has in its memory, read from outside. Needs CAP_SYS_PTRACE for other users' processes."""

from __future__ import annotations

import os

from probes import symbols
from probes.closing import Closing


def address_of(pid: int, library: symbols.Mapped, offset: int, size: int) -> int | None:
    """Where process `pid` has the `size` bytes at `offset` of the file `library`; None: nowhere.

    Of data that the program writes to that is its private copy. Raises OSError.
    """
    inode = f" {library.inode} "
    with open(f"/proc/{pid}/maps", errors="surrogateescape") as maps:
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


class Memory(Closing):
    """The memory that process `pid` has now. Raises OSError where it may not be read.

    Of a process that ends or executes another program nothing is read any more.
    """

    def __init__(self, pid: int) -> None:
        self._file = open(f"/proc/{pid}/mem", "rb", buffering=0)  # noqa: SIM115 (closed by `close`)

    def read(self, at: int, size: int) -> bytes | None:
        """`size` bytes at `at`; None: there are not as many, or none any more."""
        try:
            data = os.pread(self._file.fileno(), size, at)
        except OSError:
            return None
        return data if len(data) == size else None

    def close(self) -> None:
        self._file.close()
