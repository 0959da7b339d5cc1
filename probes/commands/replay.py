"""`flexnpu-probe replay`: the tables of a recording."""

from __future__ import annotations

import time
from pathlib import Path

import click

from flexnpu.console.numbers import Number
from probes.commands.common import Stop, damaged, errors
from probes.feed.recording import Recording, Tick
from probes.show.screen import Display, Plain, display
from probes.show.view import View


@click.command("replay", short_help="Show a recording as `attach` showed the run.")
@click.argument("recording", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE")
@click.option(
    "--speed",
    type=Number(0, 1e6, unit="times as fast"),
    default=0.0,
    metavar="X",
    help="Show it X times as fast as it was; 0 without pauses.  [default: 0]",
)
def command(recording: Path, speed: float) -> None:
    """Show a recording of `flexnpu-probe trace`, interval by interval, as `attach` shows a run.

    \b
    EXAMPLES
      flexnpu-probe replay run.jsonl.zst
            all tables, one after the other; needs no privilege
      flexnpu-probe replay run.jsonl.zst --speed 2
            twice as fast as it was

    The numbers are those of the run: intervals, gate times and losses are in the recording. With --speed,
    on a terminal, the keys of `attach` work. For distributions: `flexnpu-probe hist --from FILE`.

    \b
    OVERHEAD
      None on the traced processes: it reads a file.

    \b
    EXIT STATUS
      0; 1 when the file is no recording, and standard error says why; 2 for wrong
      usage; 3 when the recording is damaged: what was read before that is shown.
    """
    stop = Stop()
    with errors():
        source = Recording(recording)
        screen: Display = display() if speed else Plain(clock=False)
        try:
            _play(source, screen, speed, stop)
        finally:
            screen.close()
        ended = stop.requested or screen.quit
    if source.damage is not None and not ended:
        damaged(recording, source.damage)


def _play(source: Recording, screen: Display, speed: float, stop: Stop) -> None:
    view = View()
    begun, first = time.monotonic(), source.header.t_ns
    for item in source:
        if not isinstance(item, Tick):
            view.add(item)
            continue
        while speed and not stop.requested and not screen.quit:
            screen.poll()
            ahead = (item.t_ns - first) / 1e9 / speed - (time.monotonic() - begun)
            if ahead <= 0 and not screen.paused:
                break
            if screen.paused:
                begun += 0.05  # what a pause takes does not count
            time.sleep(min(0.05, max(0.0, ahead)) if not screen.paused else 0.05)
        if stop.requested or screen.quit:
            return
        if item.seconds > 0:
            gated = {(pid, stream): us for pid, stream, us in item.gated}
            screen.show(view.take(item.seconds, gated, item.overhead))
