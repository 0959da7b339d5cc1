"""Steps are a serving engine's iterations, issued as vLLM-Ascend issues them, on both targets.

A short run of `flexnpu bench iterations`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest

from benchmarks.classification import Label, target
from benchmarks.iterations import Score, measure, score
from flexnpu.common.quantiles import quantile
from tests.collectors.scripted import step
from workloads.labelled.names import ENGINES

MS = 1_000_000
LABELS = [
    Label(stream=7, t0=i * 10 * MS, t1=(i + 1) * 10 * MS, phase="decode", tokens=4, batch=4, device_us=9000)
    for i in range(1, 4)
]
STEPS = [step(label.t0 + MS, label.t0 + 10 * MS, stream=7, tokens=4, batch=4) for label in LABELS]


def test_a_score_counts_what_is_wrong_missing_and_too_much() -> None:
    assert score(LABELS, STEPS).report() | {"duration_ratio": None} == {
        "iterations": 3,
        "right": 3,
        "missing": 0,
        "spurious": 0,
        "graphs_right": 0,
        "padding_told": 3,
        "padding_wrong": 0,
        "accuracy": 1.0,
        "duration_ratio": None,
        "wrong": {},
    }
    missing = score(LABELS, STEPS[1:])
    assert (missing.right, missing.missing, missing.spurious) == (2, 1, 0)
    wrong = score(LABELS, [replace(STEPS[0], tokens=8), *STEPS[1:]])
    assert (wrong.right, wrong.missing, wrong.spurious) == (2, 0, 0)
    halves = [replace(STEPS[0], t_end_ns=15 * MS), replace(STEPS[0], t_start_ns=15 * MS), *STEPS[1:]]
    assert (score(LABELS, halves).right, score(LABELS, halves).spurious) == (2, 1)
    # No step of the engine's own: on the stream of its copies, and no model step.
    other = [*STEPS, replace(STEPS[0], stream=8), replace(STEPS[1], phase="other")]
    assert (score(LABELS, other).right, score(LABELS, other).spurious) == (3, 2)
    assert score(LABELS, STEPS).durations == [1.0] * 3


@pytest.fixture(scope="module", params=["cann", "client"])
def environment(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with target(request.param, mode="time") as variables:
        yield variables


def exact(result: Score) -> bool:
    return (result.right, result.missing, result.spurious, result.graphs_right) == (60, 0, 0, 60)


@pytest.mark.ebpf
@pytest.mark.torch_npu
@pytest.mark.parametrize("configuration", ENGINES)
def test_steps_are_iterations(environment: dict[str, str], configuration: str) -> None:
    result, losses, steps = measure(configuration, 60, environment)
    for _ in range(2):
        # On CANN itself not every launch is probed: the tracer tells a step's middle from its end by time.
        # A host that lets the engine wait for a core in the wrong place deceives it now and then.
        if exact(result) or "FLEXNPU_EMU_MODE" not in environment:
            break
        print(f"again, after {result.report()}")
        result, losses, steps = measure(configuration, 60, environment)
    assert result.iterations == 60
    assert exact(result), result.report()
    # Of a graph that was captured before the tracer came nobody knows the size, but zeros among its lengths.
    assert result.padding_wrong == 0
    if "LD_LIBRARY_PATH" in environment and "FLEXNPU_EMU_MODE" not in environment:
        assert result.padding_told == 60
    # Of one lane: the device does one after the other, whatever was launched meanwhile.
    model = sorted((one for one in steps if one.phase != "other"), key=lambda one: one.t_start_ns)
    assert all(a.t_end_ns <= b.t_start_ns for a, b in pairwise(model))
    assert not any(losses.counts[name] for name in ("steps_lost", "unclassified", "map_full", "bad_reads"))


@pytest.mark.ebpf
@pytest.mark.torch_npu
@pytest.mark.parametrize("kind", ["cann", "client"])
def test_a_step_has_its_input_on_a_chip_that_is_waited_for(kind: str) -> None:
    """Before its first graph the engine waits for the step before. The chip is so slow that the host's pace
    is nothing beside it."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with target(kind, mode="time", slowdown=500) as variables:
        result, _, _ = measure("pieces", 60, variables)
    assert result.right == 60
    ratio = quantile(result.durations, 0.5)
    assert ratio is not None
    assert 0.95 < ratio < 1.05


@pytest.mark.ebpf
@pytest.mark.torch_npu
@pytest.mark.parametrize("kind", ["cann", "client"])
def test_a_step_that_waits_in_its_middle_ends_with_its_result(kind: str) -> None:
    """What the engine launches after the wait takes the host a tenth of what it takes the device. Nobody
    counts it on CANN, but the wait for the result says that the device had more to do."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with target(kind, mode="time", slowdown=500) as variables:
        result, _, _ = measure("eager", 60, variables)
    assert result.right == 60
    # Some waits return late on a busy host.
    least, most = quantile(result.durations, 0.1), quantile(result.durations, 0.9)
    assert least is not None
    assert most is not None
    assert 0.8 < least < most < 1.25
