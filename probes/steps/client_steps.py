"""Records of FlexNPU's client, which folds its steps itself.

The client calls ``flexnpu_step_begin(record)`` when a step opens and ``flexnpu_step(record)`` when it is
known to be over; `bpf/client.c` passes the record on as it is. Its layout is that of
``flexnpu/wire/step_record.h``. What may be over stands in a table (see `waiting`).
Since the client knows an executor's arguments, the shapes need no guessing.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Literal

from probes.steps.phases import Evidence
from probes.steps.raw import (
    AGREED,
    ENDED_BY,
    FROM_CAPTURE,
    HAS_INDICES,
    HAS_QUERY,
    HAS_TABLE,
    TOLD,
    lengths_of,
    shape_of,
)

VERSION = TOLD.constant("FLEXNPU_STEP_VERSION")
SEMAPHORES = {
    name: f"{name}_semaphore" for name in ("flexnpu_step", "flexnpu_step_begin", "flexnpu_operator")
}
"""Probe points of the client, and the word in its data that the kernel raises while a probe is on one."""

Kind = Literal["begin", "maybe", "done"]
Opening = Literal["plain", "embedding", "graph", "capture", "attention"]

_KINDS: dict[int, Kind] = {1: "begin", 2: "maybe", 3: "done"}
_OPENINGS: tuple[Opening, ...] = ("plain", "embedding", "graph", "capture", "attention")
_MARK = 1 << 63
_UNKNOWN = (1 << 64) - 1

RawArray: Any = TOLD.struct("flexnpu_step_array")
RawEvidence: Any = TOLD.struct("flexnpu_step_evidence")
RawStep: Any = TOLD.struct("flexnpu_step_record")
RawRecord: Any = TOLD.struct("client_record")
"""A step with its process, as `bpf/client.c` passes it on."""

RECORD_SIZE = ctypes.sizeof(RawRecord)


@dataclass(frozen=True)
class ClientStep:
    """A step as the client counted it. Times are CLOCK_MONOTONIC, ns."""

    pid: int
    stream: int
    kind: Kind
    """``maybe``: as it is if its last synchronise was its end; never told, see `waiting`."""
    opening: Opening
    ended_by: str
    t_start: int
    t_end: int
    t_base: int
    """Since when its launches were counted."""
    seq: int
    """Of the lane's steps, whether anybody listened or not."""
    launches: int
    graphs: int
    h2d: int
    d2h: int
    lane_work: int
    """Operators and graphs launched on the lane ever, up to the step's end."""
    gated_ns: int | None
    """How long the daemon's gate held the lane's head; None: not known."""
    evidence: Evidence


class ClientRecordError(ValueError):
    """Bytes that are no record of the client."""


def is_client_record(data: bytes) -> bool:
    """Whether a record of the ring is the client's: its first word bears a mark that no time has."""
    return len(data) >= 8 and bool(data[7] & 0x80)


def decode(data: bytes) -> ClientStep:
    """Decode one record of `bpf/client.c`. Raises `ClientRecordError`."""
    if len(data) < RECORD_SIZE:
        raise ClientRecordError(f"{len(data)} bytes, a record of the client has {RECORD_SIZE}")
    raw = RawRecord.from_buffer_copy(data)
    return step_of(raw.tgid & ~_MARK, raw.step)


def step_of(pid: int, raw: Any) -> ClientStep:
    """The step in a `RawStep`. Raises `ClientRecordError`."""
    if raw.version < VERSION or raw.size < ctypes.sizeof(RawStep):
        raise ClientRecordError(f"a record of version {raw.version} with {raw.size} bytes")
    if raw.kind not in _KINDS or raw.opening >= len(_OPENINGS) or raw.ended_by >= len(ENDED_BY):
        raise ClientRecordError(f"kind {raw.kind}, opening {raw.opening}, end {raw.ended_by}")
    return ClientStep(
        pid=pid,
        stream=raw.stream,
        kind=_KINDS[raw.kind],
        opening=_OPENINGS[raw.opening],
        ended_by=ENDED_BY[raw.ended_by],
        t_start=raw.t_start,
        t_end=raw.t_end,
        t_base=raw.t_base,
        seq=raw.seq,
        launches=raw.launches,
        graphs=raw.graphs,
        h2d=raw.h2d,
        d2h=raw.d2h,
        lane_work=raw.lane_work,
        gated_ns=None if raw.gated_ns == _UNKNOWN else raw.gated_ns,
        evidence=_evidence(raw),
    )


def _evidence(raw: Any) -> Evidence:
    seen = raw.evidence
    opening = _OPENINGS[raw.opening]
    return Evidence(
        embedding=opening == "embedding",
        indices=shape_of(seen.dims, seen.ndim) if seen.flags & HAS_INDICES else None,
        agreed=bool(seen.flags & HAS_TABLE and seen.flags & AGREED),
        graph=opening == "graph",
        from_capture=bool(seen.flags & FROM_CAPTURE),
        capture=opening == "capture",
        attention=opening == "attention",
        query=shape_of(seen.query, seen.query_ndim) if seen.flags & HAS_QUERY else None,
        query_layout=bytes(seen.layout).decode("ascii", "replace"),
        h2d_bytes=raw.h2d,
        h2d_copies=raw.h2d_copies,
        arrays=lengths_of(seen.array, seen.arrays),
    )
