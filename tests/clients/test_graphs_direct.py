"""Unmodified torch.npu.NPUGraph directly on the emulated CANN."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

pytestmark = pytest.mark.torch_npu


def test_graphs_compute_what_eager_operators_compute(direct: Callable[..., str]) -> None:
    result = json.loads(direct("graphs.py", "1000").splitlines()[-1])
    assert result["changed inputs"]["equal"] == 1000
    assert result["shared pool"]["equal"] == 12
    assert result["branches"]["close"]
    assert result["decode"]["equal"]
    assert len(set(result["decode"]["tokens"])) > 5
    assert result["qwen2"]["equal"]
    assert len({tuple(tokens) for tokens in result["qwen2"]["tokens"]}) > 3
    assert result["task group"]["before"]
    assert result["task group"]["after"]
    assert result["attention updates"]["equal"] == 10
    assert result["attention updates"]["different"] == 10
    assert result["graphed callable"]["forward"]
    assert result["graphed callable"]["backward"] == [True] * 5
    # A synchronise of the capturing stream, then the end of the capture that it spoiled.
    assert result["misuse"] == {"inside": "107027", "after": "507903", "eager": 12.0}
    assert result["dump"] == {"names": ["aclnnInplaceMuls"] * 5, "aligned": True}
