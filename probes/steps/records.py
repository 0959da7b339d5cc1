"""Records of the kernel side, as `bpf/records.h` lays them out."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from probes.steps import client_steps
from probes.steps.phases import Evidence
from probes.steps.raw import (
    AGREED,
    ENDED_BY,
    FROM_CAPTURE,
    HAS_INDICES,
    HAS_QUERY,
    HAS_TABLE,
    REMEMBERED,
    TOLD,
    lengths_of,
    shape_of,
)

COUNTERS = tuple(name.lower() for name in TOLD.enumerators("counter")[:-1])
"""Counted in the kernel, in the order of its enum: step records delivered to the ring; step and begin records
that found it full; launches of such steps; calls dropped because a map was full; embeddings whose first call
was not seen; user memory that could not be read; streams of a process beyond those that a device synchronise
ends."""

BETWEEN, EMBEDDING, GRAPH, PLAIN, BEGIN, CAPTURE, ATTENTION = map(
    TOLD.constant, ("BETWEEN", "EMBEDDING", "GRAPH", "PLAIN", "BEGIN", "CAPTURE", "ATTENTION")
)

RawTotals: Any = TOLD.struct("totals")
RawRecord: Any = TOLD.struct("record")
TOTALS = tuple(name for name, _ in RawTotals._fields_)

RECORD_SIZE = ctypes.sizeof(RawRecord)


@dataclass(frozen=True)
class Record:
    """A decoded record of the kernel side: one step, or the beginning of one."""

    t_start: int
    t_end: int
    t_base: int
    """The end of the lane's step before, which may come after `t_start`; 0 at its first."""
    seq: int
    pid: int
    stream: int
    kind: int
    ended_by: str
    launches: int
    graphs: int
    h2d: int
    d2h: int
    evidence: Evidence
    gated_ns: int | None = None
    """How long a daemon's gate held the lane meanwhile; None where there is none, or it did not say."""
    t_counted: int = 0
    """Since when its launches and copies were counted; 0 at the lane's first."""

    @property
    def lane(self) -> tuple[int, int]:
        """Process id and stream."""
        return self.pid, self.stream


class RecordError(ValueError):
    """Bytes from the ring that are not a record."""


def evidence_of(kind: int, raw: Any, work: Any) -> Evidence:
    """The evidence of one call, decoded from a record of the BPF program's."""
    return Evidence(
        embedding=kind == EMBEDDING,
        indices=shape_of(raw.dims, raw.ndim) if raw.flags & HAS_INDICES else None,
        agreed=bool(raw.flags & HAS_TABLE and raw.flags & AGREED),
        graph=kind == GRAPH,
        from_capture=bool(raw.flags & FROM_CAPTURE),
        capture=kind == CAPTURE,
        h2d_bytes=work.h2d,
        h2d_copies=work.h2d_copies,
        arrays=lengths_of(raw.array, raw.arrays),
        attention=kind == ATTENTION,
        query=shape_of(raw.query, raw.query_ndim) if raw.flags & HAS_QUERY else None,
        query_layout=bytes(raw.query_layout).decode("ascii", "replace"),
        remembered=bool(raw.flags & REMEMBERED),
    )


def decode(data: bytes) -> Record:
    """Decode one record of the step programs. Raises `RecordError`."""
    if len(data) < RECORD_SIZE:
        raise RecordError(f"{len(data)} bytes, a record has {RECORD_SIZE}")
    raw = RawRecord.from_buffer_copy(data)
    if not EMBEDDING <= raw.kind <= ATTENTION:
        raise RecordError(f"unknown kind {raw.kind}")
    if raw.ended_by >= len(ENDED_BY):
        raise RecordError(f"unknown end {raw.ended_by}")
    kind = raw.kind
    if kind == BEGIN:
        kind = GRAPH if raw.evidence.model else EMBEDDING
    return Record(
        t_start=raw.t_start,
        t_end=raw.t_end,
        t_base=raw.t_base,
        seq=raw.seq,
        pid=raw.key.tgid,
        stream=raw.key.stream,
        kind=raw.kind,
        ended_by=ENDED_BY[raw.ended_by],
        launches=raw.work.launches,
        graphs=raw.work.graphs,
        h2d=raw.work.h2d,
        d2h=raw.work.d2h,
        evidence=evidence_of(kind, raw.evidence, raw.work),
        t_counted=raw.t_counted,
    )


_OPENED = {
    "plain": PLAIN,
    "embedding": EMBEDDING,
    "graph": GRAPH,
    "capture": CAPTURE,
    "attention": ATTENTION,
}


def of_client(step: client_steps.ClientStep) -> Record:
    """A step of FlexNPU's client as a record."""
    return Record(
        t_start=step.t_start,
        t_end=step.t_end,
        t_base=step.t_base,
        seq=step.seq,
        pid=step.pid,
        stream=step.stream,
        kind=BEGIN if step.kind == "begin" else _OPENED[step.opening],
        ended_by=step.ended_by,
        launches=step.launches,
        graphs=step.graphs,
        h2d=step.h2d,
        d2h=step.d2h,
        evidence=step.evidence,
        gated_ns=step.gated_ns,
        t_counted=step.t_base,
    )
