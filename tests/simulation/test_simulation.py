"""Virtual time as a whole: nothing is lost, the same input gives the same output, and bounds are kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("simulation._core", reason="run make build")

import simulation._core as _core
from simulation import arrivals
from simulation.report import report
from simulation.run import Outcome, simulate
from simulation.setting import Chip, Engines, Setting
from workloads.replay import Arrival

CHIP = Chip.load("ascend910c-die")
POLICIES = ("fifo", "protect-decode", "decode-first")
SMALL = {
    "layers": 2,
    "hidden": 512,
    "heads": 4,
    "kv_heads": 2,
    "head_size": 128,
    "ffn": 1024,
    "vocabulary": 4096,
}
"""A model of two layers, so that a run has few operators."""


def small(**changes: Any) -> Setting:
    return Setting(CHIP, engines=replace(Engines(schedule_us=100.0), **changes), model=SMALL)


loads = st.lists(
    st.tuples(st.floats(0, 0.5), st.integers(1, 600), st.integers(1, 20)), min_size=1, max_size=12
).map(lambda rows: arrivals.Load([Arrival(*row) for row in sorted(rows)]))


def whole(load: arrivals.Load, outcome: Outcome) -> None:
    """Every request ended once, with all its tokens, at times in their order."""
    assert len(outcome.requests) == len(load.arrivals)
    for arrival, one in zip(load.arrivals, outcome.requests, strict=True):
        assert (one.prompt, one.output) == (arrival.prompt_tokens, arrival.output_tokens)
        assert one.state == "done"
        assert one.generated == one.output
        assert one.arrival_us < one.first_us <= one.end_us
        if one.output > 1:
            assert one.first_us < one.second_us <= one.end_us
    assert outcome.core.ended() == len(load.arrivals)
    assert outcome.core.parked()[2] == 0


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    loads,
    st.sampled_from(POLICIES),
    st.sampled_from(["pd", "one"]),
    st.sampled_from(["fluid", "serial"]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_every_request_ends_once_with_all_its_tokens(
    load: arrivals.Load,
    policy: str,
    layout: Any,
    contention: Any,
    async_scheduling: bool,
    chunked: bool,
    first_from_prefill: bool,
) -> None:
    setting = replace(
        small(
            layout=layout,
            async_scheduling=async_scheduling,
            chunked=chunked,
            first_from_prefill=first_from_prefill,
            slots=3,
            prefill_slots=2,
        ),
        contention=contention,
    )
    outcome = simulate(setting, load, policy, period_s=0.02)
    whole(load, outcome)
    core = outcome.core
    # No prompt is computed twice, for nobody was preempted; each answer takes its tokens but the first.
    prompts = sum(arrival.prompt_tokens for arrival in load.arrivals)
    answers = sum(arrival.output_tokens - 1 for arrival in load.arrivals)
    computed = [core.counts(i) for i in range(2 if layout == "pd" else 1)]
    again = (
        sum(arrival.output_tokens > 1 for arrival in load.arrivals)
        if layout == "pd" and not first_from_prefill
        else 0
    )
    assert sum(one.prefill_tokens + one.decode_tokens for one in computed) == prompts + answers + again
    assert sum(one.operators for one in computed) == core.operators()
    for engine in range(len(computed)):
        waiting, running, free = core.queues(engine)
        assert (waiting, running) == (0, 0)
        assert free > 0
    counters = core.gate_counters()
    assert counters["lost_completions"] == counters["unknown_completions"] == 0


def test_the_same_input_gives_the_same_output() -> None:
    load = arrivals.poisson(20, 300, 30, duration_s=2.0, seed=3)
    assert load == arrivals.poisson(20, 300, 30, duration_s=2.0, seed=3)
    assert load != arrivals.poisson(20, 300, 30, duration_s=2.0, seed=4)
    for contention in ("fluid", "serial"):
        setting = replace(small(), contention=contention)
        told = [
            report(
                setting,
                load,
                "protect-decode",
                simulate(setting, load, "protect-decode", period_s=0.05),
                ttft_slo_s=1.0,
                tpot_slo_ms=50.0,
            )
            for _ in range(2)
        ]
        assert told[0] == told[1]


def test_a_preempted_request_keeps_its_tokens() -> None:
    """Caches of 20 blocks, far too few for eight answers of 600 tokens at once."""
    chip = replace(CHIP, memory_bytes=1e9)
    setting = Setting(chip, engines=Engines(layout="one", slots=8, schedule_us=100.0), model=SMALL)
    blocks = setting.core().queues(0)[2]
    load = arrivals.backlog(8, 100, blocks * 128 // 8 + 100)
    outcome = simulate(setting, load)
    whole(load, outcome)
    assert sum(one.preempted for one in outcome.requests) > 0
    assert outcome.core.queues(0) == (0, 0, blocks)


def test_a_request_that_no_cache_holds_is_rejected_and_the_others_are_served() -> None:
    setting = replace(small(), chip=replace(CHIP, memory_bytes=1e9))
    load = arrivals.Load([Arrival(0.0, 10**7, 5), Arrival(0.0, 10, 5)])
    outcome = simulate(setting, load)
    assert [one.state for one in outcome.requests] == ["rejected", "done"]


def test_alone_a_step_takes_its_time_on_the_device() -> None:
    """One request of one token, on an idle device: host, dispatcher, the step's device time, the answer."""
    setting = small(layout="one", launch_us=0.5)
    outcome = simulate(setting, arrivals.backlog(1, 512, 1))
    chip = (CHIP.cube, CHIP.vector, CHIP.cube_rate, CHIP.vector_rate, CHIP.memory_rate, 59e3)
    share = CHIP.launch_share
    times = _core.StaticTimes(
        mma_launch=CHIP.mma_us * share,
        mma=CHIP.mma_us * (1 - share),
        vector_launch=CHIP.vector_us * share,
        vector=CHIP.vector_us * (1 - share),
    )
    device_us = _core.step_us(False, chip, setting.shape(), times, 512, 1, 512 * 513 / 2, 512)
    # schedule, the first operator's dispatch, the device, the answer
    assert outcome.requests[0].first_us == pytest.approx(100 + 2 + device_us + 25, abs=0.1)


