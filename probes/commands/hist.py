"""`flexnpu-probe hist`: distributions of step time, launch gap, TTFT and TPOT."""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from flexnpu.console.output import out, out_json, say
from probes.commands import early
from probes.commands.common import Stop, damaged, errors
from probes.commands.options import (
    duration_option,
    plan_options,
    selection_options,
    take_plan,
    take_selection,
    wire_option,
)
from probes.feed.events import Event, Losses
from probes.feed.recording import Recording, Tick
from probes.host.selection import Selection
from probes.show.histogram import MEASURES, Distributions, lines


@click.command("hist", short_help="Histograms and quantiles of steps and requests.")
@selection_options
@plan_options
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Read a recording of `flexnpu-probe trace` instead of tracing.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also record the events to FILE, as `flexnpu-probe trace` does.",
)
@click.option(
    "--measure",
    "measures",
    type=click.Choice(list(MEASURES)),
    multiple=True,
    help="Show this only. May be given several times.  [default: all]",
)
@click.option("--phase", "phases", multiple=True, metavar="PHASE", help="Show steps of this phase only.")
@duration_option
@wire_option("on")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a distribution.")
def command(
    source: Path | None,
    output: Path | None,
    measures: tuple[str, ...],
    phases: tuple[str, ...],
    duration: float | None,
    wire: bool | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Distributions of what steps and requests took.

    \b
    EXAMPLES
      sudo flexnpu-probe hist --all --duration 30
            half a minute of everything
      sudo flexnpu-probe hist --pid 4242 --measure gap --phase decode
            does the host keep the NPU waiting between decode steps?
      flexnpu-probe hist --from run.jsonl.zst --json | jq '.us.p99'
            of a recording; needs no privilege

    For each process, stream and phase: step time and launch gap (from the end of a step to the first call
    of the next on its stream, by the phase of the next). For each process: TTFT and TPOT of streamed
    requests. Quantiles are exact, by nearest rank; the histogram has a bar a power of two. All are printed
    once, when the tracing ends: after --duration, or Ctrl-C.

    Which processes are attached to is said in `flexnpu-probe attach --help`. A recording gives the same
    numbers as the run that it is of.

    \b
    OVERHEAD
      On the traced processes, that of `attach`. Of this program, beside it: 8 bytes
      of memory a value, two values a step.

    \b
    EXIT STATUS
      0; 1 when something is missing, and standard error says what; 2 for wrong
      usage; 3 when the recording is damaged: what was read before that is shown.
    """
    plan = take_plan(options)
    selection, libraries = take_selection(options)
    if source is not None and (selection.pids or selection.follows or libraries or output or duration):
        raise click.UsageError("--from reads a recording: it takes no process, --output or --duration")
    found = Distributions()
    last: Losses | None = None
    problem: str | None = None
    with errors():
        if source is not None:
            recording = Recording(source)
            for item in recording:
                if isinstance(item, Losses) and item.source == "steps":
                    last = item
                elif not isinstance(item, Tick):
                    found.take(item)
            problem = recording.damage
        else:
            last = _live(found, selection, libraries, output, duration, wire is not False, plan)
        _print(found, last, measures, phases, as_json)
    if problem is not None and source is not None:
        damaged(source, problem)


def _live(
    found: Distributions,
    selection: Selection,
    libraries: frozenset[str] | None,
    output: Path | None,
    duration: float | None,
    wire: bool,
    plan: dict[str, Any],
) -> Losses:
    early.check_selection(selection)
    if output is not None:
        early.check_writable(output)
    # Imported once nothing is wrong that could be told before.
    from probes.commands.live import Live
    from probes.commands.recorded import Recorded

    stop = Stop()
    recorded = Recorded(output) if output is not None else None

    def take(event: Event) -> None:
        found.take(event)
        if recorded is not None:
            recorded.event(event)

    def tick(losses: Losses, now: float) -> None:
        if recorded is not None:
            recorded.tick(losses, now)

    def poll() -> None:
        if recorded is not None:
            recorded.recorder.poll()

    with ExitStack() as stack:
        if recorded is not None:
            stack.enter_context(recorded.recorder)
        live = stack.enter_context(Live(selection, take, only=libraries, wire=wire, **plan))
        if recorded is not None:
            recorded.overhead = live.overhead
        say("measuring (Ctrl-C ends)")
        live.run(stop, duration=duration, interval=1.0, on_tick=tick, on_poll=poll)
        ended = time.monotonic()
        losses = live.finish()
        if recorded is not None:
            recorded.end(losses, ended)
    return losses


def _print(
    found: Distributions,
    losses: Losses | None,
    measures: tuple[str, ...],
    phases: tuple[str, ...],
    as_json: bool,
) -> None:
    def shown(measure: str, phase: str | None) -> bool:
        return (not measures or measure in measures) and (not phases or phase is None or phase in phases)

    if as_json:
        for one in found.to_json():
            if shown(str(one["measure"]), None if one["phase"] is None else str(one["phase"])):
                out_json(one)
        return
    width = shutil.get_terminal_size().columns
    empty = True
    for key, values in found:
        if shown(key.measure, key.phase):
            empty = False
            for line in lines(key, values, min(width, 100)):
                out(line)
    if empty:
        out("nothing was measured")
    if losses is not None:
        from probes.show.table import losses_line  # with rich, which the rest does not need

        out(losses_line(losses))
    if found.overlapping:
        out(f"{found.overlapping} steps overlapped the one before on their stream: no gap")
    if found.unfinished:
        out(f"{found.unfinished} requests were not seen whole: no TPOT")
