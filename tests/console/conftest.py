from __future__ import annotations

from pathlib import Path

import pytest

from probes.feed.events import Losses, Step
from probes.feed.recording import Recorder, Tick

NASTY = "\x1b[31m\x9b2J\u202e[red]\nx"
"""What a process may be named: escapes, a C1 control, a bidi control, rich's markup, a line break."""


def write_recording(path: Path, comm: str) -> None:
    """Two seconds of steps of a process named `comm`."""
    with Recorder(path) as recorder:
        for second in range(1, 3):
            for step in range(10):
                begun = second * 10**9 + step * 10**7
                recorder.event(
                    Step(
                        t_start_ns=begun,
                        t_end_ns=begun + 5_000_000,
                        pid=4242,
                        comm=comm,
                        stream=0x20010,
                        phase="decode",
                        tokens=1,
                        batch=1,
                        launches=200,
                        graph_launches=0,
                        h2d_bytes=8,
                        d2h_bytes=8,
                        evidence="embedding[1,1]",
                        confidence=1.0,
                    )
                )
            recorder.event(Losses(t_ns=second * 10**9, source="steps", counts={"steps_lost": 0}))
            recorder.tick(Tick((second + 1) * 10**9, 1.0, [], {}))


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "run.jsonl.zst"
    write_recording(path, "server")
    return path


@pytest.fixture
def nasty_recording(tmp_path: Path) -> Path:
    path = tmp_path / "nasty.jsonl.zst"
    write_recording(path, NASTY)
    return path
