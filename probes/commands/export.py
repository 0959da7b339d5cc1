"""`flexnpu-probe export`: a recording for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from flexnpu.console.output import say, whole_file
from probes.commands.common import damaged, errors
from probes.feed.recording import Recording, RecordingError
from probes.show import perfetto


@click.command("export", short_help="Convert a recording for Perfetto.")
@click.argument("recording", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE")
@click.option(
    "--perfetto",
    "form",
    flag_value="perfetto",
    help="For https://ui.perfetto.dev and chrome://tracing.  [default]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="OUT",
    help="Write to OUT, by custom NAME.json. An existing file is replaced.",
)
def command(recording: Path, form: str | None, output: Path) -> None:
    """Convert a recording of `flexnpu-probe trace` for other programs.

    \b
    EXAMPLES
      sudo flexnpu-probe trace --all -o run.jsonl.zst --duration 10
      flexnpu-probe export --perfetto run.jsonl.zst -o run.json
            needs no privilege

    One time line has: a track a stream with its steps, named by phase, and under it the gate time; the
    requests, a row each, with TTFT, its parts (queue, prefill, gated, send) and a mark a chunk; counters of
    run-queue wait and CPU time; and marks where something was lost. Open the file in
    https://ui.perfetto.dev (it stays in the browser) or chrome://tracing. Times are CLOCK_MONOTONIC of the
    traced machine; `otherData` has the offsets to the other clocks.

    The form is Chrome's trace-event JSON. Perfetto's protobuf (.pftrace) is not written.

    \b
    OVERHEAD
      None on the traced processes: it reads a file. Memory does not grow with it.

    \b
    EXIT STATUS
      0; 1 when a file cannot be read or written; 2 for wrong usage; 3 when the
      recording is damaged: what was read before that is written.
    """
    if output.suffix == ".pftrace":
        raise click.UsageError(f"{output}: protobuf is not written; name the output .json, Perfetto reads it")
    with errors():
        source = Recording(recording)
        if output.exists() and output.samefile(recording):
            raise RecordingError(f"{output} is the recording itself; name another output")
        with whole_file(output) as file:
            count = perfetto.export(source, file)
        say(f"{count} trace events of {source.events} events in {output}")
    if source.damage is not None:
        damaged(recording, source.damage)
