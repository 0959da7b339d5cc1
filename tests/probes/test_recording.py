from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import mockset
import pytest
import zstandard
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexnpu.common.quantiles import nearest_rank
from probes.cli import main
from probes.feed.events import Event, HostDelay, Losses, Phase, RequestTiming, Step
from probes.feed.recording import MAX_BLOCK_BYTES, Header, Overhead, Recorder, Recording, RecordingError, Tick
from probes.show.histogram import Distributions, human_us, tpot_us
from tests.collectors import scripted

MS = 1_000_000
S1 = "0x20010"


def step(start_ms: float, end_ms: float, phase: Phase = "decode", **more: Any) -> Step:
    return scripted.step(int(start_ms * MS), int(end_ms * MS), phase, pid=5, comm="s", stream=16, **more)


def request(chunks_ms: list[int], complete: bool = True) -> RequestTiming:
    chunks = [at * MS for at in chunks_ms]
    first = chunks[0] if chunks else None
    return RequestTiming(5, "s", 3, 10 * MS, first, 99 * MS, chunks, "/v1/completions", 200, 9, complete)


EVENTS: list[Event] = [
    step(0, 20, "prefill"),
    request([30, 40, 60]),
    HostDelay(7, 5, "s", None, 1e6, 3.5, 2.5),
    step(21, 25),
    Losses(9, "steps", {"steps_lost": 1}),
]


TICK = Tick(11, 1.0, [(5, 16, 2.5)], {5: Overhead(0.5, ["windows"])})
HEADER = Header(1, "0", "h", "k", "m", 1, 2, 3)


def write(
    path: Path, events: list[Event] = EVENTS, flush_after: int = 2, header: Header | None = None
) -> bytes:
    with Recorder(path, header=header) as recorder:
        for number, event in enumerate(events):
            recorder.event(event)
            if number % flush_after == 0:
                recorder.flush()
        recorder.tick(TICK)
    return path.read_bytes()


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    before = time.time_ns()
    write(tmp_path / "run")
    recording = Recording(tmp_path / "run")
    assert list(recording) == [*EVENTS, TICK]
    assert recording.damage is None
    assert before <= recording.header.realtime_ns <= time.time_ns()
    assert recording.header.t_ns <= time.monotonic_ns()
    lines = zstandard.ZstdDecompressor().stream_reader(
        (tmp_path / "run").read_bytes(), read_across_frames=True
    )
    assert [json.loads(line)["type"] for line in lines.read().splitlines()][::7] == ["recording", "end"]


def test_a_recording_that_was_cut_off_is_read_up_to_there(tmp_path: Path) -> None:
    whole = write(tmp_path / "run")
    seen = set()
    for length in range(0, len(whole), 7):
        (tmp_path / "cut").write_bytes(whole[:length])
        try:
            recording = Recording(tmp_path / "cut")
        except RecordingError:
            continue  # not even the header
        got = [item for item in recording if not isinstance(item, Tick)]
        assert got == EVENTS[: len(got)]
        assert recording.damage
        seen.add(len(got))
    assert seen == {0, 1, 3, 5}  # what each block adds


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "is no recording"),
        (b'{"type":"recording"}\n', "is no recording"),
        (zstandard.compress(b'{"type":"recording","format":1}\n'), "Field required"),
        (zstandard.compress(b'{"type":"end","events":0}\n'), "is no recording"),
        (zstandard.compress(b"\0" * (MAX_BLOCK_BYTES + 1)), "more than"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, data: bytes, complaint: str) -> None:
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(RecordingError, match=complaint):
        Recording(tmp_path / "f")


def test_joined_and_edited_recordings_say_so(tmp_path: Path) -> None:
    whole = write(tmp_path / "run")
    (tmp_path / "twice").write_bytes(whole * 2)
    recording = Recording(tmp_path / "twice")
    list(recording)
    assert "joined" in (recording.damage or "")
    text = zstandard.ZstdDecompressor().stream_reader(whole, read_across_frames=True).read()
    for edit, complaint in (
        (text.replace(b'"type":"host"', b'"type":"hosts"'), "unknown type 'hosts'"),
        (text.replace(b'"events":5', b'"events":6'), "says 6"),
        (text + b'{"type":', "does not end with a line"),
    ):
        (tmp_path / "edited").write_bytes(zstandard.compress(edit))
        recording = Recording(tmp_path / "edited")
        list(recording)
        assert complaint in (recording.damage or "")


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(write(tmp_path / "run", header=HEADER))
    if data.draw(st.booleans()):
        text = zstandard.ZstdDecompressor().stream_reader(bytes(whole), read_across_frames=True).read()
        whole = bytearray(text)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
        whole = whole or bytearray(b"x")
    changed = bytes(whole)
    if not changed.startswith(b"\x28\xb5\x2f\xfd"):
        changed = zstandard.compress(changed)
    (tmp_path / "f").write_bytes(changed)
    try:
        recording = Recording(tmp_path / "f")
    except RecordingError:
        return
    for _ in recording:
        pass


