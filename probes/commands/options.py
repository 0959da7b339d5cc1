"""The options that the commands which trace share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from flexnpu.console.numbers import DURATION, PERCENT, PID
from probes.host.selection import Selection

Command = TypeVar("Command", bound=Callable[..., Any])

_SELECTION = (
    click.option(
        "--pid",
        "pids",
        type=PID,
        multiple=True,
        metavar="P",
        help="Attach to process P, whatever else is given. May be given several times.",
    ),
    click.option(
        "--comm",
        "comms",
        multiple=True,
        metavar="NAME",
        help="Attach to processes whose name (/proc/PID/comm, at most 15 characters) is NAME, or fits it as "
        "a shell pattern. May be given several times.",
    ),
    click.option(
        "--cgroup",
        "cgroups",
        multiple=True,
        metavar="PATH",
        help="Attach to processes in control group PATH or below: a folder of /sys/fs/cgroup, or as in "
        "/proc/PID/cgroup. May be given several times.",
    ),
    click.option(
        "--container",
        "containers",
        multiple=True,
        metavar="ID",
        help="Attach to processes of the container whose id begins with ID. May be given several times.",
    ),
    click.option(
        "--all",
        "everything",
        is_flag=True,
        help="Attach to every process that uses an NPU, now and as they appear. "
        "FlexNPU's own daemon is left out: its clients are shown instead.",
    ),
    click.option(
        "--lib",
        "libraries",
        multiple=True,
        metavar="PATH",
        help="Look for AscendCL functions in this mapped library only (its path in the process, or its file "
        "name). May be given several times.",
    ),
)


def selection_options(command: Command) -> Command:
    """Adds the options that say which processes to trace; `take_selection` reads them."""
    for option in reversed(_SELECTION):
        command = option(command)
    return command


def take_selection(options: dict[str, Any]) -> tuple[Selection, frozenset[str] | None]:
    """Takes the values of `selection_options` out of a command's: the processes, and the libraries to look
    into (None: any)."""
    selection = Selection(
        pids=tuple(dict.fromkeys(options.pop("pids"))),
        comms=options.pop("comms"),
        cgroups=options.pop("cgroups"),
        containers=options.pop("containers"),
        everything=options.pop("everything"),
    )
    return selection, frozenset(options.pop("libraries")) or None


_PLAN = (
    click.option(
        "--detail",
        type=click.Choice(["launches"]),
        help="Probe every operator launch all the time, which costs much more (see OVERHEAD of attach). By "
        "default launches are probed for a moment every ten seconds, to know how many a step has.",
    ),
    click.option(
        "--budget",
        "budget_percent",
        type=PERCENT,
        metavar="PCT",
        help="Do without the dearest evidence while probes cost more than PCT percent of the steps' time, "
        "and say so; 0: never.  [default: 1; none with --detail]",
    ),
)


def plan_options(command: Command) -> Command:
    """Adds the options that say what is probed; `take_plan` reads them."""
    for option in reversed(_PLAN):
        command = option(command)
    return command


def take_plan(options: dict[str, Any]) -> dict[str, Any]:
    """Takes the values of `plan_options` out of a command's: the arguments ``plan`` and ``budget_percent`` of
    `Tracer`."""
    detail, percent = options.pop("detail"), options.pop("budget_percent")
    if percent is None:
        percent = None if detail else 1.0
    return {"plan": "detail" if detail else "default", "budget_percent": percent or None}


duration_option = click.option(
    "--duration",
    type=DURATION,
    metavar="S",
    help="Detach and end after S seconds.",
)


def wire_option(default: str) -> Callable[[Command], Command]:
    """`--wire/--no-wire`, None when neither is given; `default` says what that means."""
    return click.option(
        "--wire/--no-wire",
        default=None,
        help="Also time streamed HTTP requests, on the sockets of the processes and of those that they "
        "belong to (vLLM's API server is the parent of its engine). No TLS, no HTTP/2.  "
        f"[default: {default}]",
    )
