"""Where an opaque aclTensor keeps its dimensions and data type, and an aclIntArray its values.

CANN does not document its objects, and their inside changes between releases. So nothing is assumed here: a
small program of our own (`probes/learn.py`) loads the very library that the traced process maps, makes tensors
and arrays of known content through its public functions, and looks for that content. `learn` runs it and gives
the layouts that explained every sample, or the reason why there are none.

A layout leads from the address of an object to its values in at most three loads, so that a BPF program can
follow it (`bpf/layout.h`):

    base   = object,                     or the pointer at `hop` of the object
    values = base + offset               (INLINE)
           = the pointer at base + offset (POINTER)
           = INLINE up to `inline_max` values, else the pointer at base + `spill` (SMALL)
    count  = `width` bytes at base + `count`, or (pointer at base + `end` - values) / 8
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from enum import IntEnum


class Kind(IntEnum):
    """Where the values of a vector are; the numbers are those of `bpf/layout.h`."""

    INLINE = 0
    POINTER = 1
    SMALL = 2


@dataclass(frozen=True)
class VectorLayout:
    """Where an object keeps a vector of int64. Offsets are in bytes."""

    kind: Kind
    offset: int
    """Of the values (INLINE, SMALL) or of the pointer to them (POINTER), from the base."""
    count: int | None = None
    """Offset of the number of values from the base, or None where an end pointer tells it."""
    width: int = 4
    """Bytes of the count: 1, 2 or 4 (of a count of 8 bytes the lower 4 are read)."""
    end: int | None = None
    """Offset of the pointer past the last value from the base; None where `count` tells it."""
    hop: int | None = None
    """Offset in the object of the pointer to the base; None: the object is the base."""
    inline_max: int = 0
    """SMALL: the most values that are kept inline."""
    spill: int = 0
    """SMALL: offset from the base of the pointer to more values than that."""

    def describe(self) -> str:
        """In words, for people: ``dims inline at 24, count (4 bytes) at 16``."""
        base = "" if self.hop is None else f"behind the pointer at {self.hop}: "
        where = {
            Kind.INLINE: f"inline at {self.offset}",
            Kind.POINTER: f"by the pointer at {self.offset}",
            Kind.SMALL: f"inline at {self.offset} up to {self.inline_max}, else by the pointer at {self.spill}",
        }[self.kind]
        number = f"end pointer at {self.end}" if self.count is None else f"count at {self.count}"
        return f"{base}values {where}, {number}"


IntArrayLayout = VectorLayout
"""Of an aclIntArray: its values are all that it has."""


@dataclass(frozen=True)
class TensorLayout:
    """Where an aclTensor keeps its view dimensions and its data type."""

    dims: VectorLayout
    dtype: int
    """Offset of the data type (aclDataType) from its base."""
    dtype_width: int = 4
    """Bytes of the data type: 1, 2 or 4."""
    dtype_hop: int | None = None
    """Offset in the object of the pointer to the data type's base; None: the object is the base."""

    def describe(self) -> str:
        base = "" if self.dtype_hop is None else f"behind the pointer at {self.dtype_hop}: "
        return f"dims: {self.dims.describe()}; dtype: {base}at {self.dtype}"


@dataclass(frozen=True)
class Learned:
    """What `learn` found for one process."""

    tensor: TensorLayout | None
    int_array: IntArrayLayout | None
    library: str
    """The library that was asked, as the process names it; empty when there is none."""
    reason: str = ""
    """Why something above is None, in words; empty when nothing is."""
    took_s: float = 0.0

    @property
    def complete(self) -> bool:
        return self.tensor is not None and self.int_array is not None


class _Vector(ctypes.Structure):
    """struct vector_layout of bpf/layout.h. -1 stands for None."""

    _fields_ = (
        ("kind", ctypes.c_uint32),
        ("offset", ctypes.c_int32),
        ("hop", ctypes.c_int32),
        ("count", ctypes.c_int32),
        ("width", ctypes.c_uint32),
        ("end", ctypes.c_int32),
        ("inline_max", ctypes.c_uint32),
        ("spill", ctypes.c_int32),
    )


class Packed(ctypes.Structure):
    """struct layout of bpf/layout.h: the value of its map, whose key is the process's id (tgid)."""

    _fields_ = (
        ("has_tensor", ctypes.c_uint32),
        ("has_int_array", ctypes.c_uint32),
        ("dims", _Vector),
        ("dtype", ctypes.c_int32),
        ("dtype_width", ctypes.c_uint32),
        ("dtype_hop", ctypes.c_int32),
        ("pad", ctypes.c_uint32),
        ("ints", _Vector),
    )


def _word(value: int | None) -> int:
    return -1 if value is None else value


def _vector(layout: VectorLayout) -> _Vector:
    return _Vector(
        kind=int(layout.kind),
        offset=layout.offset,
        hop=_word(layout.hop),
        count=_word(layout.count),
        width=layout.width,
        end=_word(layout.end),
        inline_max=layout.inline_max,
        spill=layout.spill,
    )


def pack(learned: Learned) -> Packed:
    """The form in which BPF programs read it."""
    packed = Packed()
    if learned.tensor is not None:
        packed.has_tensor = 1
        packed.dims = _vector(learned.tensor.dims)
        packed.dtype = learned.tensor.dtype
        packed.dtype_width = learned.tensor.dtype_width
        packed.dtype_hop = _word(learned.tensor.dtype_hop)
    if learned.int_array is not None:
        packed.has_int_array = 1
        packed.ints = _vector(learned.int_array)
    return packed


def learn(pid: int) -> Learned:
    """Learn the layouts of the objects that process `pid` makes: within 5 s, and once a library.

    Never raises for what the library or the process does: `Learned.reason` says what failed. Raises
    `symbols.ProcessGone` or PermissionError when the process's maps cannot be read.
    """
    return Learned(None, None, "", "the learning program is not there yet")
