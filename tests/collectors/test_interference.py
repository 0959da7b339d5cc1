"""Decode steps are told apart by whether a prefill ran beside them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.interference import STALE_NS, Interference
from probes.feed.events import Phase, Step, StepBegin
from tests.collectors.scripted import MS, S, begin, step


class Judge:
    def __init__(self, device_of: dict[int, int] | None = None, settle_ns: int = S) -> None:
        self.said: list[tuple[int, bool]] = []
        devices = device_of or {}
        self.of = Interference(
            lambda s, disturbed: self.said.append((s.t_start_ns, disturbed)),
            settle_ns=settle_ns,
            device_of=devices.get,
        )


def prefill(start: int, end: int, pid: int = 2, stream: int = 1) -> Step:
    return step(start, end, "prefill", pid=pid, stream=stream)


def test_a_prefill_known_after_the_decode_step_still_disturbs_it() -> None:
    j = Judge()
    j.of.step(step(100, 200))
    j.of.step(prefill(150, 160))
    j.of.advance(200 + S - 1)
    assert j.said == []
    j.of.advance(200 + S)
    assert j.said == [(100, True)]
    assert j.of.late == 0


def test_touching_is_not_overlapping() -> None:
    j = Judge()
    j.of.step(prefill(50, 100))
    j.of.step(step(100, 200))
    j.of.step(prefill(200, 300))
    j.of.flush()
    assert j.said == [(100, False)]


def test_a_prefill_that_has_only_begun_disturbs() -> None:
    j = Judge()
    j.of.step(step(0, 10 * MS))
    j.of.begin(begin(20 * MS))
    j.of.step(step(30 * MS, 40 * MS))
    j.of.advance(2 * S)
    assert j.said == [(0, False), (30 * MS, True)]
    j.of.step(prefill(20 * MS, 3 * S))
    j.of.step(step(4 * S, 4 * S + 1))
    j.of.advance(9 * S)
    assert j.said[-1] == (4 * S, False)
    assert j.of.late == 0


def test_mixed_steps_disturb_other_and_decode_do_not() -> None:
    j = Judge()
    j.of.step(step(0, 10, "mixed", pid=2))
    j.of.step(step(100, 110, "other", pid=2))
    j.of.step(step(200, 210, "decode", pid=2))
    for start in (0, 100, 200):
        j.of.step(step(start, start + 10))
    j.of.flush()
    assert j.said == [(200, False), (0, True), (100, False), (200, False)]


def test_the_same_lane_does_not_disturb_itself_another_stream_does() -> None:
    j = Judge()
    j.of.step(prefill(0, 100, pid=1, stream=1))
    j.of.step(step(50, 150, pid=1, stream=1))
    j.of.step(step(50, 150, pid=1, stream=2))
    j.of.flush()
    assert j.said == [(50, False), (50, True)]


def test_another_device_does_not_disturb_an_unknown_one_does() -> None:
    j = Judge({1: 0, 2: 1})
    j.of.step(prefill(0, 100, pid=2))
    j.of.step(step(0, 50, pid=1))
    j.of.step(prefill(200, 300, pid=3))
    j.of.step(step(200, 250, pid=1))
    j.of.flush()
    assert j.said == [(0, False), (200, True)]


def test_a_prefill_that_comes_too_late_is_counted() -> None:
    j = Judge()
    j.of.step(step(0, 100))
    j.of.advance(2 * S)
    j.of.step(prefill(50, 60))
    assert j.said == [(0, False)]
    assert j.of.late == 1


def test_a_lost_end_is_closed_by_the_next_begin_or_by_age() -> None:
    j = Judge()
    j.of.begin(begin(0))
    j.of.begin(begin(100, "decode"))
    j.of.step(step(50, 60))
    j.of.step(step(200, 210))
    j.of.begin(begin(1000))
    j.of.flush()
    j.of.advance(1000 + STALE_NS + 1)
    j.of.step(step(3000 + STALE_NS, 3001 + STALE_NS))
    j.of.flush()
    assert j.said == [(50, True), (200, False), (3000 + STALE_NS, False)]


Spans = st.lists(st.tuples(st.integers(0, 500), st.integers(1, 100), st.integers(1, 3)), max_size=25)


@given(decodes=Spans, prefills=Spans)
@settings(max_examples=300, deadline=None)
def test_against_brute_force(
    decodes: list[tuple[int, int, int]], prefills: list[tuple[int, int, int]]
) -> None:
    """However steps of three lanes lie, when all is known in time the answer is the definition's."""
    j = Judge()
    for start, length, pid in sorted(prefills, key=lambda p: p[0] + p[1]):
        j.of.step(prefill(start, start + length, pid=pid))
    expected = []
    for start, length, pid in decodes:
        j.of.step(step(start, start + length, pid=pid))
        beside = (p for p in prefills if p[2] != pid)
        expected.append((start, any(s < start + length and s + n > start for s, n, _ in beside)))
    j.of.flush()
    assert j.said == expected


@given(
    runs=st.lists(
        st.tuples(
            st.integers(1, 6), st.sampled_from(["prefill", "decode"]), st.integers(0, 60), st.integers(1, 60)
        ),
        max_size=40,
    ),
    lost=st.sets(st.integers(0, 39)),
    devices=st.dictionaries(st.integers(1, 6), st.integers(0, 2)),
)
@settings(max_examples=300, deadline=None)
def test_with_begins_devices_and_lost_ends_against_brute_force(
    runs: list[tuple[int, Phase, int, int]], lost: set[int], devices: dict[int, int]
) -> None:
    """Steps of a lane follow each other. The end of some is lost: the lane's next sign of life ends them."""
    free: dict[int, int] = {}
    events: list[tuple[int, int, StepBegin | Step]] = []
    spans: list[tuple[int, int, int]] = []
    still: dict[int, int] = {}
    for i, (pid, phase, gap, length) in enumerate(runs):
        start = free.get(pid, 0) + gap
        free[pid] = start + length
        events.append((start, 2 * i, begin(start, phase, pid=pid)))
        if pid in still:
            spans.append((pid, still.pop(pid), start))
        if i not in lost:
            events.append((start + length, 2 * i + 1, step(start, start + length, phase, pid=pid)))
            if phase == "prefill":
                spans.append((pid, start, start + length))
        elif phase == "prefill":
            still[pid] = start
    spans += [(pid, start, 10**9) for pid, start in still.items()]
    j = Judge(devices)
    expected = []
    for _, _, event in sorted(events, key=lambda one: one[:2]):
        if isinstance(event, StepBegin):
            j.of.begin(event)
            continue
        j.of.step(event)
        if event.phase == "decode":
            mine = devices.get(event.pid)
            expected.append(
                (
                    event.t_start_ns,
                    any(
                        pid != event.pid
                        and start < event.t_end_ns
                        and end > event.t_start_ns
                        and (mine is None or devices.get(pid) in (None, mine))
                        for pid, start, end in spans
                    ),
                )
            )
    j.of.flush()
    assert j.said == expected
