"""Steps of a program whose calls are known exactly, on the mock vendor libraries."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import mockset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.feed.events import Step, StepBegin
from probes.placing.attach import AttachError
from probes.steps.records import RECORD_SIZE, RecordError, decode
from tests.common.exit_thread import wait_for_zombie

ebpf = pytest.mark.ebpf
both = pytest.mark.usefixtures("each_loader")

Make = Callable[..., Any]
S1, S2 = "0x20010", "0x20020"


def model(steps: list[Step]) -> list[Step]:
    return [step for step in steps if step.phase in ("prefill", "decode", "mixed")]


def summary(steps: list[Step]) -> list[tuple[str, int | None, int | None, int]]:
    return [(step.phase, step.tokens, step.batch, step.launches) for step in steps]


@ebpf
@both
def test_prefill_and_decode_are_one_step_each(driver: mockset.Driver, tracing: Make) -> None:
    # Each synchronises in its middle, after five operators, as transformers does to look at the mask.
    run = tracing(driver.pid)
    driver.run(f"step {S1} 1 37 218", *[f"step {S1} 1 1 214"] * 12)
    steps = run.finish()
    assert summary(steps) == [("prefill", 37, 1, 218)] + [("decode", 1, 1, 214)] * 12
    assert {step.ended_by for step in steps} == {"sync"}
    assert {step.stream for step in steps} == {0x20010}
    assert all(step.confidence == 1.0 for step in steps)
    assert all(step.t_end_ns > step.t_start_ns for step in steps)
    assert all(a.t_end_ns <= b.t_start_ns for a, b in pairwise(steps))
    assert not any(
        run.losses.counts[name] for name in ("steps_lost", "unclassified", "map_full", "bad_reads")
    )


@ebpf
def test_a_step_that_nothing_follows_is_published_when_it_falls_silent(
    driver: mockset.Driver, tracing: Make
) -> None:
    run = tracing(driver.pid)
    driver.run(f"step {S1} 1 37 218")
    run.poll(0.1)
    assert run.steps == []
    run.poll(0.5)
    assert summary(run.steps) == [("prefill", 37, 1, 218)]
    # What the same lane does next is neither that step again nor lost.
    driver.run(f"step {S1} 1 1 214")
    run.poll(0.6)
    assert summary(run.finish()) == [("prefill", 37, 1, 218), ("decode", 1, 1, 214)]
    assert run.losses.counts["reopened"] == 0


@ebpf
def test_work_between_steps_counts_in_the_next(driver: mockset.Driver, tracing: Make) -> None:
    run = tracing(driver.pid)
    step = f"step {S1} 1 1 101"
    # Sampling, a stop condition that synchronises, inputs copied (which synchronises first) and prepared.
    between = [f"launch {S1} 3", f"sync {S1}", "d2h 1", f"h2dsync {S1} 8", f"launch {S1} 4"]
    driver.run(step, *between, step, *between, step)
    steps = run.finish()
    assert [step.launches for step in model(steps)] == [101, 108, 108]
    assert [step.h2d_bytes for step in model(steps)] == [0, 8, 8]
    assert sum(step.launches for step in steps) == 3 * 101 + 2 * 7


@ebpf
@both
def test_two_streams_and_a_device_synchronise(driver: mockset.Driver, tracing: Make) -> None:
    run = tracing(driver.pid)
    for _ in range(7):
        driver.run(f"embed {S1} 1 19", f"launch {S1} 30", f"embed {S2} 3 1", f"launch {S2} 40", "syncdev")
    steps = model(run.finish())
    by_lane = Counter((step.stream, step.phase, step.tokens, step.batch, step.launches) for step in steps)
    assert by_lane == {(0x20010, "prefill", 19, 1, 31): 7, (0x20020, "decode", 3, 3, 41): 7}
    assert {step.ended_by for step in steps} == {"sync"}


@ebpf
def test_positions_are_no_step_of_their_own(driver: mockset.Driver, tracing: Make) -> None:
    run = tracing(driver.pid)
    for _ in range(5):
        driver.run(f"embed {S1} 2 11", f"launch {S1} 3", f"wpe {S1} 1 11", f"launch {S1} 50", f"sync {S1}")
    assert summary(model(run.finish())) == [("prefill", 22, 2, 55)] * 5


@ebpf
def test_steps_without_any_synchronise_end_where_the_next_begins(
    driver: mockset.Driver, tracing: Make
) -> None:
    run = tracing(driver.pid)
    for _ in range(5):
        driver.run(f"embed {S1} 1 1", f"launch {S1} 20")
    driver.run(f"sync {S1}")
    steps = run.finish()
    assert summary(steps) == [("decode", 1, 1, 21)] * 5
    assert [step.ended_by for step in steps] == ["embedding"] * 4 + ["sync"]


@ebpf
def test_layers_that_synchronise_are_parts_of_one_step(driver: mockset.Driver, tracing: Make) -> None:
    # A mixture of experts asks in every layer how many tokens each expert got.
    run = tracing(driver.pid)
    for _ in range(4):
        driver.run(f"embed {S1} 1 23", *[f"launch {S1} 17", f"sync {S1}", "d2h 64"] * 6, f"launch {S1} 9")
        driver.run(f"sync {S1}", "d2h 8", f"launch {S1} 2", f"sync {S1}", "d2h 1")
    steps = model(run.finish())
    assert summary(steps)[0] == ("prefill", 23, 1, 1 + 6 * 17 + 9)
    assert summary(steps)[1:] == [("prefill", 23, 1, 2 + 1 + 6 * 17 + 9)] * 3


@ebpf
def test_flattened_batches_are_told_by_their_lengths(driver: mockset.Driver, tracing: Make) -> None:
    run = tracing(driver.pid)
    driver.run(
        f"flat {S1} 4 101 1 2 3 4",
        f"flat {S1} 50 101 37 50",
        f"flat {S1} 35 101 1 2 3 35",
    )
    assert summary(run.finish()) == [("decode", 4, 4, 101), ("prefill", 50, 2, 101), ("mixed", 35, 4, 101)]


@ebpf
@both
def test_graph_capture_and_replay(driver: mockset.Driver, tracing: Make) -> None:
    run = tracing(driver.pid)
    driver.run(f"capture {S2} 4 1 300", *[f"h2dsync {S1} 32", f"replay {S1}", f"sync {S1}"] * 11)
    steps = run.finish()
    capture, *replays = steps
    assert (capture.phase, capture.launches, capture.evidence) == ("other", 300, "capture of embedding[4,1]")
    assert len(replays) == 11
    assert {(step.phase, step.tokens, step.batch, step.graph_launches) for step in replays} == {
        ("decode", 4, 4, 1)
    }
    assert {step.evidence for step in replays} == {"graph of embedding[4,1]"}


@ebpf
def test_graphs_captured_before_the_probe_came(driver: mockset.Driver, tracing: Make) -> None:
    driver.run(f"launch {S1} 1", f"sync {S1}")
    run = tracing(driver.pid)
    driver.run(f"launch {S1} 1", f"sync {S1}")
    driver.run(*[f"h2dsync {S1} 32", f"replay {S1}", f"launch {S1} 5", f"sync {S1}", "d2h 32"] * 5)
    driver.run(*[f"replay {S1}", "lengths 1 2 3 4 10 20 31 40", f"sync {S1}"] * 3)
    steps = model(run.finish())
    assert [(s.phase, s.tokens, s.evidence) for s in steps[:5]] == [("decode", 4, "graph h2d 32 B")] * 5
    assert [(s.tokens, s.kv_len, s.evidence) for s in steps[5:]] == [(4, 40, "graph lengths[1,..,4]*4")] * 3


@ebpf
def test_eager_prefill_then_graph_decode_on_one_stream(driver: mockset.Driver, tracing: Make) -> None:
    run = tracing(driver.pid)
    driver.run(f"step {S1} 1 37 218", *[f"h2dsync {S1} 8", f"graph {S1} 0x7010", f"sync {S1}"] * 3)
    steps = model(run.finish())
    assert [(s.phase, s.tokens, s.graph_launches) for s in steps] == [("prefill", 37, 0)] + [
        ("decode", 1, 1)
    ] * 3


@ebpf
def test_pieces_of_a_graph_are_one_step(driver: mockset.Driver, tracing: Make) -> None:
    run = tracing(driver.pid)
    for _ in range(3):
        driver.run(f"embed {S1} 2 1", *[f"launch {S1} 2", f"graph {S1} 0x7010"] * 8, f"sync {S1}")
    steps = model(run.finish())
    assert [(s.phase, s.batch, s.launches, s.graph_launches) for s in steps] == [("decode", 2, 17, 8)] * 3


@ebpf
def test_plain_work_ends_at_each_synchronise(driver: mockset.Driver, tracing: Make) -> None:
    run = tracing(driver.pid)
    driver.run(*[f"launch {S1} 7", f"sync {S1}", f"sync {S1}"] * 13, f"launch {S1} 5", "sleep 100")
    steps = run.finish()
    assert [(s.phase, s.launches, s.ended_by) for s in steps] == [("other", 7, "sync")] * 13 + [
        ("other", 5, "detach")
    ]


@ebpf
def test_a_copy_to_the_host_is_a_synchronise(driver: mockset.Driver, tracing: Make) -> None:
    run = tracing(driver.pid)
    driver.run(*[f"launch {S1} 7", "d2h 40"] * 5)
    steps = run.finish()
    assert [(s.launches, s.d2h_bytes) for s in steps] == [(7, 40)] * 5


@ebpf
@both
def test_begins_come_before_their_steps(driver: mockset.Driver, tracing: Make) -> None:
    run = tracing(driver.pid, begins=True)
    driver.run(f"step {S1} 1 37 218", *[f"step {S1} 1 1 214"] * 3)
    run.finish()
    kinds = [(type(event).__name__, event.phase) for event in run.events]
    want = [("StepBegin", "prefill")]
    for ended in ("prefill", "decode", "decode"):
        want += [("Step", ended), ("StepBegin", "decode")]
    want += [("Step", "decode")]
    assert kinds == want
    begins = [event for event in run.events if isinstance(event, StepBegin)]
    assert [begin.t_ns for begin in begins] == [step.t_start_ns for step in run.steps]


@ebpf
def test_attaching_in_the_middle_of_a_step(driver: mockset.Driver, tracing: Make) -> None:
    driver.run(f"embed {S1} 1 37", f"launch {S1} 10")
    run = tracing(driver.pid)
    driver.run(f"launch {S1} 10", f"sync {S1}", *[f"step {S1} 1 1 214"] * 3)
    assert summary(run.finish()) == [("other", None, None, 10)] + [("decode", 1, 1, 214)] * 3


@ebpf
@both
def test_every_launch_is_in_a_step_and_bpftrace_counts_the_same(
    driver: mockset.Driver, mock_driver: Path, tracing: Make
) -> None:
    """10,007 operators (a prime) in 499 steps (a prime), counted by a second tool too."""
    if shutil.which("bpftrace") is None:
        pytest.skip("bpftrace is not installed")
    folder, this = mock_driver.parent, f"/pid == {driver.pid}/"
    script = (
        f"uprobe:{folder}/libacl_rt.so:aclrtLaunchKernelWithHostArgs {this} {{ @launches = count(); }} "
        f"uprobe:{folder}/libopapi.so:aclnnEmbedding {this} {{ @steps = count(); }}"
        'BEGIN { printf("ready\\n"); }'
    )
    other = subprocess.Popen(["bpftrace", "-f", "json", "-e", script], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        ready = ""
        while '"ready' not in ready:
            ready = other.stdout.readline()
            assert ready, "bpftrace ended"
        run = tracing(driver.pid)
        left = 10_007
        for number in range(499):
            size = 20 if number < 498 else left
            stream = S1 if number % 3 else S2
            driver.run(f"step {stream} 1 {1 if number % 5 else 53} {size}")
            left -= size
            if number % 50 == 0:
                run.poll(0.001)
        steps = run.finish()
        time.sleep(0.2)
        other.send_signal(signal.SIGINT)
        printed, _ = other.communicate(timeout=120)
    finally:
        if other.poll() is None:
            other.kill()
            other.wait()
    maps: dict[str, int] = {}
    for line in printed.splitlines():
        found = json.loads(line) if line.startswith("{") else {}
        if found.get("type") == "map":
            maps |= found["data"]
    assert sum(step.launches for step in steps) == 10_007 == maps["@launches"]
    assert len(steps) == 499 == maps["@steps"]
    assert Counter(step.phase for step in steps) == {"prefill": 100, "decode": 399}
    counts = run.losses.counts
    assert counts["steps_lost"] == 0
    assert counts["steps_received"] == counts["steps_sent"]


@ebpf
@both
def test_records_lost_are_counted(driver: mockset.Driver) -> None:
    from probes.steps.tracer import Tracer

    events: list[object] = []
    with Tracer(
        events.append, ring_pages=1, plan="detail", budget_percent=None
    ) as tracer:  # room for about ten records
        tracer.attach(driver.pid)
        driver.run(*[f"launch {S1} 1", f"sync {S1}"] * 101)
        tracer.poll(0.05)
        counts = tracer.losses().counts
    assert counts["steps_lost"] > 0
    assert counts["steps_lost"] + counts["steps_sent"] == 101
    assert counts["steps_received"] == counts["steps_sent"]


@ebpf
@both
def test_a_process_that_ends_gives_up_its_last_step(driver: mockset.Driver, tracing: Make) -> None:
    run = tracing(driver.pid)
    driver.run(f"step {S1} 1 37 218")
    driver.stop()
    run.poll(1.5)
    assert summary(run.steps) == [("prefill", 37, 1, 218)]
    assert run.tracer.targets == []


@ebpf
@both
def test_a_process_goes_on_without_its_first_thread(driver: mockset.Driver, tracing: Make) -> None:
    run = tracing(driver.pid)
    driver.run(f"step {S1} 1 37 218", "leave")
    wait_for_zombie(driver.pid)
    driver.run(f"step {S1} 1 1 214")
    run.poll(2.5)  # the tracer looks at its targets every second
    assert [target.pid for target in run.tracer.targets] == [driver.pid]
    driver.run(f"step {S1} 1 1 215")
    assert summary(run.finish()) == [("prefill", 37, 1, 218), ("decode", 1, 1, 214), ("decode", 1, 1, 215)]


@ebpf
def test_whoever_comes_after_the_first_thread_is_told_or_traced(
    driver: mockset.Driver, tracing: Make
) -> None:
    driver.run(f"step {S1} 1 1 214", "leave")
    wait_for_zombie(driver.pid)
    with pytest.raises(AttachError, match="goes on without its first thread"):
        tracing(driver.pid, multi=True)
    run = tracing(driver.pid, multi=False)
    driver.run(f"step {S1} 1 1 215")
    assert summary(run.finish()) == [("decode", 1, 1, 215)]


@ebpf
def test_detaching_twice_and_attaching_again(driver: mockset.Driver, tracing: Make) -> None:
    run = tracing(driver.pid)
    driver.run(f"step {S1} 1 37 218")
    run.tracer.detach(driver.pid)
    run.tracer.detach(driver.pid)
    driver.run(f"step {S1} 1 1 99")  # unseen
    run.tracer.attach(driver.pid)
    driver.run(f"step {S1} 1 1 214")
    assert summary(run.finish()) == [("prefill", 37, 1, 218), ("decode", 1, 1, 214)]


@ebpf
def test_a_killed_tracer_leaves_nothing(driver: mockset.Driver) -> None:
    program = (
        "import sys, time; from probes.steps.tracer import Tracer\n"
        "t = Tracer(lambda e: None); t.attach(int(sys.argv[1]))\n"
        "print('attached', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [*mockset.python(), "-c", program, str(driver.pid)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "attached\n"
    assert mockset.probed(driver.pid)
    child.kill()
    child.wait(120)
    deadline = time.monotonic() + 20  # the kernel takes 0.1 s a probe
    while mockset.probed(driver.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not mockset.probed(driver.pid)
    registered = Path("/sys/kernel/tracing/uprobe_events")
    if registered.exists():
        assert "acl" not in registered.read_text()
    driver.run(f"step {S1} 1 1 50")


@ebpf
def test_there_is_nothing_to_attach_to(tracing: Make) -> None:
    from probes.steps.tracer import Tracer

    with Tracer(lambda event: None) as tracer:
        with pytest.raises(AttachError, match=r"no process 4194305"):
            tracer.attach(4194305)
        with pytest.raises(AttachError, match="does not use an NPU"):
            tracer.attach(os.getppid())


@given(st.binary(max_size=2 * RECORD_SIZE))
def test_any_bytes_are_a_record_or_refused(data: bytes) -> None:
    try:
        record = decode(data)
    except RecordError:
        return
    assert len(data) >= RECORD_SIZE
    assert record.launches >= 0


@given(st.binary(min_size=RECORD_SIZE, max_size=RECORD_SIZE), st.integers(1, 5), st.integers(0, 4))
@settings(deadline=None)
def test_any_record_can_be_classified(data: bytes, kind: int, ended_by: int) -> None:
    from probes.steps.phases import classify

    body = bytearray(data)
    body[48:56] = kind.to_bytes(4, "little") + ended_by.to_bytes(4, "little")
    record = decode(bytes(body))
    assert record.kind == kind
    assert classify(record.evidence).evidence
