"""What the records of the kernel side and those of FlexNPU's client have in common: their layouts, read from
the headers that lay them out in C."""

from __future__ import annotations

from typing import Any

from probes.placing import declarations
from probes.steps.phases import ROLES, Lengths

TOLD = declarations.of_steps()
"""`bpf/records.h`, `bpf/layout.h` and `flexnpu/wire/step_record.h`."""

ENDED_BY = ("sync", "embedding", "graph", "gap", "none")
"""In the order of ``enum flexnpu_step_end``."""
DIMS = TOLD.constant("FLEXNPU_STEP_DIMS")
"""Dimensions of a shape that a record has room for."""
ARRAYS = TOLD.constant("FLEXNPU_STEP_ARRAYS")
"""Arrays of lengths that it has room for."""

HAS_INDICES = TOLD.constant("FLEXNPU_STEP_HAS_INDICES")
HAS_TABLE = TOLD.constant("FLEXNPU_STEP_HAS_TABLE")
AGREED = TOLD.constant("FLEXNPU_STEP_AGREED")
FROM_CAPTURE = TOLD.constant("FLEXNPU_STEP_FROM_CAPTURE")
HAS_QUERY = TOLD.constant("FLEXNPU_STEP_HAS_QUERY")
REMEMBERED = TOLD.constant("REMEMBERED")


def shape_of(dims: Any, ndim: int) -> tuple[int, ...] | None:
    """The first `ndim` of `dims`; None for a shape with more dimensions than a record has room for."""
    return tuple(dims[:ndim]) if ndim <= DIMS else None


def lengths_of(arrays: Any, n: int) -> tuple[Lengths, ...]:
    """The first `n` of `arrays`, as many as there are."""
    return tuple(
        Lengths(
            a.n,
            a.seen,
            a.ones,
            bool(a.rising & 1),
            a.first,
            a.last,
            a.max,
            a.sum,
            ROLES.get(a.rising >> 8 & 0xFF),
            a.rising >> 16,
        )
        for a in arrays[: min(n, ARRAYS)]
    )
