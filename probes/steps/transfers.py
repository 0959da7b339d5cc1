"""Records of memory that moved from one engine to another, as `bpf/transfers.c` makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from probes.steps.raw import TOLD

_Record: Any = TOLD.struct("transfer_record")
_NUMBER = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Transfer:
    """Memory that `pid` moved, from its call to its return, in ns of CLOCK_MONOTONIC."""

    pid: int
    start: int
    end: int


def is_transfer(data: bytes) -> bool:
    """Whether a record of the ring is one: its first word bears a mark that no time has."""
    return len(data) >= 8 and data[7] & 0xC0 == 0x40


def decode(data: bytes) -> Transfer:
    """Decode one record."""
    raw = _Record.from_buffer_copy(data)
    return Transfer(raw.tgid & _NUMBER, raw.t_start, raw.t_end)
