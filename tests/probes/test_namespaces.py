"""PID namespaces of tracer and traced process, nested in each way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from probes.placing import loader
from tests.containers import CONTAINER

PROGRAM = Path(__file__).parent / "programs" / "nested.py"

pytestmark = pytest.mark.ebpf


@pytest.mark.parametrize(
    ("contained", "deeper"),
    [(0, 2), (1, 0), (1, 1)],
    ids=["tracer-outside", "both-in-one", "each-in-its-own"],
)
@pytest.mark.parametrize("kind", ["vendor", "client"])
def test_a_process_is_traced_right(kind: str, contained: int, deeper: int, each_loader: str) -> None:
    """Whatever namespaces lie between the two: in each the process has another number."""
    done = subprocess.run(
        [*CONTAINER * contained, sys.executable, str(PROGRAM), kind, str(deeper)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {loader.ENVIRONMENT: each_loader, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert [result for result in results if not result["ok"]] == []
    assert len(results) > 5
