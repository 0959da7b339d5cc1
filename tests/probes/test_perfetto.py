"""The exported trace follows the format, and has what the recording has, where it was."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from probes.cli import main
from probes.feed.events import HostDelay, Losses, Phase, RequestTiming, Step
from probes.feed.recording import Recorder, Recording, Tick
from probes.show.perfetto import export
from tests.collectors import scripted

MS = 1_000_000
BASE = 3 * 86_400 * 1000 * MS  # three days after boot: times must keep their digits


def step(start_ms: float, end_ms: float, phase: Phase, stream: int = 16, **more: Any) -> Step:
    start, end = BASE + int(start_ms * MS), BASE + int(end_ms * MS)
    return scripted.step(start, end, phase, pid=5, stream=stream, **more)


REQUEST = RequestTiming(
    *(5, "chat", 3, BASE + MS, BASE + 31 * MS, BASE + 45 * MS, [BASE + 31 * MS, BASE + 40 * MS]),
    *("/v1/chat/completions", 200, 9, True),
    queue_us=9e3,
    prefill_us=15e3,
    gated_us=5e3,
    send_us=1e3,
    first_step=BASE + 10 * MS,
    first_step_pid=5,
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with Recorder(tmp_path / "run.jsonl.zst") as recorder:
        for event in (
            step(10, 30, "prefill", gated_us=5e3),
            step(31, 40, "decode"),
            step(12, 13, "other", stream=32),
            REQUEST,
            HostDelay(BASE + 1000 * MS, 5, "chat", None, 1e6, 5e5, 2e5),
            Losses(BASE + 1000 * MS, "steps", {"steps_sent": 9, "steps_lost": 2, "map_full": 0}),
        ):
            recorder.event(event)
        recorder.tick(Tick(BASE + 1000 * MS, 1.0, [(5, 16, 250_000.0), (6, 1, 3.0)]))
    return tmp_path / "run.jsonl.zst"


@pytest.fixture
def events(run: Path) -> list[dict[str, Any]]:
    text = io.StringIO()
    count = export(Recording(run), text)
    trace = json.loads(text.getvalue())
    assert count == len(trace["traceEvents"])
    assert trace["otherData"]["clock"] == "CLOCK_MONOTONIC"
    found: list[dict[str, Any]] = trace["traceEvents"]
    return found


def test_every_event_is_of_the_format(events: list[dict[str, Any]]) -> None:
    for event in events:
        assert event["ph"] in "MXbenCi"
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert event["ph"] == "M" or event["ts"] >= 0
        assert event["ph"] != "X" or event["dur"] >= 0
    open_spans: Counter[tuple[int, str]] = Counter()
    for event in events:
        if event["ph"] in "be":
            open_spans[event["id"], event["name"]] += 1 if event["ph"] == "b" else -1
    assert not +open_spans
    assert not -open_spans


def test_steps_are_slices_of_their_stream(events: list[dict[str, Any]]) -> None:
    names = {
        event["tid"]: event["args"]["name"]
        for event in events
        if (event["ph"], event["name"]) == ("M", "thread_name")
    }
    slices = [
        (names[e["tid"]], e["name"], round(e["ts"] - BASE / 1e3, 3), e["dur"])
        for e in events
        if e["ph"] == "X"
    ]
    assert sorted(slices) == [
        ("stream 0x10", "decode", 31e3, 9e3),
        ("stream 0x10", "prefill", 10e3, 20e3),
        ("stream 0x10 gate", "gated", 10e3, 5e3),
        ("stream 0x20", "other", 12e3, 1e3),
    ]


def test_a_request_is_a_span_with_its_parts(events: list[dict[str, Any]]) -> None:
    begins = {e["name"]: e["ts"] - BASE / 1e3 for e in events if e["ph"] == "b"}
    ends = {e["name"]: e["ts"] - BASE / 1e3 for e in events if e["ph"] == "e"}
    spans = {name: (round(begins[name], 3), round(ends[name], 3)) for name in begins}
    assert spans == {
        "/v1/chat/completions 200": (1e3, 45e3),
        "TTFT": (1e3, 31e3),
        "queue": (1e3, 10e3),
        "prefill": (10e3, 25e3),
        "gated": (25e3, 30e3),
        "send": (30e3, 31e3),
        "decode": (31e3, 45e3),
    }
    assert [round(e["ts"] - BASE / 1e3, 3) for e in events if e["ph"] == "n"] == [31e3, 40e3]


def test_counters_and_losses_are_there(events: list[dict[str, Any]]) -> None:
    counters = {e["name"]: e["args"]["percent"] for e in events if e["ph"] == "C"}
    assert counters == {
        "run queue % all threads": 20.0,
        "CPU % all threads": 50.0,
        "gated % stream 0x10": 25.0,
    }
    assert [e["name"] for e in events if e["ph"] == "i"] == ["steps: steps_lost +2"]


def test_the_command_writes_what_can_be_read(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert CliRunner().invoke(main, ["export", "--perfetto", str(run), "-o", str(out)]).exit_code == 0
    assert json.loads(out.read_text())["traceEvents"]
    (tmp_path / "cut").write_bytes(run.read_bytes()[:-20])
    done = CliRunner().invoke(main, ["export", str(tmp_path / "cut"), "-o", str(out)])
    assert (done.exit_code, "is damaged" in done.output) == (3, True)
    json.loads(out.read_text())
    for output, status, complaint in (
        (run, 1, "the recording itself"),
        (tmp_path / "out.pftrace", 2, "protobuf is not written"),
        (tmp_path / "no" / "folder", 1, "cannot write"),
    ):
        done = CliRunner().invoke(main, ["export", str(run), "-o", str(output)])
        assert (done.exit_code, complaint in done.output) == (status, True), done.output
