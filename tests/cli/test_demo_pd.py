"""`flexnpu demo-pd`: what it says without vLLM, and how it judges.

The run itself needs 8 GB of vLLM; tests/vllm/test_disaggregated.py runs its servers where that is there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flexnpu.cli.demo_pd import PHASES, checks, table
from flexnpu.console.tables import wide_console


def told(tpot: float, prompts: float, answers: int = 20) -> dict[str, Any]:
    times = {"p50": tpot, "p90": tpot, "p99": 2 * tpot}
    return {
        "answers": answers,
        "tpot_ms": times,
        "ttft_ms": times,
        "tokens_per_s": 10.0,
        "flood_ttft_ms": times,
        "flood_prompts_per_s": prompts,
        "device_busy": 0.9,
    }


@pytest.mark.parametrize(
    ("tpot", "prompts", "pulled", "failed"),
    [
        ((50, 120, 60), (0, 4, 3.5), 60, []),
        ((50, 120, 100), (0, 4, 3.5), 60, ["the policy takes half of that away or more"]),
        ((50, 120, 60), (0, 4, 1), 60, ["the flood goes on"]),
        ((50, 120, 60), (0, 0, 0), 60, ["the flood goes on"]),
        ((50, 120, 60), (0, 4, 4), 59, ["the KV cache of every chat was pulled from P"]),
        ((50, 45, 45), (0, 4, 4), 60, ["the flood slows decode"]),
    ],
)
def test_the_verdict(
    tpot: tuple[float, ...], prompts: tuple[float, ...], pulled: int, failed: list[str]
) -> None:
    phases = {name: told(*both) for name, both in zip(PHASES, zip(tpot, prompts, strict=True), strict=True)}
    assert [name for name, held, _ in checks(phases, pulled) if not held] == failed
    console = wide_console(120)
    with console.capture() as captured:
        console.print(table(phases))
    row = next(line for line in captured.get().splitlines() if "TPOT p99" in line)
    assert [float(cell) for cell in row.strip("│ ").split("│")[1:]] == [2 * one for one in tpot]


@pytest.mark.skipif(os.geteuid() != 0, reason="without root it says that first")
def test_without_vllm_it_says_how_to_get_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("flexnpu")),
            "demo-pd",
            "--report",
            str(tmp_path / "report.json"),
        ],
        env=os.environ | {"FLEXNPU_VLLM_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "make vllm" in done.stderr
    assert not (tmp_path / "report.json").exists()
