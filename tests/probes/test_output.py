"""Where events of `flexnpu-probe attach` go."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from probes.commands import output
from probes.commands.output import Output
from probes.feed.events import Losses
from probes.feed.socket import FeedClient, FeedServer


def test_the_feed_is_never_silent_however_long_the_intervals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(output.time, "monotonic", lambda: now[0])
    with FeedServer(tmp_path / "f.sock") as server, FeedClient(server.path) as client:
        while not server.counts["feed_subscribers"]:
            time.sleep(0.01)
        to = Output(as_json=False, quiet=True)
        to.feed = server
        heard: list[Losses] = []

        def hear() -> None:
            event = client.read(30)
            assert isinstance(event, Losses)
            heard.append(event)

        to.poll()
        hear()
        to.tick(Losses(5, "steps", {"steps_lost": 3}), now[0])
        hear()
        for _ in range(3):
            now[0] += 1.1
            to.poll()
            to.poll()
            hear()
        assert client.read(0.1) is None
    assert [one.counts.get("steps_lost") for one in heard] == [None, 3, 3, 3, 3]
    assert {one.source for one in heard} == {"steps"}
    assert [one.t_ns for one in heard[2:]] == sorted({one.t_ns for one in heard[2:]})
