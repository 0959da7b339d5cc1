"""`flexnpu-controller`."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import click

from controllers.holder import request_timeout_s
from controllers.loop import Loop
from controllers.policies import Options, PolicyError, found, make
from flexnpu import __version__
from flexnpu.common import descriptors
from flexnpu.console.numbers import Duration, Number
from flexnpu.console.output import say
from flexnpu.console.program import FAILED, SETTINGS, NotPermitted, Program
from flexnpu.control import paths
from flexnpu.control.client import (
    BusyError,
    ControlClient,
    ControlError,
    NoAnswerError,
    NoDaemonError,
    NotPermittedError,
    OwnedError,
    closed_directories,
)
from flexnpu.control.messages import MAX_LEASE_S
from probes.feed.follow import SLICE_S
from probes.feed.socket import FeedClient


@click.command("flexnpu-controller", cls=Program, context_settings=SETTINGS)
@click.option("--feed", type=click.Path(path_type=Path), help="The tracer's socket.  [default: probe.sock]")
@click.option(
    "--ctl", type=click.Path(path_type=Path), help="The daemon's socket.  [default: the only npu*.ctl]"
)
@click.option(
    "--policy",
    "policy_name",
    default="protect-decode",
    show_default=True,
    help=f"Who decides: {', '.join(found())}.",
)
@click.option(
    "--window-us",
    type=Number(0, 1e6, above=True, unit="us"),
    default=300.0,
    show_default=True,
    help="Prefill work in flight beside decode.",
)
@click.option(
    "--max-hold-ms",
    type=Number(0, 1000, above=True, unit="ms"),
    help="Longest hold of a prefill operator for decode without slack.  [default: 10]",
)
@click.option(
    "--idle-ms",
    type=Number(0, 10000, above=True, unit="ms"),
    help="Silence after which decode lends its whole share.  [default: 20]",
)
@click.option(
    "--lease-s",
    type=Duration(0.1, MAX_LEASE_S),
    default=5.0,
    show_default=True,
    help="How long a setting outlives this program.",
)
@click.option(
    "--target-ms",
    type=Number(0, 1e6, above=True, unit="ms"),
    help="Decode step target.  [default: from steps alone]",
)
@click.option(
    "--factor",
    type=Number(1, 100, unit="a factor"),
    default=1.1,
    show_default=True,
    help="Without --target-ms: target = factor x the decode step alone.",
)
@click.option(
    "--tpot-ms",
    type=Number(0, 1e6, above=True, unit="ms"),
    help="Objective of the policy slack: the time between tokens.",
)
@click.option(
    "--percentile",
    type=Number(50, 100, unit="%"),
    default=99.0,
    show_default=True,
    help="Of --tpot-ms.",
)
@click.option("--dry-run", is_flag=True, help="Print decisions, and set nothing.")
@click.option("--wait", is_flag=True, help="While the gate is another controller's, wait for it.")
@click.option("--take-over", is_flag=True, help="Take the gate from the controller that owns it.")
@click.version_option(__version__)
def main(
    feed: Path | None,
    ctl: Path | None,
    policy_name: str,
    window_us: float,
    max_hold_ms: float | None,
    idle_ms: float | None,
    lease_s: float,
    target_ms: float | None,
    factor: float,
    tpot_ms: float | None,
    percentile: float,
    dry_run: bool,
    wait: bool,
    take_over: bool,
) -> None:
    """Set the gate of a daemon from what the probes see.

    \b
    EXAMPLES
      flexnpu-controller
      flexnpu-controller --target-ms 25 --window-us 200
      flexnpu-controller --policy slack --tpot-ms 50
      flexnpu-controller --policy decode-first --take-over
      flexnpu-controller --policy slack --tpot-ms 50 --dry-run

    Needs no privilege of its own: only the tracer's feed (flexnpu-probe attach --feed) and the daemon's
    control socket. Prints its decisions as JSON lines. When it ends the gate is transparent; when it dies,
    within --lease-s; when it hangs, ten seconds later.

    A feed or a daemon that is not there yet, or goes away, is waited for; that is said once on standard
    error, with what to do. The gate has one owner: `flexnpu status` names it. While that is another
    controller, this one ends with an error, unless --wait or --take-over say otherwise. A second one with
    --take-over changes the policy of a live device; nothing is drained.

    Policies of other packages are found by their entry points (docs/howto/add-a-policy.md).
    """
    options = Options(
        lease_s=lease_s,
        window_us=window_us,
        target_us=_us(target_ms),
        factor=factor,
        tpot_us=_us(tpot_ms),
        percentile=percentile,
        max_hold_us=_us(max_hold_ms),
        decode_idle_us=_us(idle_ms),
    )
    try:
        policy = make(policy_name, options)
    except PolicyError as error:
        raise click.UsageError(str(error)) from None
    stop = _Stop()
    descriptors.allow_many()
    try:
        feed = feed or paths.probe_socket()
        ctl = ctl or _only_daemon(stop)
        if ctl is None:
            return
        client = ControlClient(ctl)
        _check(client)
    except NotPermittedError as error:
        raise NotPermitted(str(error)) from None
    except (paths.NoRunDirError, ControlError) as error:
        raise click.ClickException(str(error)) from None
    loop = Loop(
        policy,
        client,
        lambda: FeedClient(feed, begins=True),
        lease_s,
        gate_client=ControlClient(ctl, request_timeout_s(lease_s)),
        wait=wait,
        take_over=take_over,
        dry_run=dry_run,
        say=lambda text: say(f"{text}; trying again"),
    )
    stop.then(loop.stop)
    with client:
        try:
            loop.run()
        except OwnedError as error:
            raise click.ClickException(str(error)) from None
    if loop.log_failed:
        raise SystemExit(FAILED)


def _us(ms: float | None) -> float | None:
    return None if ms is None else ms * 1e3


class _Stop:
    """Set by SIGTERM, SIGINT and SIGHUP."""

    def __init__(self) -> None:
        self._asked = False
        self._then: Callable[[], None] | None = None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._ask)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True
        if self._then is not None:
            self._then()

    def then(self, what: Callable[[], None]) -> None:
        """Also call this; at once when it was asked for already."""
        self._then = what
        if self._asked:
            what()

    def __bool__(self) -> bool:
        return self._asked


def _check(client: ControlClient) -> None:
    """Raises `ControlError` for what waiting does not mend: no permission, another version."""
    with contextlib.suppress(NoDaemonError, NoAnswerError, BusyError):  # the loop tells of these, and waits
        client.status()


def _only_daemon(stop: _Stop) -> Path | None:
    """The socket of the one daemon there is, as soon as there is one; None when it is time to stop.

    Raises `NotPermittedError` where this user may look into none of the directories: no waiting mends that.
    """
    told = False
    while not stop:
        found = paths.control_sockets()
        if len(found) > 1:
            names = ", ".join(str(path) for path in found)
            raise click.ClickException(f"several daemons: {names}: choose one with --ctl")
        if found:
            return found[0]
        searched = paths.search_dirs()
        closed = closed_directories(searched)
        if len(closed) == len(searched):
            raise closed[0]
        if not told:
            told = True
            for error in closed:
                say(str(error))
            tried = ", ".join(str(directory) for directory in searched)
            say(f"no daemon in {tried}: start one with: flexnpud --device 0; trying again")
        time.sleep(SLICE_S)
    return None