def test_the_policy_protects_decode_and_prefill_goes_on_by_its_bound() -> None:
    """A flood of prompts beside one steady answer: its tokens come sooner under decode-first, its prompts
    later, and none is held for ever."""
    rows = [Arrival(0.0, 16, 600)] + [Arrival(0.05 + 0.004 * i, 2000, 1) for i in range(150)]
    load = arrivals.Load(rows)
    wide = {**SMALL, "layers": 4, "hidden": 2048, "ffn": 8192, "heads": 16}
    setting = replace(small(launch_us=2.0), contention="serial", model=wide)
    runs = {}
    for policy in POLICIES:
        outcome = simulate(setting, load, policy, period_s=0.02)
        whole(load, outcome)
        answer, *prompts = outcome.requests
        runs[policy] = (
            (answer.end_us - answer.first_us) / (answer.output - 1),
            sum(one.first_us - one.arrival_us for one in prompts) / len(prompts),
            outcome.core.gate_counters(),
        )
        # The bound on holds (gate.hpp): B, what is in flight, and how late the gate hears of its end.
        for lane in range(2):
            counts = outcome.core.counts(lane)
            bound_us = max(10_000, 4 * counts.longest_us) + 300 + 2 * counts.longest_us + 100
            assert counts.held_us <= bound_us
    assert runs["decode-first"][0] < runs["fifo"][0]
    assert runs["decode-first"][2]["held"] > 0
    assert runs["fifo"][2]["held"] == 0
    assert runs["protect-decode"][0] < runs["fifo"][0]
    assert runs["decode-first"][1] > runs["fifo"][1]


def test_core_limits_divide_the_die() -> None:
    load = arrivals.poisson(20, 300, 30, duration_s=1.0, seed=3)
    whole(load, simulate(small(prefill_cores=16), load))
    # Alone on a part of the cores, a prompt takes longer.
    one = arrivals.backlog(1, 4000, 1)
    times = [
        simulate(replace(small(prefill_cores=cores), model={**SMALL, "hidden": 2048, "ffn": 8192}), one)
        .requests[0]
        .first_us
        for cores in (0, 16, 4)
    ]
    assert times == sorted(times)
    assert times[0] < times[2]
