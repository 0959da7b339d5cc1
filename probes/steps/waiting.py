"""Steps that FlexNPU's client has not told yet, because only the next one's opening says that they are over.

They stand in a table in the program's memory (``flexnpu_step_waiting``), so that telling of them costs the
program nothing. A reader needs them where a lane goes silent.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import Any

from probes.host import memory
from probes.placing import symbols
from probes.steps import client_steps
from probes.steps.raw import TOLD

TABLE = "flexnpu_step_waiting"
_MOST = 1024
"""Entries that are believed."""


RawTable: Any = TOLD.struct("flexnpu_step_table")
RawEntry: Any = TOLD.struct("flexnpu_step_entry")


class Waiting:
    """The table of process `pid`, which `definition` says where to find. Raises OSError where the process's
    memory may not be read."""

    def __init__(self, pid: int, definition: symbols.Definition) -> None:
        self._pid = pid
        self._last: list[client_steps.ClientStep] = []
        at = memory.address_of(pid, definition.library, definition.offset, ctypes.sizeof(RawTable))
        if at is None:
            raise ProcessLookupError(f"process {pid} has no {TABLE} in its memory")
        self._at = at
        memory.read(pid, at, 1)

    def read(self) -> list[client_steps.ClientStep]:
        """What stands in it: of each lane its last step, told meanwhile or not. Of a process that is gone,
        what was there at the last look."""
        with contextlib.suppress(OSError):
            table = RawTable.from_buffer_copy(memory.read(self._pid, self._at, ctypes.sizeof(RawTable)))
            # A later version's entries are longer, and hold their counts elsewhere.
            if table.size == ctypes.sizeof(RawEntry) and table.entries <= _MOST:
                data = memory.read(self._pid, table.entry, table.size * table.entries)
                self._last = steps_in(self._pid, data)
        return self._last


def steps_in(pid: int, data: bytes) -> list[client_steps.ClientStep]:
    """The steps in copied entries. One that was being written is left out: its lane is not silent."""
    steps = []
    size = ctypes.sizeof(RawEntry)
    for at in range(0, len(data) - size + 1, size):
        entry = RawEntry.from_buffer_copy(data, at)
        if entry.record.version and entry.begun == entry.done:
            with contextlib.suppress(client_steps.ClientRecordError):
                steps.append(client_steps.step_of(pid, entry.record))
    return steps
