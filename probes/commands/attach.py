"""`flexnpu-probe attach`: the steps of running processes, as they happen."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import click

from flexnpu.console.numbers import DAY_S, Duration
from flexnpu.console.output import say
from flexnpu.control import paths
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


@click.command("attach", short_help="Attach to running processes and show their steps.")
@selection_options
@plan_options
@duration_option
@click.option(
    "--interval",
    type=Duration(0.1, DAY_S),
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
@wire_option("with --feed")
@click.option(
    "--engine-metrics",
    "engine_urls",
    multiple=True,
    metavar="URL",
    help="Also read the serving engine's own metrics page (vLLM, SGLang) every 5 s. May be given several "
    "times.",
)
@click.option("--quiet", is_flag=True, help="Print no tables.")
def command(
    duration: float | None,
    interval: float,
    as_json: bool,
    feed: bool,
    feed_socket: Path | None,
    feed_group: str | None,
    wire: bool | None,
    engine_urls: tuple[str, ...],
    quiet: bool,
    **options: Any,
) -> None:
    """Attach to running processes and show their steps.

    \b
    EXAMPLES
      sudo flexnpu-probe attach
            every process that uses an NPU, a table a second
      sudo flexnpu-probe attach --pid 4242 --duration 10
            one process, for ten seconds
      sudo flexnpu-probe attach --container 3f2a91 --comm 'VLLM*'
            the processes of one container that have such a name, and later ones
      sudo flexnpu-probe attach --all --json | jq 'select(.phase == "decode")'
            decode steps as JSON, of processes that start later too
      sudo flexnpu-probe attach --all --feed --quiet
            serve steps and request times to collectors and controllers
      sudo flexnpu-probe attach --wire --json --engine-metrics http://127.0.0.1:8000/metrics
            steps, request times split by them, and what vLLM says of its queue
      sudo flexnpu-probe attach --lib libacl_rt.so
            launches, copies and synchronises of one library alone

    Without any of --pid, --comm, --cgroup, --container and --all: to every process that uses an NPU at
    this moment. The processes are not restarted, stopped or changed, and may run with or without FlexNPU
    under them. Which library defines a function is read from the process's memory map, through
    /proc/PID/root for containers.

    --comm, --cgroup, --container and --all also attach to processes as they appear: forked, started, or
    loading AscendCL later. Given together, a process must fit one of each kind. A process is found when it
    has loaded AscendCL, at most a third of its age (and 10 s) after that; its end is noticed at once, and
    the step that ran is published. Where the kernel's process events cannot be had (another network or
    process namespace), /proc is read every second instead, and standard error says so.

    Ctrl-C, SIGTERM, SIGHUP, a reader of the output that goes away, --duration and the end of all the
    processes detach. So does kill -9: a probe lives no longer than this program.

    On a terminal the table takes the whole screen, and keys work; elsewhere the tables follow each other.
    Columns for which there is no room are left out, the most telling ones last; 110 characters have room
    for all.

    \b
    KEYS
      q         quit: detach and end
      f, space  freeze the picture, or let it go on; counting goes on meanwhile
      p         pause counting, or go on; probes stay, and so does the feed
      s         sort by the next column; by none after the last
      ?         the letter of each column; pressing one sorts by it

    \b
    COLUMNS
      process   name and id
      stream    the stream's handle, as the process knows it
      phase     prefill, decode, mixed or other
      steps/s   steps that ended in the interval, a second
      tok/s     tokens a second, over all sequences, padding included
      tok/st    tokens a step
      p50, p99  step time in ms: from its embedding to the synchronise that ended it
      ln/st     operator and graph launches a step, those between steps included;
                of the last windows of detail where launches are not probed
      gated     share of the interval for which FlexNPU's gate held the stream's
                next operator, on the stream's first row; "-" without a daemon
      runq      share of the interval for which a launching thread was runnable and
                had no CPU, on the process's first row: of the thread that waited
                longest, of all threads together where the launching one is not
                known. Where it is high, steps are slow because the host is short
                of CPUs, not because the NPU is slow
      probes    what the probes cost, as a share of the steps' time
      cpu       share of the interval for which the thread of runq ran

    Above the table: what was lost so far, steps whose phase nothing showed, and how often the budget made
    the tracer leave something out. Below it, with --wire: requests that ended, TTFT and TPOT, p50/p99 in
    ms, and the means of the TTFT's parts where the steps that served them were seen; what engines say of
    themselves; what processes do without for the budget; and the operators of the last window of detail,
    where the kernel can show them.

    A step is one forward pass of a model. How steps are cut and classified, and how sure that is, is said
    in probes/steps/phases.py and in each step's `evidence` and `confidence` (--json). A step is shown when
    the next one begins on its stream, or after a quarter of a second of silence. Work outside any model step
    is `other`.

    \b
    OVERHEAD
      A probe stops the calling thread for 0.8 to 1.3 us when the kernel can emulate
      the instruction under it, and for 6 to 10 us when it must single-step it
      (measured on virtual machines; bare metal is several times faster). The probe
      is put on an emulated instruction of the function's prologue where there is
      one. After a wait the first hits find cold caches and take two or three times as
      long. By default a step is hit where it begins and ends: some 11 times in eager
      mode, 5 times (6 before Linux 6.13) when it is a captured graph. --detail launches
      adds a hit for each of the 200 and more operators that an eager step launches; the
      default does that for a moment every ten seconds, one process at a time. Where the
      objects' layout cannot be learned, every tensor is probed at its making, some 500
      a step; standard error says so. Under FlexNPU a step is hit once, and 6 us once
      more with --feed; each launch takes some 0.02 us longer, 1 us with --detail
      launches.
      Measured (flexnpu bench probe) on decode loops that hide nothing of it: an eager
      step of 2.9 ms and 183 launches took 3 % longer, with --detail launches 10 %, under
      a bpftrace script that counts launches and tensors 25 to 28 %; a step of 2.4 ms
      replayed from a captured graph 0.4 %, and up to 2 % where other guests of the
      machine keep its caches cold. Under FlexNPU: eager steps of 1.8 ms 1 %, with
      --detail launches 21 %; captured ones of 2.6 ms 0.4 %. Where the host runs ahead of
      the device, all that is hidden behind it. The cost is measured while tracing, and
      --budget keeps it down. This program pays by the step, some 0.1 ms of its own time
      each.
      --wire makes each read, write, send and receive of any process on the machine
      some 1 us longer, a write of a streamed answer 4 to 15 us (measured). Attaching
      and detaching take some 0.1 s each, 2 to 4 s with --wire, and the process goes
      on running meanwhile. Until its first step this program takes 0.6 to 0.8 s of CPU,
      and 23 MiB of memory; 5 MiB more with tables, 8 with --wire. With bcc it is
      5.6 s and 150 MiB (flexnpu bench attach).

    \b
    ENVIRONMENT
      FLEXNPU_BPF_LOADER  core: load the BPF programs that were compiled when FlexNPU
                          was built; bcc: compile them here, which takes bcc and kernel
                          headers. By default the first that works; doctor says which
      FLEXNPU_NO_CACHE    if set, keep nothing of what was found out of a library (cache
                          in the run directory, flexnpu/probe in XDG_CACHE_HOME)

    \b
    EXIT STATUS
      0 after detaching; 1 when something is missing, and standard error says what
      and what to type; 2 for wrong usage.
    """
    plan = take_plan(options)
    selection, libraries = take_selection(options)
    early.check_selection(selection)
    early.check_engines(engine_urls)
    with errors():
        feed_path = (feed_socket or paths.probe_socket()) if feed or feed_socket else None
    if feed_path is not None:
        early.check_feed(feed_path, feed_group)
    # Imported once nothing is wrong that could be told before.
    from probes.commands.live import Live
    from probes.commands.output import Output
    from probes.feed.socket import FeedServer
    from probes.host.engine import EngineScraper

    stop = Stop()
    with errors(), contextlib.ExitStack() as stack:
        output = Output(as_json=as_json, quiet=quiet)
        stack.callback(output.close)
        live = stack.enter_context(
            Live(
                selection,
                output.event,
                only=libraries,
                begins=feed_path is not None,
                wire=feed if wire is None else wire,
                say=output.say,
                **plan,
            )
        )
        # Last, so that the socket says: everything is attached.
        if feed_path is not None:
            output.feed = stack.enter_context(FeedServer(feed_path, group=feed_group))
            say(f"publishing on {feed_path}")
        if live.waiting:
            say("no such process uses an NPU yet; waiting for one (Ctrl-C ends)")
        engines = [stack.enter_context(EngineScraper(url, output.event, output.say)) for url in engine_urls]

        def poll() -> bool:
            for engine in engines:
                engine.poll()
            return output.poll()

        output.overhead = live.overhead
        output.start()
        live.run(stop, duration=duration, interval=interval, on_tick=output.tick, on_poll=poll)
        output.leave()
        if not quiet and not as_json:
            say("detaching")
        ended = time.monotonic()
        output.end(live.finish(), ended)
