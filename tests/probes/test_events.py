from __future__ import annotations

import contextlib
import json
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.feed.events import (
    EngineMetrics,
    EventError,
    Losses,
    OpenRequests,
    ProcessState,
    RequestTiming,
    Step,
    StepBegin,
    from_json,
    is_loss,
)

counts = st.integers(0, 2**63)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
maybe = st.none() | counts
fractions = st.floats(0, 1)
phases = st.sampled_from(["prefill", "decode", "mixed", "other"])

events = st.one_of(
    st.builds(
        Step,
        t_start_ns=counts,
        t_end_ns=counts,
        pid=counts,
        comm=texts,
        stream=counts,
        phase=phases,
        tokens=maybe,
        batch=maybe,
        launches=counts,
        graph_launches=counts,
        h2d_bytes=counts,
        d2h_bytes=counts,
        evidence=texts,
        confidence=fractions,
        gated_us=st.none() | st.floats(0, 1e12),
        kv_len=maybe,
        ended_by=texts,
    ),
    st.builds(
        OpenRequests,
        t_ns=counts,
        pid=counts,
        comm=texts,
        in_flight=counts,
        oldest_ns=maybe,
        waiting=st.lists(st.tuples(counts, counts), max_size=3),
        unlisted=counts,
    ),
    st.builds(
        ProcessState,
        t_ns=counts,
        pid=counts,
        comm=texts,
        service=st.none() | texts,
        service_from=st.sampled_from([None, "environment", "pod", "container", "unit", "port"]),
        probes=maybe,
        wire=st.booleans(),
        listening=maybe,
        connections=maybe,
        unread=maybe,
        ended=st.booleans(),
    ),
    st.builds(
        StepBegin,
        t_ns=counts,
        pid=counts,
        comm=texts,
        stream=counts,
        phase=phases,
        tokens=maybe,
        batch=maybe,
        evidence=texts,
        confidence=fractions,
    ),
    st.builds(
        RequestTiming,
        pid=counts,
        comm=texts,
        fd=counts,
        t_arrival_ns=counts,
        t_first_ns=maybe,
        t_end_ns=maybe,
        chunk_ns=st.lists(counts, max_size=5),
        path=texts,
        status=maybe,
        prompt_chars=maybe,
        complete=st.booleans(),
        t_read_ns=maybe,
        t_write_ns=maybe,
        tokens=maybe,
        tokens_from=st.sampled_from(["usage", "chunks", None]),
        prompt_tokens=maybe,
        queue_us=st.none() | st.floats(0, 1e12),
        prefill_us=st.none() | st.floats(0, 1e12),
        gated_us=st.none() | st.floats(0, 1e12),
        send_us=st.none() | st.floats(0, 1e12),
        tpot_gated_us=st.none() | st.floats(0, 1e12),
        first_step=maybe,
        first_step_pid=maybe,
        prefill_steps=maybe,
        join_confidence=st.none() | fractions,
    ),
    st.builds(
        EngineMetrics,
        t_ns=counts,
        url=texts,
        engine=texts,
        running=st.none() | st.floats(0, 1e12),
        kv_usage=st.none() | st.floats(0, 1),
        ttft_s=st.none() | st.floats(0, 1e12),
        error=st.none() | texts,
    ),
    st.builds(Losses, t_ns=counts, source=texts, counts=st.dictionaries(texts, counts, max_size=4)),
)


@given(events)
@settings(deadline=None)
def test_round_trip_is_exact(event: Step | StepBegin | RequestTiming | Losses) -> None:
    line = event.to_json()
    assert "\n" not in line
    assert from_json(line) == event
    assert from_json(line.encode()) == event


@given(st.text(max_size=200) | st.binary(max_size=200))
@settings(deadline=None)
def test_any_text_is_an_event_or_an_event_error(line: str | bytes) -> None:
    with contextlib.suppress(EventError):
        from_json(line)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.printable, max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(events, st.data())
@settings(deadline=None)
def test_any_value_in_any_field_is_taken_or_refused(event: Losses, data: st.DataObject) -> None:
    raw = json.loads(event.to_json())
    raw[data.draw(st.sampled_from(sorted(raw)))] = data.draw(json_values)
    try:
        again = from_json(json.dumps(raw))
    except EventError:
        return
    assert from_json(again.to_json()) == again


STEP = Step(1, 2, 3, "server", 4, "decode", 1, 1, 214, 0, 0, 8, "embedding[1,1]", 1.0)


def test_fields_of_a_later_version_are_ignored() -> None:
    raw = json.loads(STEP.to_json()) | {"of_tomorrow": 1}
    assert from_json(json.dumps(raw)) == STEP


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"v": 2}, "version 2"),
        ({"type": "stride"}, "unknown type 'stride'"),
        ({"type": ["step"]}, "unknown type"),
        ({"pid": "3"}, "pid: "),
        ({"pid": -3}, "pid: "),
        ({"tokens": 1.5}, "tokens: "),
        ({"phase": "train"}, "phase: "),
        ({"confidence": 1.5}, "confidence: "),
        ({"gated_us": float("nan")}, "gated_us: "),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], complaint: str) -> None:
    raw = json.loads(STEP.to_json()) | change
    with pytest.raises(EventError, match=complaint):
        from_json(json.dumps(raw))


@pytest.mark.parametrize(
    ("kind", "lost"),
    [
        ("steps_lost", True),
        ("map_full", True),
        ("unclassified", True),
        ("shed_copies", True),
        ("wire_truncated_bytes", True),
        ("steps_received", False),
        ("hits_launch", False),
        ("windows", False),
        ("feed_subscribers", False),
    ],
)
def test_what_is_a_loss(kind: str, lost: bool) -> None:
    assert is_loss(kind) is lost


def test_a_missing_measurement_is_absent_not_zero() -> None:
    raw = json.loads(STEP.to_json())
    assert raw["gated_us"] is None
    assert raw["kv_len"] is None
