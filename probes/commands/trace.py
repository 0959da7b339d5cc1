"""`flexnpu-probe trace`: record every event."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from flexnpu.console.output import say
from probes.commands import early
from probes.commands.common import Stop, errors
from probes.commands.options import (
    duration_option,
    plan_options,
    selection_options,
    take_plan,
    take_selection,
    wire_option,
)


@click.command("trace", short_help="Record every event to a file.")
@selection_options
@plan_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE",
    help="Write the recording to FILE, by custom NAME.jsonl.zst. An existing file is replaced.",
)
@duration_option
@wire_option("on")
def command(output: Path, duration: float | None, wire: bool | None, **options: Any) -> None:
    """Record every event of running processes to a file.

    \b
    EXAMPLES
      sudo flexnpu-probe trace --all -o run.jsonl.zst --duration 60
            a minute of all processes
      sudo flexnpu-probe trace --pid 4242 -o run.jsonl.zst --no-wire
            steps only, until Ctrl-C
      zstdcat run.jsonl.zst | jq 'select(.type == "step" and .phase == "prefill")'
            the recording without this program

    Steps, requests, waits for a CPU and losses are written as lines of JSON, compressed with zstd, for
    `flexnpu-probe replay`, `hist --from` and `export`. `zstdcat FILE` shows the lines. Which processes are
    attached to is said in `flexnpu-probe attach --help`.

    The file is written once a second, so what ends this program, be it kill -9, costs no more than the last
    second; a recording that was cut off is readable up to there, and its readers say so.

    \b
    OVERHEAD
      On the traced processes, that of `attach`. Of this program, beside it:
      measured, some 10 us of CPU time and 45 bytes of the file a step.

    \b
    EXIT STATUS
      0 after detaching; 1 when something is missing or the file cannot be written,
      and standard error says what; 2 for wrong usage.
    """
    plan = take_plan(options)
    selection, libraries = take_selection(options)
    early.check_selection(selection)
    early.check_writable(output)
    # Imported once nothing is wrong that could be told before.
    from probes.commands.live import Live
    from probes.commands.recorded import Recorded

    stop = Stop()
    with errors():
        recorded = Recorded(output)
        with (
            recorded.recorder,
            Live(selection, recorded.event, only=libraries, wire=wire is not False, **plan) as live,
        ):
            recorded.overhead = live.overhead
            if live.waiting:
                say("no such process uses an NPU yet; waiting for one (Ctrl-C ends)")
            say(f"recording to {output} (Ctrl-C ends)")
            live.run(
                stop,
                duration=duration,
                interval=1.0,
                on_tick=recorded.tick,
                on_poll=recorded.recorder.poll,
            )
            ended = time.monotonic()
            recorded.end(live.finish(), ended)
    say(f"{recorded.recorder.events} events, {output.stat().st_size} bytes in {output}")
