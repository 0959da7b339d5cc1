"""`flexnpu-probe attach`: the steps of running processes, as they happen."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from flexnpu.control import paths
from probes.attach import AttachError
from probes.commands.common import Stop, errors, note
from probes.events import Event, Losses, RequestTiming, Step, StepBegin
from probes.feed import FeedServer
from probes.gates import Gates
from probes.plan import FUNNELS
from probes.table import Window, losses_line
from probes.tracer import Tracer, check, find_processes

if TYPE_CHECKING:
    from probes.wire import WireTracer

_POLL_S = 0.05
_SCAN_S = 1.0


@click.command("attach", short_help="Attach to running processes and show their steps.")
@click.option(
    "--pid",
    "pids",
    type=click.IntRange(min=1),
    multiple=True,
    metavar="P",
    help="Attach to process P. May be given several times.",
)
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Attach to every process that uses an NPU, now and as they appear. "
    "FlexNPU's own daemon is left out: its clients are shown instead.",
)
@click.option(
    "--lib",
    "libraries",
    multiple=True,
    metavar="PATH",
    help="Look for AscendCL functions in this mapped library only (its path in the process, or its file "
    "name). May be given several times.",
)
@click.option(
    "--duration",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="Detach and end after S seconds.",
)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="S",
    help="Seconds between tables.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object a step instead of tables, and at the end one of type `losses`.",
)
@click.option(
    "--feed",
    is_flag=True,
    help="Also publish every event on a unix socket, for flexnpu-collector and flexnpu-controller, which "
    "then need no privilege.",
)
@click.option(
    "--feed-socket",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Where to publish.  [default: probe.sock in $FLEXNPU_RUN_DIR or /run/flexnpu]",
)
@click.option("--feed-group", metavar="GROUP", help="Members of GROUP may read the feed, besides root.")
@click.option(
    "--wire/--no-wire",
    default=None,
    help="Also time streamed HTTP requests on the processes' sockets.  [default: with --feed]",
)
@click.option("--quiet", is_flag=True, help="Print no tables.")
def command(
    pids: tuple[int, ...],
    everything: bool,
    libraries: tuple[str, ...],
    duration: float | None,
    interval: float,
    as_json: bool,
    feed: bool,
    feed_socket: Path | None,
    feed_group: str | None,
    wire: bool | None,
    quiet: bool,
) -> None:
    """Attach to running processes and show their steps.

    Without --pid and --all: to every process that uses an NPU at this moment. The processes are not
    restarted, stopped or changed, and may run with or without FlexNPU under them. Which library defines a
    function is read from the process's memory map, through /proc/PID/root for containers.

    Ctrl-C, SIGTERM, --duration and the end of all the processes detach. So does kill -9: a probe lives no
    longer than this program.

    \b
    COLUMNS
      process   name and id
      stream    the stream's handle, as the process knows it
      phase     prefill, decode, mixed or other
      steps/s   steps that ended in the interval, a second
      tok/st    tokens a step, over all its sequences, padding included
      p50, p99  step time in ms: from its embedding to the synchronise that ended it
      ln/st     operator and graph launches a step, those between steps included
      gated     share of the interval for which FlexNPU's gate held the stream's
                next operator, on the stream's first row; "-" without a daemon

    A step is one forward pass of a model. How steps are cut and classified, and how sure that is, is said
    in probes/phases.py and in each step's `evidence` and `confidence` (--json). A step is shown when the
    next one begins on its stream, or after a quarter of a second of silence. Work outside any model step is
    `other`.

    \b
    EXAMPLES
      sudo flexnpu-probe attach
            every process that uses an NPU, a table a second
      sudo flexnpu-probe attach --pid 4242 --duration 10
            one process, for ten seconds
      sudo flexnpu-probe attach --all --json | jq 'select(.phase == "decode")'
            decode steps as JSON, of processes that start later too
      sudo flexnpu-probe attach --all --feed --quiet
            serve steps and request times to collectors and controllers
      sudo flexnpu-probe attach --lib libacl_rt.so
            launches, copies and synchronises of one library alone

    \b
    OVERHEAD
      A probe stops the calling thread for 0.8 to 1.3 us when the kernel can emulate
      the instruction under it, and for 6 to 10 us when it must single-step it
      (measured on virtual machines; bare metal is several times faster). The probe
      is put on an emulated instruction of the function's prologue where there is
      one. An eager torch_npu step makes over 200 launches and 500 tensors, and each
      is hit: measured, a decode step of 4.0 ms that is bound by the host became one
      of 5.4 ms. Where the host runs ahead of the device, the time is hidden behind
      it. A step of a captured graph makes a handful of hits. This program pays
      by the step, some 0.1 ms of its own time each. --wire adds two look-ups to
      each read and write of the processes. Attaching takes about 0.1 s a process,
      detaching 2 to 3 s, and the process goes on running meanwhile.

    \b
    EXIT STATUS
      0 after detaching; 1 when something is missing, and standard error says what
      and what to type; 2 for wrong usage.
    """
    stop = Stop()
    with errors():
        check()
        _attach(
            stop,
            pids,
            everything,
            libraries,
            duration,
            interval,
            as_json,
            (feed_socket or paths.probe_socket()) if feed or feed_socket else None,
            feed_group,
            feed if wire is None else wire,
            quiet,
        )


class _Output:
    """Where events go: the feed, and standard output as JSON or tables."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self._json = as_json
        self._table = not (as_json or quiet)
        self.feed: FeedServer | None = None
        self._window = Window()
        self._gates = Gates()
        self._console = Console()
        self._since = time.monotonic()

    def event(self, event: Event) -> None:
        if self.feed is not None:
            self.feed.publish(event)
        if self._json and not isinstance(event, StepBegin):
            sys.stdout.write(event.to_json() + "\n")
        elif self._table and isinstance(event, Step):
            self._window.add(event)

    def tick(self, losses: Losses, now: float) -> None:
        """The end of an interval, at `now` of time.monotonic."""
        if self.feed is not None:
            counts = losses.counts | self.feed.counts
            self.feed.publish(Losses(losses.t_ns, losses.source, counts))
        if self._json:
            sys.stdout.flush()
        if self._table:
            title = f"{datetime.now():%H:%M:%S}  {losses_line(losses)}"
            self._console.print(self._window.take(now - self._since, self._gates.delta_us(), title))
            self._since = now

    def end(self, losses: Losses, now: float) -> None:
        self.tick(losses, now)
        if self._json:
            sys.stdout.write(losses.to_json() + "\n")
            sys.stdout.flush()
        self._gates.close()


