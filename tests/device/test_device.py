"""Properties of the device model, through its Python binding."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

_device = pytest.importorskip("flexnpu.device._device", reason="run make build")
Contention, Launch, Unit = _device.Contention, _device.Launch, _device.Unit

PACE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
CUBES, VECTORS, HBM, CORE = 4, 8, 10.0, 4.0


def chip(**changes: Any) -> Any:
    figures = {"cube_cores": CUBES, "vector_cores": VECTORS, "cube_rate": 1.0, "vector_rate": 1.0}
    return _device.Chip(**{**figures, "hbm_rate": HBM, "core_rate": CORE, **changes})


amounts = st.floats(0, 50).map(lambda v: round(v, 3))
kernels = st.fixed_dictionaries(
    {
        "cube_ops": amounts,
        "vector_ops": amounts,
        "bytes": amounts,
        "launch_us": st.sampled_from([0.0, 0.5, 2.0]),
        "static_us": st.sampled_from([0.0, 0.5, 2.0]),
        "blocks": st.integers(0, 9),
        "unit": st.sampled_from([Unit.Cube, Unit.Vector, Unit.Mixed]),
        "launch": st.sampled_from([Launch.Greedy, Launch.Batch]),
    }
).map(lambda kernel: allowed(kernel))
loads = st.lists(st.tuples(st.floats(0, 60), st.integers(0, 3), kernels), max_size=30)


def allowed(kernel: dict[str, Any]) -> dict[str, Any]:
    """A kernel that the chip can run."""
    if kernel["unit"] == Unit.Cube:
        kernel["vector_ops"] = 0.0
    if kernel["unit"] == Unit.Vector:
        kernel["cube_ops"] = 0.0
    if kernel["launch"] == Launch.Batch:
        kernel["blocks"] = min(kernel["blocks"], CUBES)
    return kernel


def alone_us(kernel: dict[str, Any], **changes: Any) -> float:
    device = _device.Device(chip(**changes))
    assert device.submit(0.0, device.add_stream(), **kernel)
    return float(device.next().end_us)


def fill(device: Any, load: list[tuple[float, int, dict[str, Any]]]) -> list[tuple[float, int]]:
    """Submits in order of time; (when, stream) of each ticket."""
    streams = [device.add_stream(priority) for priority in (0, 0, 3, 7)]
    order = sorted(range(len(load)), key=lambda i: load[i][0])
    placed = []
    for ticket, i in enumerate(order):
        at, stream, kernel = load[i]
        assert device.submit(at, streams[stream], ticket, **kernel)
        placed.append((at, streams[stream]))
    return placed


def all_of(device: Any) -> list[Any]:
    return list(iter(device.next, None))


@PACE
@given(loads, st.sampled_from([Contention.Serial, Contention.Fluid]))
def test_every_kernel_ends_once_in_its_streams_order_and_no_work_is_lost(
    load: list[tuple[float, int, dict[str, Any]]], contention: Any
) -> None:
    device = _device.Device(chip(contention=contention))
    placed = fill(device, load)
    done = all_of(device)
    assert sorted(end.ticket for end in done) == list(range(len(load)))
    last: dict[int, Any] = {}
    for end in done:
        at, stream = placed[end.ticket]
        assert end.stream == stream
        assert at <= end.ready_us + 1e-9
        assert end.ready_us <= end.start_us <= end.end_us
        if stream in last:
            assert end.ticket > last[stream].ticket
            assert end.ready_us >= last[stream].end_us - 1e-9
        last[stream] = end
    assert [end.end_us for end in done] == sorted(end.end_us for end in done)
    use = device.use()
    assert use.kernels == len(load)
    for name in ("bytes", "cube_ops", "vector_ops"):
        assert math.isclose(getattr(use, name), sum(k[name] for _, _, k in load), abs_tol=1e-6)
    # No core computes faster than it can, and the memory moves no faster than it does.
    assert use.cube_core_us >= use.cube_ops * (1 - 1e-9) - 1e-6
    assert use.busy_us * HBM >= use.bytes * (1 - 1e-9) - 1e-6
    assert device.next_at() == _device.NEVER


@PACE
@given(loads)
def test_cores_and_memory_are_never_given_twice_and_the_memory_is_shared_max_min(
    load: list[tuple[float, int, dict[str, Any]]],
) -> None:
    device = _device.Device(chip())
    placed = fill(device, load)
    moved: dict[int, float] = defaultdict(float)
    while device.next_at() < _device.NEVER:
        running = device.running()
        assert sum(one.cube_cores for one in running) <= CUBES
        assert sum(one.vector_cores for one in running) <= VECTORS
        assert sum(one.rate for one in running) <= HBM * (1 + 1e-9)
        assert all(one.rate <= one.demand * (1 + 1e-9) for one in running)
        # By core, who gets less than it could use gets no less than anybody else.
        levels = [(one.rate / (one.cube_cores or one.vector_cores / 2), one) for one in running]
        highest = max((level for level, _ in levels), default=0)
        short = [level for level, one in levels if one.rate < one.demand * (1 - 1e-9)]
        assert all(level >= highest * (1 - 1e-9) for level in short)
        if short:
            assert math.isclose(sum(one.rate for one in running), HBM)
        at = device.next_at()
        before = device.now_us()
        for one in running:
            moved[one.ticket] += one.rate * (at - before)
        device.next(at)
    # What was seen to move is what the kernels had to move.
    order = sorted(range(len(load)), key=lambda i: load[i][0])
    for ticket in range(len(placed)):
        assert math.isclose(moved[ticket], load[order[ticket]][2]["bytes"], rel_tol=1e-6, abs_tol=1e-6)


@PACE
@given(loads)
def test_serial_is_the_sum_of_what_each_takes_alone(load: list[tuple[float, int, dict[str, Any]]]) -> None:
    device = _device.Device(chip(contention=Contention.Serial))
    fill(device, [(0.0, stream, kernel) for _, stream, kernel in load])
    done = all_of(device)
    total = sum(alone_us(kernel, contention=Contention.Serial) for _, _, kernel in load)
    assert math.isclose(done[-1].end_us if done else 0.0, total, abs_tol=1e-6)
    # One after the other: the next starts when the last has ended.
    for before, after in itertools.pairwise(done):
        assert after.start_us >= before.end_us - 1e-9


@PACE
@given(kernels)
def test_alone_both_models_agree(kernel: dict[str, Any]) -> None:
    assert math.isclose(alone_us(kernel), alone_us(kernel, contention=Contention.Serial), abs_tol=1e-9)


@PACE
@given(kernels, st.integers(1, 3))
def test_more_cores_never_make_a_kernel_slower(kernel: dict[str, Any], more: int) -> None:
    """Of one that is tiled for the cores it gets, or is bound by computing. Else the last wave of blocks may
    be too small to use the memory. Of several streams it need not hold: their kernels are not preemptible
    (Graham, 1966)."""
    few = {"cube_cores": CUBES, "vector_cores": VECTORS}
    many = {"cube_cores": CUBES + more, "vector_cores": VECTORS + 2 * more}
    tiled = {**kernel, "blocks": 0}
    computing = {**kernel, "launch": Launch.Greedy, "bytes": 0.0}
    for one in (tiled, computing):
        assert alone_us(one, **many) <= alone_us(one, **few) + 1e-9
    times = []
    for limit in range(1, CUBES + 1):
        device = _device.Device(chip())
        stream = device.add_stream()
        device.set_limit(stream, limit, 2 * limit)
        device.submit(0.0, stream, **tiled)
        times.append(device.next().end_us)
    assert all(fewer >= more - 1e-9 for fewer, more in itertools.pairwise(times))


@PACE
@given(loads, st.sampled_from([Contention.Serial, Contention.Fluid]))
def test_the_same_calls_give_the_same_answers(
    load: list[tuple[float, int, dict[str, Any]]], contention: Any
) -> None:
    runs = []
    for _ in range(2):
        device = _device.Device(chip(contention=contention))
        fill(device, load)
        runs.append([(end.ticket, end.start_us, end.end_us) for end in all_of(device)])
    assert runs[0] == runs[1]
    # Asking for the ends in small steps of time changes when they are told, not when they are.
    device = _device.Device(chip(contention=contention))
    fill(device, load)
    seen = []
    until = 0.0
    while device.next_at() < _device.NEVER:
        until += 0.7
        while (end := device.next(until)) is not None:
            seen.append((end.ticket, end.start_us, end.end_us))
    assert [ticket for ticket, _, _ in seen] == [ticket for ticket, _, _ in runs[0]]
    assert all(
        math.isclose(a[2], b[2], rel_tol=1e-9, abs_tol=1e-9) for a, b in zip(seen, runs[0], strict=True)
    )


@PACE
@given(st.lists(kernels, min_size=1, max_size=8))
def test_side_by_side_is_not_slower_than_one_after_the_other(batch: list[dict[str, Any]]) -> None:
    """Of two kernels that begin together and need no more cores than there are."""
    kernel = {**batch[0], "blocks": 2, "launch": Launch.Greedy}
    device = _device.Device(chip())
    for ticket in range(2):
        device.submit(0.0, device.add_stream(), ticket, **kernel)
    last = all_of(device)[-1].end_us
    assert alone_us(kernel) - 1e-9 <= last <= 2 * alone_us(kernel) + 1e-9
