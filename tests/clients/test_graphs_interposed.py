"""Unmodified torch.npu.NPUGraph through the daemon: the bits of a direct run, another session beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.torch_npu
@pytest.mark.timeout(300)
def test_graphs_give_the_same_bits_as_directly(daemon: Any, direct: Callable[..., str]) -> None:
    beside = daemon.start("models.py", "4")
    interposed = json.loads(daemon.run("graphs.py", "100").splitlines()[-1])
    beside.communicate(timeout=200)
    assert beside.returncode == 0
    assert interposed == json.loads(direct("graphs.py", "100").splitlines()[-1])
    counters = daemon.wait_for(lambda s: not s.sessions).counters
    assert counters["refused"] == 0
    assert counters["graphs_captured"] >= 10
    # A replay is one record, whatever it holds.
    assert counters["graph_replays"] > 200
