"""Traces in their public formats."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("simulation._core", reason="run make build")

from simulation import arrivals
from workloads.replay import Arrival

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.4799600,3180,8
"""
BURST = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
118,GPT-4,417,276,693,API log
"""
MOONCAKE = """{"timestamp": 3000, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}
{"timestamp": 27482, "input_length": 9, "output_length": 20, "hash_ids": [2]}
"""


@pytest.mark.parametrize(
    ("text", "expected", "left_out"),
    [
        (AZURE, [(0.0, 4808, 10), (0.5, 3180, 8)], 0),
        (BURST, [(0.0, 472, 18), (113.0, 417, 276)], 1),
        (MOONCAKE, [(0.0, 6758, 500), (24.482, 9, 20)], 0),
    ],
    ids=["azure", "burstgpt", "mooncake"],
)
def test_formats(tmp_path: Path, text: str, expected: list[tuple[float, int, int]], left_out: int) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    load = arrivals.read(path)
    assert load.left_out == left_out
    assert [one.at_s for one in load.arrivals] == pytest.approx([at for at, _, _ in expected], abs=1e-6)
    assert [(one.prompt_tokens, one.output_tokens) for one in load.arrivals] == [
        (prompt, output) for _, prompt, output in expected
    ]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a,b\n1,2\n", "neither Azure's columns nor BurstGPT's"),
        ("", "neither Azure's"),
        (AZURE + "yesterday,1,2\n", ":4: not a row"),
        (BURST + "7,x,-3,4,1,y\n", ":5: a time or a number of tokens that cannot be"),
        (MOONCAKE + '{"timestamp": 3}\n', ":3: no JSON object with"),
        (MOONCAKE + "[1]\n", ":3: no JSON object with"),
        (AZURE.splitlines()[0] + "\n", "no requests in it"),
        ("\0\xff", "neither Azure's"),
    ],
)
def test_what_is_no_trace_is_named(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=error):
        arrivals.read(path)


def test_a_traces_time_passes_faster_by_the_rate() -> None:
    load = arrivals.Load([Arrival(at, 1, 1) for at in (0.0, 10.0, 20.0)])
    assert [one.at_s for one in arrivals.scaled(load, rate=2, duration_s=10).arrivals] == [0.0, 5.0]
