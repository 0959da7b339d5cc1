"""`flexnpu demo`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
import uuid
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from flexnpu.cli import leftovers
from flexnpu.cli.demo import report
from flexnpu.cli.demo.chain import interrupt, require_folder, require_root
from flexnpu.cli.demo.host import STEPS, TooSlowError
from flexnpu.cli.demo.judge import judge
from flexnpu.cli.demo.measure import load_average
from flexnpu.cli.demo.phases import Demo
from flexnpu.cli.demo.plan import Plan
from flexnpu.cli.demo.processes import DemoError, Supervisor
from flexnpu.cli.demo.profile import operator_times
from flexnpu.console.numbers import Duration, Number
from flexnpu.console.output import whole_file
from flexnpu.console.tables import wide_console
from flexnpu.console.text import json_text

#: Exit statuses besides 0.
FAILED, CANNOT_START, TOO_SLOW = 1, 2, 3


def _attempt(demo: Demo) -> dict[str, Any]:
    """Run all parts; a part that does not come up is a failed check and ends the run.

    Raises TooSlowError before the loads begin.
    """
    found: dict[str, Any] = {}
    try:
        demo.scale()
        watch = demo.bring_up()
        demo.run_phases(watch)
        found = judge(demo, watch)
    except DemoError as error:
        demo.say(f"flexnpu demo: {error}")
        demo.check("the chain runs", False, str(error).splitlines()[0])
    except KeyboardInterrupt:
        demo.check("the chain runs", False, "interrupted")
    return found


def run(plan: Plan, report_path: Path, keep: bool, slowdown: float | None = None) -> int:
    """Run the demo, write the report, and return the exit status.

    Raises DemoError if it cannot start here, TooSlowError if the host is too slow or too busy for a verdict.
    """
    require_root()
    require_folder(report_path)
    console = wide_console(120)
    started, tag = time.monotonic(), uuid.uuid4().hex
    os.environ[leftovers.TAG_VARIABLE] = tag
    directory = Path(tempfile.mkdtemp(prefix="flexnpu-demo-"))
    before = leftovers.survey(None, [])
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        with Supervisor(directory, tag) as supervisor, contextlib.ExitStack() as stack:
            demo = Demo(plan, console, directory, supervisor, stack, slowdown)
            try:
                found = _attempt(demo)
                demo.section("8. Ending")
            finally:
                if demo.watch is not None:
                    demo.watch.close()
        left = _left_behind(tag, directory, before)
        demo.check(
            "nothing left behind",
            not left,
            "no process, shared memory, socket or probe" if not left else "; ".join(left),
        )
    finally:
        signal.signal(signal.SIGTERM, previous)
        if keep:
            console.print(f"logs and events kept in {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    console.print(report.side_by_side(demo.phases, demo.plan.slowdown))
    report.print_checks(console, demo.checks)
    passed = all(check.passed for check in demo.checks)
    seconds = time.monotonic() - started
    content = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "passed": passed,
        "seconds": round(seconds, 1),
        "versions": report.versions(),
        "speed": demo.choice,
        "plan": asdict(demo.plan),
        "profile": operator_times(plan),
        "phases": {phase.name: phase.figures for phase in demo.phases},
        **found,
        "checks": [asdict(check) for check in demo.checks],
    }
    with whole_file(report_path) as file:
        file.write(json_text(content, indent=2, default=str) + "\n")
    console.print(f"{'passed' if passed else 'FAILED'} in {seconds:.0f} s; all figures in {report_path}")
    return 0 if passed else FAILED


def _left_behind(tag: str, directory: Path, before: dict[str, list[str]]) -> list[str]:
    deadline = time.monotonic() + 5.0
    while True:
        after = leftovers.survey(tag, [directory])
        new = [f"{kind}: {x}" for kind, found in after.items() for x in found if x not in before[kind]]
        if not new or time.monotonic() > deadline:
            return new
        time.sleep(0.25)


@click.command("demo")
@click.option(
    "--report",
    "report_path",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("demo-report.json"),
    show_default=True,
    help="Where to write the figures.",
)
@click.option(
    "--phase-s",
    type=Duration(10, 600),
    default=Plan.phase_s,
    show_default=True,
    help="Seconds of each flooded phase; a tenth more on a slow chip.",
)
@click.option(
    "--slowdown",
    type=Number(1, STEPS[-1]),
    help="Make the modelled chip this many times slower, whatever the host. Default: as the host needs.",
)
@click.option("--keep", is_flag=True, help="Keep logs, events and Prometheus' data, and say where.")
def demo(report_path: Path, phase_s: float, slowdown: float | None, keep: bool) -> None:
    """Run the whole chain on this machine, show it at work, check every link.

    Starts two unmodified LLM servers on one emulated NPU through flexnpud, attaches the probes to the live
    processes, and replays real request arrivals, without and with the controller's policy. Before the loads
    it measures what this host adds to the device's time, and makes the modelled chip slower by one factor, so
    that the device and not the host is what is contended. Ends by itself in under four minutes, or six if the
    host's load changes meanwhile; leaves nothing running. Needs root (eBPF).

    \b
    Exit status: 0 every link held; 1 one did not; 2 it cannot start here;
    3 this host is too slow, too busy or too unsteady now for a verdict.
    """
    try:
        sys.exit(run(Plan(phase_s=phase_s), report_path, keep, slowdown))
    except TooSlowError as error:
        click.echo(
            f"flexnpu demo: no verdict: this host is too slow or too busy now ({load_average()}): {error}.\n"
            f"End other programs and try again, or give it time: flexnpu demo --phase-s {2 * phase_s:.0f}",
            err=True,
        )
        sys.exit(TOO_SLOW)
    except DemoError as error:
        click.echo(f"flexnpu demo: {error}", err=True)
        sys.exit(CANNOT_START)
