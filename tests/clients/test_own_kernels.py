"""Kernels of a program's own: refused by name unless the daemon was told to serve them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest


def test_refused_without_the_option(daemon: Any) -> None:
    code, message = json.loads(daemon.run("own_kernels.py"))["refused"]
    assert code == 200001
    assert "--allow-kernels" in message


@pytest.mark.parametrize("daemon", [("--allow-kernels",)], indirect=True)
def test_served_as_directly(daemon: Any, direct: Callable[..., str]) -> None:
    said = json.loads(daemon.run("own_kernels.py"))
    assert said == json.loads(direct("own_kernels.py"))
    for kind in ("host arguments", "device arguments", "captured"):
        assert said[kind], kind
    assert said["binary"] == [100000, 107017]
    assert said["no function"] == 100029
    assert said["bad"] == {
        "no function": 107017,
        "place holder": 107000,
        "no blocks": 100000,
        "unloaded": 107017,
        "address": 507015,
    }
    counters = daemon.status().counters
    # Two with arguments of the host, one with the device's, the one that fails; a replay is no launch.
    assert counters["launches"] == 4
    assert counters["captured_launches"] == 1
