"""The default plan, its windows of detail and its budget, on the mock vendor libraries."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mockset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.feed.events import OperatorMix, Step
from probes.placing import budget, capabilities, cost, groups, symbols
from probes.placing.attach import AttachError
from probes.steps import detail
from probes.steps import tracer as tracer_module
from probes.steps.tracer import Tracer

ebpf = pytest.mark.ebpf
both = pytest.mark.usefixtures("each_loader")
Make = Callable[..., Any]
S1, S2 = "0x20010", "0x20020"


def summary(steps: list[Step]) -> list[tuple[str, int | None, int | None]]:
    return [(step.phase, step.tokens, step.batch) for step in steps if step.phase != "other"]


def lost(run: Any) -> dict[str, int]:
    names = ("steps_lost", "begins_lost", "map_full", "bad_reads", "unclassified", "reopened")
    return {name: run.losses.counts[name] for name in names if run.losses.counts[name]}


@ebpf
@both
@pytest.mark.parametrize("multi", [True, False], ids=["uprobe_multi", "perf"])
def test_sentinels_cut_and_classify_steps(driver: mockset.Driver, tracing: Make, multi: bool) -> None:
    run = tracing(driver.pid, plan="default", windows=False, begins=True, multi=multi)
    placed = {placed.symbol for placed in run.target.placed}
    assert not placed & {"aclCreateTensor", "aclCreateIntArray", "aclrtLaunchKernelWithHostArgs"}
    driver.run(f"step {S1} 1 37 218", *[f"step {S1} 4 1 214"] * 12, f"wpe {S2} 2 9", f"sync {S2}")
    steps = sorted(run.finish(), key=lambda step: step.t_start_ns)
    assert summary(steps) == [("prefill", 37, 1)] + [("decode", 4, 4)] * 12 + [("prefill", 18, 2)]
    assert all(step.launches is None for step in steps)
    assert all(step.confidence == 1.0 for step in steps)
    assert lost(run) == {}
    # However many operators a step launches, user space gets its beginning and its end.
    assert len(run.events) <= 3 * len(steps)
    assert run.losses.counts["hits_launch"] == 0


@ebpf
@both
@pytest.mark.skipif(not capabilities.uprobe_multi(), reason="no uprobe_multi links: no sessions")
def test_a_copy_s_return_is_probed_only_where_it_ends_something(
    driver: mockset.Driver, tracing: Make
) -> None:
    run = tracing(driver.pid, plan="default", windows=False)
    driver.run(f"h2dsync {S1} 8", *[f"graph {S1} 0x7010", f"sync {S1}", "d2h 8"] * 13)
    # Nothing but the copies waits here: they end the steps.
    driver.run(*[f"graph {S1} 0x7010", "d2h 16"] * 7)
    steps = [step for step in run.finish() if step.graph_launches]
    assert [step.ended_by for step in steps] == ["sync"] * 20
    assert [step.d2h_bytes for step in steps[14:]] == [16] * 6
    counts = run.losses.counts
    assert counts["hits_copy"] == 21
    assert counts["hits_copy_return"] == (7 if capabilities.uprobe_session() else 21)
    assert lost(run) == {}


@ebpf
@both
def test_lengths_come_from_attention_operators(driver: mockset.Driver, tracing: Make) -> None:
    run = tracing(driver.pid, plan="default", windows=False)
    driver.run(f"flat {S1} 4 101 1 2 3 4", f"flat {S1} 50 101 37 50", f"flat {S1} 35 101 1 2 3 35")
    driver.run(*[f"h2dsync {S1} 32", f"replay {S1}", "lengths 1 2 3 4 10 20 31 40", f"sync {S1}"])
    steps = run.finish()
    assert summary(steps) == [("decode", 4, 4), ("prefill", 50, 2), ("mixed", 35, 4), ("decode", 4, 4)]
    assert steps[-1].kv_len == 40
    assert lost(run) == {}


@ebpf
def test_a_model_without_an_embedding_operator_is_seen_by_its_attention(
    driver: mockset.Driver, tracing: Make
) -> None:
    run = tracing(driver.pid, plan="default", windows=False)
    driver.run(f"attend {S1} 2 37 200", *[f"attend {S1} 2 1 200"] * 6)
    steps = run.finish()
    assert summary(steps) == [("prefill", 74, 2)] + [("decode", 2, 2)] * 6
    assert {step.confidence for step in steps} == {0.8}
    assert steps[1].evidence == "attention queryBNSD[2,8,1,8]"


@ebpf
def test_an_executor_that_the_program_keeps_has_its_shape(driver: mockset.Driver, tracing: Make) -> None:
    run = tracing(driver.pid, plan="default", windows=False)
    driver.run(f"step {S1} 3 1 100", *[f"again {S1} 100"] * 3)
    steps = run.finish()
    assert summary(steps) == [("decode", 3, 3)] * 4
    assert [step.confidence for step in steps] == [1.0, 0.9, 0.9, 0.9]


@ebpf
@both
def test_where_objects_cannot_be_read_their_making_is_probed(
    driver: mockset.Driver, tracing: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from probes.steps import layouts

    unknown = layouts.Learned(None, None, "libnnopbase.so", "no layout of aclTensor explains all samples")
    monkeypatch.setattr(layouts, "learn", lambda _pid: unknown)
    run = tracing(driver.pid, plan="default", windows=False)
    driver.run(f"step {S1} 1 37 218", f"step {S1} 1 1 214")
    assert summary(run.finish()) == [("prefill", 37, 1), ("decode", 1, 1)]
    assert run.losses.counts["layout_unknown"] == 1
    assert "no layout of aclTensor" in run.notes[0]
    assert run.losses.counts["hits_tensor"] > 0


@ebpf
@both
def test_a_window_of_detail_tells_launches_and_operators(
    driver: mockset.Driver, tracing: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detail, "FIRST_S", 0.3)
    run = tracing(driver.pid, plan="default")
    while not any(step.launches is None and step.launches_typical for step in run.steps):
        driver.run(*[f"step {S1} 1 1 214"] * 5)
        run.poll(0.01)
        assert len(run.steps) < 3000
    driver.run(f"step {S1} 1 1 214", f"step {S1} 1 1 214")
    steps = run.finish()
    # A mock step is short: where the machine is busy, a few of them seem to end at their mask check.
    assert {step.launches for step in steps} >= {None, 214}
    assert steps[0].launches is None
    assert steps[-1].launches is None
    assert {step.launches_typical for step in steps[-2:]} == {214}
    mixes = [event for event in run.events if isinstance(event, OperatorMix)]
    assert [(mix.stream, set(mix.operators)) for mix in mixes] == [(0x20010, {"aclnnEmbedding"})]
    assert run.losses.counts["windows"] == 1
    assert mockset.probed(driver.pid) == []


@ebpf
def test_a_million_launches_are_all_accounted_for(driver: mockset.Driver) -> None:
    """1,000,003 (a prime) in steps of 101 launches (a prime), with room in the ring for some ten steps."""
    steps: list[Step] = []

    def keep(event: object) -> None:
        if isinstance(event, Step):
            steps.append(event)

    with Tracer(keep, plan="detail", budget_percent=None, ring_pages=1) as tracer:
        tracer.attach(driver.pid)
        for _ in range(10):
            driver.run(f"flood {S1} 99999 101")
            tracer.poll(0)
        driver.run(f"flood {S1} 13 101")
    losses = tracer.losses()
    counts = losses.counts
    assert counts["hits_launch"] == 1_000_003
    assert counts["steps_lost"] > 0
    received = sum(step.launches or 0 for step in steps)
    assert received + counts["launches_lost"] == 1_000_003
    assert counts["steps_received"] == counts["steps_sent"]
    assert losses.cpus is not None
    assert all(sum(cpus) == counts[name] for name, cpus in losses.cpus.items())


@ebpf
def test_over_the_budget_the_dearest_evidence_goes_first(
    driver: mockset.Driver, tracing: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracer_module, "_BUDGET_S", 0.05)
    run = tracing(driver.pid, plan="detail", budget_percent=0.001)
    for _ in range(60):
        driver.run(*[f"step {S1} 1 1 214"] * 3)
        run.poll(0.02)
    want = [f"shed_{evidence}" for evidence in ("launches", "attention", "copies", "shapes")]
    counts = run.losses.counts
    assert [counts[name] for name in want] == [1, 1, 1, 1]
    assert counts["over_budget"] == 1
    said = [note for note in run.notes if "doing without" in note]
    assert [note.rsplit(" ", 1)[1] for note in said] == ["launches", "attention", "copies", "shapes"]
    steps = run.finish()
    assert steps[0].launches is not None
    assert steps[-1].launches is None
    assert steps[-1].phase == "other"
    assert run.losses.counts["unclassified"] > 0


@ebpf
def test_a_file_that_changed_is_not_probed(mock_driver: Path, tmp_path: Path) -> None:
    with mockset.Driver(mock_driver) as driver:
        (definition,) = symbols.resolve(driver.pid, ["aclnnEmbedding"])["aclnnEmbedding"]
    copy = tmp_path / "libopapi.so"
    data = bytearray(Path(definition.library.path).read_bytes())
    copy.write_bytes(data)
    library = dataclasses.replace(definition.library, real=str(copy), path=str(copy))
    with groups.opened(library, [definition]) as path:
        assert os.path.samefile(path, copy)
    data[definition.offset] ^= 0xFF
    copy.write_bytes(data)
    with (
        pytest.raises(AttachError, match="has changed since it was read"),
        groups.opened(library, [definition]),
    ):
        pass
    copy.unlink()
    with pytest.raises(AttachError, match="cannot be opened"), groups.opened(library, [definition]):
        pass


percents = st.dictionaries(
    st.sampled_from(["sync", "launch", "attention", "copy", "embedding_first"]), st.floats(0, 50)
)


@given(st.lists(percents, max_size=60), st.floats(0.01, 10))
def test_the_budget_sheds_in_order_and_takes_back_in_reverse(
    intervals: list[dict[str, float]], percent: float
) -> None:
    account = budget.Account()
    for costs in intervals:
        before = list(account.without)
        decision = budget.decide(account, costs, percent, lambda evidence: evidence != "windows")
        if decision is None or decision[0] == "over":
            assert account.without == before
        elif decision[0] == "shed":
            assert account.without == [*before, decision[1]]
            assert sum(costs.values()) > percent
        else:
            assert [*account.without, decision[1]] == before
            assert sum(costs.values()) <= percent
        order = [budget.ORDER.index(evidence) for evidence in account.without]
        assert order == sorted(set(order))


@ebpf
def test_a_stepped_instruction_costs_more_than_an_emulated_one() -> None:
    if cost.platform.machine() != "x86_64":
        pytest.skip("measured on x86-64")
    with Tracer(lambda _event: None, budget_percent=None) as tracer:
        assert tracer.costs is not None
        assert 0 < tracer.costs.emulated < tracer.costs.stepped