def test_a_run_that_never_began_costs_no_earlier_recording(tmp_path: Path) -> None:
    whole = write(tmp_path / "run")
    for name in ("run", "new"):
        with pytest.raises(KeyError), Recorder(tmp_path / name):
            raise KeyError("nothing to attach to")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run").read_bytes() == whole
    assert len(write(tmp_path / "run", [])) < len(whole)
    assert list(Recording(tmp_path / "run")) == [TICK]


def test_a_full_disk_is_named() -> None:
    with pytest.raises(RecordingError, match="cannot write /dev/full: No space left"):
        Recorder("/dev/full").flush()
    with pytest.raises(RecordingError, match="cannot write"):
        Recorder("/no/such/folder/run")


def test_measures_of_steps_and_requests() -> None:
    found = Distributions()
    for event in (
        *EVENTS,
        step(24, 30),
        step(31, 39, ended_by="detach"),
        step(40, 42),
        request([], complete=False),
    ):
        found.take(event)
    values = {(key.measure, key.phase): list(one.values) for key, one in found}
    assert values == {
        ("step", "prefill"): [20e3],
        ("step", "decode"): [4e3, 6e3, 2e3],
        ("gap", "decode"): [1e3],
        ("ttft", None): [20e3],
        ("tpot", None): [15e3],
    }
    assert (found.overlapping, found.unfinished) == (1, 1)
    (decode,) = [one for key, one in found if (key.measure, key.phase) == ("step", "decode")]
    assert decode.buckets() == [(10, 1), (11, 1), (12, 1)]
    assert decode.quantiles() | {"min": 2e3, "p50": 4e3, "p99": 6e3, "max": 6e3} == decode.quantiles()
    assert tpot_us(request([30])) is None


@given(st.lists(st.floats(0, 1e9), min_size=1), st.floats(0.01, 1))
def test_quantiles_and_buckets_by_their_definition(values: list[float], q: float) -> None:
    ordered = sorted(values)
    value = nearest_rank(ordered, q)
    assert sum(v <= value for v in values) >= q * len(values) - 1e-9
    assert sum(v < value for v in values) < q * len(values) + 1e-9
    found = Distributions()
    for v in values:
        found.take(step(0, v / 1e3))
    ((_, one),) = [item for item in found if item[0].measure == "step"]
    buckets = one.buckets()
    assert sum(count for _, count in buckets) == len(values)
    for k, count in buckets:
        low = 2.0**k if k else 0.0
        assert count == sum(low <= v < 2.0 ** (k + 1) for v in one.values)


def test_times_are_readable() -> None:
    shown = [human_us(v) for v in (0, 0.5, 12.34, 999.4, 999.6, 12_345, 2.5e6, 1e9)]
    assert shown == ["0 us", "0.5 us", "12.3 us", "999 us", "1 ms", "12.3 ms", "2.5 s", "1e+03 s"]


def test_hist_of_a_damaged_recording_shows_what_is_there_and_ends_with_3(tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(write(tmp_path / "run")[:-30])
    done = CliRunner().invoke(main, ["hist", "--from", str(tmp_path / "cut")])
    assert done.exit_code == 3
    assert "step decode  s:5 stream 0x10   n=1" in done.output
    assert "is damaged: " in done.output


@pytest.mark.ebpf
def test_a_recording_has_the_numbers_of_its_run(driver: mockset.Driver, tmp_path: Path) -> None:
    hist = [*mockset.python(), "-m", "probes.cli", "hist"]
    run = tmp_path / "run.jsonl.zst"
    child = subprocess.Popen(
        [*hist, "--pid", str(driver.pid), "-o", str(run), "--no-wire"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    while "measuring" not in child.stderr.readline():
        assert child.poll() is None
    driver.run(f"step {S1} 1 37 218", *[f"step {S1} 1 1 214"] * 31)
    child.send_signal(signal.SIGTERM)
    live, complaints = child.communicate(timeout=120)
    assert child.returncode == 0, complaints
    assert "n=31" in live or "n=30" in live
    again = subprocess.run([*hist, "--from", str(run)], capture_output=True, text=True, timeout=30)
    assert (again.returncode, again.stdout) == (0, live)


@pytest.mark.ebpf
def test_kill_costs_a_recording_no_more_than_its_last_second(driver: mockset.Driver, tmp_path: Path) -> None:
    run = tmp_path / "run.jsonl.zst"
    child = subprocess.Popen(
        [
            *mockset.python(),
            "-m",
            "probes.cli",
            "trace",
            "--pid",
            str(driver.pid),
            "-o",
            str(run),
            "--no-wire",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stderr is not None
        while "recording to" not in child.stderr.readline():
            assert child.poll() is None
        driver.run(*[f"step {S1} 1 1 214"] * 13)
        time.sleep(2.0)
    finally:
        child.kill()
        child.wait()
    recording = Recording(run)
    steps = [item for item in recording if isinstance(item, Step)]
    assert len(steps) >= 12  # the thirteenth may have been running
    assert "before its end" in (recording.damage or "")
    assert os.stat(run).st_size < 100_000
