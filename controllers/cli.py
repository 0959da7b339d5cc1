"""`flexnpu-controller`."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

import click

from controllers.loop import Loop
from controllers.policies import Policy
from controllers.policies.protect_decode import ProtectDecode
from flexnpu import __version__
from flexnpu.console.numbers import Duration, Number
from flexnpu.console.program import SETTINGS, Program
from flexnpu.control import paths
from flexnpu.control.client import ControlClient, ControlError
from flexnpu.control.messages import MAX_LEASE_S
from probes.feed.socket import FeedClient


@click.command("flexnpu-controller", cls=Program, context_settings=SETTINGS)
@click.option("--feed", type=click.Path(path_type=Path), help="The tracer's socket.  [default: probe.sock]")
@click.option(
    "--ctl", type=click.Path(path_type=Path), help="The daemon's socket.  [default: the only npu*.ctl]"
)
@click.option("--policy", "policy_name", type=click.Choice(["protect-decode"]), default="protect-decode")
@click.option(
    "--window-us",
    type=Number(0, 1e6, above=True, unit="us"),
    default=300.0,
    show_default=True,
    help="Prefill work in flight beside decode.",
)
@click.option(
    "--lease-s",
    type=Duration(0.1, MAX_LEASE_S),
    default=2.0,
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
    default=1.3,
    show_default=True,
    help="Without --target-ms: target = factor x the decode step alone.",
)
@click.version_option(__version__)
def main(
    feed: Path | None,
    ctl: Path | None,
    policy_name: str,
    window_us: float,
    lease_s: float,
    target_ms: float | None,
    factor: float,
) -> None:
    """Set the gate of a daemon from what the probes see.

    Needs no privilege of its own: only the tracer's feed (flexnpu-probe attach --feed) and the daemon's
    control socket. Prints its decisions as JSON lines. When it ends the gate is transparent; when it dies,
    within --lease-s.

    \b
    Examples:
      flexnpu-controller
      flexnpu-controller --target-ms 25 --window-us 200
    """
    try:
        feed = feed or paths.probe_socket()
        ctl = ctl or _only_daemon()
        client = ControlClient(ctl)
        client.status()
    except (paths.NoRunDirError, ControlError) as error:
        raise click.ClickException(str(error)) from None
    if not feed.exists():
        raise click.ClickException(
            f"no feed at {feed}: start one with: sudo flexnpu-probe attach --all --feed"
        )
    policy: Policy = ProtectDecode(
        lease_s=lease_s,
        window_us=window_us,
        target_us=target_ms * 1e3 if target_ms is not None else None,
        factor=factor,
    )
    loop = Loop(policy, client, lambda: FeedClient(feed, begins=True), lease_s)

    def on_signal(number: int, frame: FrameType | None) -> None:
        loop.stop()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, on_signal)
    with client:
        loop.run()


def _only_daemon() -> Path:
    found = paths.control_sockets()
    if not found:
        tried = ", ".join(str(directory) for directory in paths.search_dirs())
        raise click.ClickException(f"no daemon in {tried}: start one with: flexnpud --device 0")
    if len(found) > 1:
        names = ", ".join(str(path) for path in found)
        raise click.ClickException(f"several daemons: {names}: choose one with --ctl")
    return found[0]