def _attach(
    stop: Stop,
    pids: tuple[int, ...],
    everything: bool,
    libraries: tuple[str, ...],
    duration: float | None,
    interval: float,
    as_json: bool,
    feed_path: Path | None,
    feed_group: str | None,
    wire: bool,
    quiet: bool,
) -> None:
    only = frozenset(libraries) or None
    wanted = list(dict.fromkeys(pids))
    if not wanted:
        wanted = find_processes(only=only)
        if not wanted and not everything:
            raise AttachError(
                "no process uses an NPU: none maps a library that defines any of "
                f"{', '.join(sorted(FUNNELS))}. Start one, name one with --pid, or wait for one with --all."
            )
    with contextlib.ExitStack() as stack:
        output = _Output(as_json=as_json, quiet=quiet)
        tracer = stack.enter_context(Tracer(output.event, begins=feed_path is not None, only=only))
        wire_tracer = stack.enter_context(_wire(output)) if wire else None
        for pid in wanted:
            _attach_one(tracer, wire_tracer, pid, required=bool(pids))
        # Last, so that the socket says: everything is attached.
        if feed_path is not None:
            output.feed = stack.enter_context(FeedServer(feed_path, group=feed_group))
            note(f"publishing on {feed_path}")
        if everything and not tracer.targets:
            note("no process uses an NPU yet; waiting for one (Ctrl-C ends)")
        _loop(stop, tracer, wire_tracer, output, everything, duration, interval, only)
        if not quiet and not as_json:
            note("detaching")
        ended = time.monotonic()
        tracer.close()
        output.end(tracer.losses(), ended)


def _wire(output: _Output) -> WireTracer:
    from probes.wire import WireTracer

    def on_request(timing: RequestTiming) -> None:
        output.event(timing)

    told: dict[str, int] = {}

    def on_loss(counts: dict[str, int]) -> None:
        nonlocal told
        losses = Losses(t_ns=time.monotonic_ns(), source="wire", counts=counts)
        if counts != told:
            told = counts
            output.event(losses)
        elif output.feed is not None:
            # Again and again, for who has only now subscribed.
            output.feed.publish(losses)

    return WireTracer((), on_request=on_request, on_loss=on_loss)


def _attach_one(tracer: Tracer, wire: WireTracer | None, pid: int, *, required: bool) -> None:
    try:
        target = tracer.attach(pid)
        if wire is not None:
            wire.add(pid)
    except (AttachError, ProcessLookupError) as error:
        if required:
            raise AttachError(str(error)) from None
        note(str(error))
        return
    libraries = sorted({os.path.basename(placed.library) for placed in target.placed})
    kind = "FlexNPU's client" if target.kind == "client" else "CANN"
    note(f"attached to {target.comm} ({pid}), {kind}: {len(target.placed)} probes in {', '.join(libraries)}")


def _loop(
    stop: Stop,
    tracer: Tracer,
    wire: WireTracer | None,
    output: _Output,
    everything: bool,
    duration: float | None,
    interval: float,
    only: frozenset[str] | None,
) -> None:
    begun = time.monotonic()
    next_tick, next_scan = begun + interval, begun + _SCAN_S
    while not stop.requested:
        now = time.monotonic()
        if duration is not None and now - begun >= duration:
            return
        if not everything and not tracer.targets:
            note("every process that was attached has ended")
            return
        tracer.poll(_POLL_S)
        if wire is not None:
            wire.poll(0)
        if now >= next_tick:
            next_tick = max(next_tick + interval, now)
            output.tick(tracer.losses(), now)
        if everything and now >= next_scan:
            next_scan = now + _SCAN_S
            attached = {target.pid for target in tracer.targets}
            for pid in find_processes(only=only, known=attached):
                _attach_one(tracer, wire, pid, required=False)
