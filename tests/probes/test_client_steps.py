"""The records of FlexNPU's client: one layout in three languages, and a decoder that believes nothing."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.placing import declarations, plan
from probes.steps import client_steps
from probes.steps.client_steps import ClientRecordError, RawRecord, RawStep, decode
from probes.steps.waiting import RawEntry, steps_in

ROOT = Path(__file__).resolve().parents[2]
TOLD = declarations.of_steps()
CLIENT = ("step_table", "step_entry", "step_array", "step_evidence", "step_record")
KERNEL = (
    "layout",
    "evidence",
    "thread",
    "lane",
    "record",
    "process",
    "shape",
    "target",
    "operator_key",
    "hits",
)
_WORDS = "".join(
    f"using {letter}{bits} = {sign}int{bits}_t;"
    for letter, sign in (("u", "u"), ("s", ""))
    for bits in (8, 16, 32, 64)
)


def checks(name: str) -> list[str]:
    """That the compiler lays a structure out as Python read it."""
    python = TOLD.struct(name)
    found = [f"static_assert(sizeof({name}) == {ctypes.sizeof(python)});"]
    for field, *_ in python._fields_:
        at, size = getattr(python, field).offset, getattr(python, field).size
        found.append(f"static_assert(offsetof({name}, {field}) == {at});")
        found.append(f"static_assert(sizeof({name}::{field}) == {size});")
    return found


def compiled(tmp_path: Path, *lines: str) -> None:
    source = tmp_path / "layout.cpp"
    source.write_text("\n".join(["#include <cstddef>", "#include <cstdint>", *lines]))
    command = ["c++", "-std=c++20", "-fsyntax-only", "-w", f"-I{ROOT}", f"-I{ROOT}/probes/bpf", str(source)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


def test_the_layout_is_the_same_in_cpp_and_python(tmp_path: Path) -> None:
    asserted = [check for name in CLIENT for check in checks(f"flexnpu_{name}")]
    version = f"static_assert(kFlexnpuStepVersion == {client_steps.VERSION});"
    compiled(tmp_path, '#include "flexnpu/client/probe_point.hpp"', *asserted, version)
    assert len(asserted) > 80


def test_the_layout_is_the_same_in_bpf_and_python(tmp_path: Path) -> None:
    # The functions of layout.h are of no interest, and read memory by the kernel's helpers.
    layout = (ROOT / "probes/bpf/layout.h").read_text().partition("static inline")[0]
    names = [*KERNEL, "client_record", "client_name"]
    text = (ROOT / "probes/bpf/records.h").read_text().replace(" operator;", " operator_;")
    asserted = [
        check.replace(" operator)", " operator_)").replace("::operator)", "::operator_)")
        for name in names
        for check in checks(name)
    ]
    compiled(tmp_path, _WORDS, layout, text, *asserted)
    assert len(asserted) > 150


def test_the_plan_names_the_points_as_the_client_does() -> None:
    points = (ROOT / "flexnpu/client/probe_point.hpp").read_text()
    for site in plan.SITES:
        if site.role is plan.Role.CLIENT:
            assert f"void {site.symbol}(" in points
            assert f"volatile uint16_t {site.semaphore};" in points


def record(**fields: Any) -> bytes:
    raw = RawRecord(tgid=77 | 1 << 63)
    raw.step = RawStep(version=1, size=ctypes.sizeof(RawStep), kind=3, opening=1, gated_ns=(1 << 64) - 1)
    for name, value in fields.items():
        setattr(raw.step, name, value)
    return bytes(raw)


def test_a_record_is_told_from_the_tracers_own() -> None:
    assert client_steps.is_client_record(record())
    assert not client_steps.is_client_record((1 << 62).to_bytes(8, "little"))
    assert not client_steps.is_client_record(b"")


def test_what_is_not_known_is_absent() -> None:
    assert decode(record()).gated_ns is None
    assert decode(record(gated_ns=0)).gated_ns == 0
    assert decode(record()).evidence.indices is None
    assert decode(record()).pid == 77


def test_a_later_version_begins_like_this_one() -> None:
    longer = record(version=2, size=ctypes.sizeof(RawStep) + 64) + bytes(64)
    assert decode(longer).kind == "done"


@pytest.mark.parametrize(
    "wrong",
    [{"version": 0}, {"size": 8}, {"kind": 0}, {"kind": 9}, {"opening": 5}, {"ended_by": 5}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_nonsense_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ClientRecordError):
        decode(record(**wrong))


@given(st.binary(max_size=600))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    try:
        step = decode(data)
    except ClientRecordError:
        return
    assert step.evidence.indices is None or len(step.evidence.indices) <= 4
    assert len(step.evidence.arrays) <= 3


def entry(done: int, begun: int, **fields: Any) -> bytes:
    raw = RawEntry(done=done, begun=begun)
    raw.record = RawStep.from_buffer_copy(record(kind=2, **fields), 8)
    return bytes(raw)


def test_an_entry_that_is_being_written_or_never_was_is_no_step() -> None:
    data = entry(7, 7, seq=1) + entry(7, 8, seq=2) + bytes(ctypes.sizeof(RawEntry)) + entry(2, 2, seq=3)
    assert [(step.pid, step.kind, step.seq) for step in steps_in(5, data)] == [
        (5, "maybe", 1),
        (5, "maybe", 3),
    ]
    assert steps_in(5, entry(1, 1, opening=9)) == []
    assert steps_in(5, data[:-1]) == steps_in(5, entry(7, 7, seq=1))


@given(st.binary(max_size=3 * ctypes.sizeof(RawEntry)))
def test_any_entries_decode_or_are_left_out(data: bytes) -> None:
    assert len(steps_in(1, data)) <= 3


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_counts_out_of_range_reach_no_further_than_the_record(flags: int, ndim: int, arrays: int) -> None:
    raw = RawRecord.from_buffer_copy(record())
    raw.step.evidence.flags, raw.step.evidence.ndim, raw.step.evidence.arrays = flags, ndim, arrays
    step = decode(bytes(raw))
    assert step.evidence.indices is None or len(step.evidence.indices) == ndim
    assert len(step.evidence.arrays) == min(arrays, 3)
