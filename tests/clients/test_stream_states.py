"""aclrtRegStreamStateCallback: the program hears of its streams, interposed as directly."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def test_told_of_every_stream(daemon: Any, direct: Callable[..., str]) -> None:
    said = json.loads(daemon.run("stream_states.py"))
    assert said == [
        ["first", 0, 1, 7],
        ["second", 0, 1, 8],
        ["first", 1, 1, 7],
        ["first", 0, 2, 7],
        100000,
    ]
    assert said == json.loads(direct("stream_states.py"))
