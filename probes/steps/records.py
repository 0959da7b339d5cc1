"""Records of the kernel side, as `bpf/common.h` lays them out and `bpf/client.c` passes them on."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from probes.steps import client_steps
from probes.steps.phases import Evidence
from probes.steps.raw import ARRAYS, DIMS, ENDED_BY, RawArray, lengths_of, shape_of

COUNTERS = (
    "steps_sent",
    "steps_lost",
    "begins_lost",
    "launches_lost",
    "map_full",
    "no_first_call",
    "bad_reads",
    "lanes_untracked",
)
"""Counted in the kernel, in the order of its enum: step records delivered to the ring; step and begin records
that found it full; launches of such steps; calls dropped because a map was full; embeddings whose first call
was not seen; user memory that could not be read; streams of a process beyond those that a device synchronise
ends."""

BETWEEN, EMBEDDING, GRAPH, PLAIN, BEGIN, CAPTURE, ATTENTION = range(7)
_HAS_INDICES, _HAS_TABLE, _HAS_OUTPUT, FROM_CAPTURE, _HAS_QUERY, _REMEMBERED = 1, 2, 4, 8, 16, 32
_LAYOUT_CHARS = 8

TOTALS = ("launches", "graphs", "h2d", "d2h", "h2d_copies")


class Totals(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in TOTALS)


class _Evidence(ctypes.Structure):
    _fields_ = (
        ("t_first", ctypes.c_uint64),
        ("model", ctypes.c_uint64),
        ("ndim", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("dims", ctypes.c_int64 * DIMS),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("arrays", ctypes.c_uint32),
        ("attentions", ctypes.c_uint32),
        ("array", RawArray * ARRAYS),
        ("query", ctypes.c_int64 * DIMS),
        ("query_ndim", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("query_layout", ctypes.c_char * _LAYOUT_CHARS),
    )


class _Record(ctypes.Structure):
    _fields_ = (
        ("t_start", ctypes.c_uint64),
        ("t_end", ctypes.c_uint64),
        ("t_base", ctypes.c_uint64),
        ("seq", ctypes.c_uint64),
        ("tgid", ctypes.c_uint64),
        ("stream", ctypes.c_uint64),
        ("kind", ctypes.c_uint32),
        ("ended_by", ctypes.c_uint32),
        ("work", Totals),
        ("evidence", _Evidence),
    )


RECORD_SIZE = ctypes.sizeof(_Record)


@dataclass(frozen=True)
class Record:
    """A decoded record of the kernel side: one step, or the beginning of one."""

    t_start: int
    t_end: int
    t_base: int
    """Since when its launches and copies were counted: the end of the lane's step before, 0 at its first."""
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

    @property
    def lane(self) -> tuple[int, int]:
        return self.pid, self.stream


class RecordError(ValueError):
    """Bytes from the ring that are not a record."""


def evidence_of(kind: int, raw: Any, work: Any) -> Evidence:
    return Evidence(
        embedding=kind == EMBEDDING,
        indices=shape_of(raw.dims, raw.ndim) if raw.flags & _HAS_INDICES else None,
        agreed=bool(raw.flags & _HAS_TABLE and raw.flags & _HAS_OUTPUT),
        graph=kind == GRAPH,
        from_capture=bool(raw.flags & FROM_CAPTURE),
        capture=kind == CAPTURE,
        h2d_bytes=work.h2d,
        h2d_copies=work.h2d_copies,
        arrays=lengths_of(raw.array, raw.arrays),
        attention=kind == ATTENTION,
        query=shape_of(raw.query, raw.query_ndim) if raw.flags & _HAS_QUERY else None,
        query_layout=bytes(raw.query_layout).decode("ascii", "replace"),
        remembered=bool(raw.flags & _REMEMBERED),
    )


def decode(data: bytes) -> Record:
    """Decode one record of `bpf/common.h`. Raises `RecordError`."""
    if len(data) < RECORD_SIZE:
        raise RecordError(f"{len(data)} bytes, a record has {RECORD_SIZE}")
    raw = _Record.from_buffer_copy(data)
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
        pid=raw.tgid,
        stream=raw.stream,
        kind=raw.kind,
        ended_by=ENDED_BY[raw.ended_by],
        launches=raw.work.launches,
        graphs=raw.work.graphs,
        h2d=raw.work.h2d,
        d2h=raw.work.d2h,
        evidence=evidence_of(kind, raw.evidence, raw.work),
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
    )
