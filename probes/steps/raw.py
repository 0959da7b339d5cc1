"""What the records of the kernel side and those of FlexNPU's client have in common."""

from __future__ import annotations

import ctypes
from typing import Any

from probes.steps.phases import ROLES, Lengths

ENDED_BY = ("sync", "embedding", "graph", "gap", "none")
DIMS = 4
"""Dimensions of a shape that a record has room for."""
ARRAYS = 3
"""Arrays of lengths that it has room for."""


class RawArray(ctypes.Structure):
    """``struct array`` of `bpf/common.h`, ``flexnpu_step_array`` of the client."""

    _fields_ = (
        ("n", ctypes.c_uint32),
        ("seen", ctypes.c_uint32),
        ("ones", ctypes.c_uint32),
        ("rising", ctypes.c_uint32),
        ("first", ctypes.c_int64),
        ("last", ctypes.c_int64),
        ("max", ctypes.c_int64),
        ("sum", ctypes.c_int64),
    )


def shape_of(dims: Any, ndim: int) -> tuple[int, ...] | None:
    """The first `ndim` of `dims`; None for a shape with more dimensions than a record has room for."""
    return tuple(dims[:ndim]) if ndim <= DIMS else None


def lengths_of(arrays: Any, n: int) -> tuple[Lengths, ...]:
    """The first `n` of `arrays`, as many as there are."""
    return tuple(
        Lengths(
            a.n, a.seen, a.ones, bool(a.rising & 1), a.first, a.last, a.max, a.sum, ROLES.get(a.rising >> 8)
        )
        for a in arrays[: min(n, ARRAYS)]
    )
