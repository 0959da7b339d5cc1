"""What the demo shows and writes: text that others chose stays text, and a report is whole or not there."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from flexnpu.cli.demo.command import CANNOT_START, demo
from flexnpu.cli.demo.report import Check, Phase, print_checks, side_by_side
from flexnpu.cli.demo.watch import Window
from flexnpu.console.tables import Console


def test_nothing_in_a_verdict_acts() -> None:
    out = io.StringIO()
    console = Console(width=100, file=out)
    print_checks(
        console,
        [Check("a link", True, "[red]as written[/]"), Check("another", False, "a name \x1b[31m and\na line")],
    )
    shown = out.getvalue()
    assert "[red]as written[/]" in shown
    assert "\x1b" not in shown
    assert "pass" in shown
    assert "FAIL" in shown


def test_phases_side_by_side() -> None:
    window = Window(0, 10**9)
    phases = [Phase(f"p{i}", f"phase [bold]{i}[/]", window, window, [], None, {}) for i in range(2)]
    phases[1].figures = {"device_busy": 0.5}
    out = io.StringIO()
    Console(width=120, file=out).print(side_by_side(phases, 4.0))
    shown = out.getvalue()
    assert "phase [bold]0[/]" in shown
    assert "device busy, %" in shown
    assert "in the time of the chip at full speed (/ 4)" in shown


@pytest.mark.skipif(os.geteuid() != 0, reason="the demo asks for root first")
def test_a_report_that_cannot_be_written_is_told_before_the_demo_starts(tmp_path: Path) -> None:
    done = CliRunner().invoke(demo, ["--report", str(tmp_path / "missing" / "report.json")])
    assert done.exit_code == CANNOT_START
    assert "missing" in done.output
    assert not (tmp_path / "missing").exists()
