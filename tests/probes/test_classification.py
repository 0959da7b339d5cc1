"""Kinds of steps that `test_torch_npu` does not run, held against the labels of who made them.

A short run of `flexnpu bench classification`, which takes them all, in their thousands.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from benchmarks.classification import Label, measure, score, target
from tests.collectors.scripted import step

STEP = step(1_000_000, 2_000_000, stream=7, tokens=4, batch=4)
LABEL = Label(stream=7, t0=990_000, t1=2_100_000, phase="decode", tokens=4, batch=4)


def test_a_score_counts_what_is_wrong_missing_doubted_and_too_much() -> None:
    assert score([LABEL], [STEP]).accuracy == 1.0
    wrong = score([LABEL], [replace(STEP, phase="prefill")])
    assert (wrong.right, wrong.silent) == (0, 1)
    missing = score([LABEL], [replace(STEP, stream=8)])
    assert (missing.right, missing.silent) == (0, 1)
    doubted = score([LABEL], [replace(STEP, phase="other", confidence=0.0)])
    assert (doubted.right, doubted.silent) == (0, 0)
    twice = score([LABEL], [STEP, replace(STEP, t_start_ns=1_500_000)])
    assert (twice.right, twice.spurious, twice.accuracy) == (1, 1, 0.5)


@pytest.fixture(scope="module", params=["cann", "client"])
def environment(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with target(request.param) as variables:
        yield variables


@pytest.mark.ebpf
@pytest.mark.torch_npu
@pytest.mark.parametrize("configuration", ["graph-seen", "task-updates", "mixed", "threads"])
def test_steps_are_told_right(environment: dict[str, str], configuration: str) -> None:
    result, losses = measure(configuration, 120, environment)
    assert result.labelled == 120
    assert result.accuracy >= 0.98, result.report()
    assert result.silent == 0, result.report()
    assert not losses.counts["steps_lost"]
