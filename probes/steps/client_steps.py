"""Records of FlexNPU's client, which folds its steps itself.

The client calls ``flexnpu_step_begin(record)`` when a step opens and ``flexnpu_step(record)`` when it is
known to be over; `bpf/client.c` passes the record on as it is. Its layout is that of
``flexnpu/client/probe_point.hpp``. What may be over stands in a table (see `waiting`).
Since the client knows an executor's arguments, the shapes need no guessing.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Literal

from probes.steps.phases import Evidence
from probes.steps.raw import ARRAYS, DIMS, ENDED_BY, RawArray, lengths_of, shape_of

VERSION = 1
SEMAPHORES = {
    name: f"{name}_semaphore" for name in ("flexnpu_step", "flexnpu_step_begin", "flexnpu_operator")
}
"""Probe points of the client, and the word in its data that the kernel raises while a probe is on one."""

Kind = Literal["begin", "maybe", "done"]
Opening = Literal["plain", "embedding", "graph", "capture", "attention"]

_KINDS: dict[int, Kind] = {1: "begin", 2: "maybe", 3: "done"}
_OPENINGS: tuple[Opening, ...] = ("plain", "embedding", "graph", "capture", "attention")
_HAS_INDICES, _HAS_TABLE, _AGREED, _FROM_CAPTURE, _HAS_QUERY = 1, 2, 4, 8, 16
_MARK = 1 << 63
_UNKNOWN = (1 << 64) - 1


class RawEvidence(ctypes.Structure):
    """``flexnpu_step_evidence``."""

    _fields_ = (
        ("flags", ctypes.c_uint32),
        ("ndim", ctypes.c_uint32),
        ("dims", ctypes.c_int64 * DIMS),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("query", ctypes.c_int64 * DIMS),
        ("query_ndim", ctypes.c_uint32),
        ("arrays", ctypes.c_uint32),
        ("array", RawArray * ARRAYS),
        ("layout", ctypes.c_char * 8),
    )


class RawStep(ctypes.Structure):
    """``flexnpu_step_record``."""

    _fields_ = (
        ("version", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("opening", ctypes.c_uint32),
        ("ended_by", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("t_start", ctypes.c_uint64),
        ("t_end", ctypes.c_uint64),
        ("t_last", ctypes.c_uint64),
        ("t_base", ctypes.c_uint64),
        ("stream", ctypes.c_uint64),
        ("seq", ctypes.c_uint64),
        ("launches", ctypes.c_uint64),
        ("graphs", ctypes.c_uint64),
        ("h2d", ctypes.c_uint64),
        ("d2h", ctypes.c_uint64),
        ("h2d_copies", ctypes.c_uint64),
        ("lane_work", ctypes.c_uint64),
        ("gated_ns", ctypes.c_uint64),
        ("model", ctypes.c_uint64),
        ("evidence", RawEvidence),
    )


class RawRecord(ctypes.Structure):
    """``client_record`` of `bpf/client.c`: a step with its process."""

    _fields_ = (("tgid", ctypes.c_uint64), ("step", RawStep))


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
    """The step in a `RawStep`, or in the same struct as bcc has made it. Raises `ClientRecordError`."""
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
        indices=shape_of(seen.dims, seen.ndim) if seen.flags & _HAS_INDICES else None,
        agreed=bool(seen.flags & _HAS_TABLE and seen.flags & _AGREED),
        graph=opening == "graph",
        from_capture=bool(seen.flags & _FROM_CAPTURE),
        capture=opening == "capture",
        attention=opening == "attention",
        query=shape_of(seen.query, seen.query_ndim) if seen.flags & _HAS_QUERY else None,
        query_layout=bytes(seen.layout).decode("ascii", "replace"),
        h2d_bytes=raw.h2d,
        h2d_copies=raw.h2d_copies,
        arrays=lengths_of(seen.array, seen.arrays),
    )
