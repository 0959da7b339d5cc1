"""`flexnpu status`: what the daemons say about themselves."""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flexnpu.console.numbers import DEVICE
from flexnpu.console.text import safe
from flexnpu.control import paths
from flexnpu.control.client import BusyError, ControlClient, ControlError, connect_all
from flexnpu.control.messages import DaemonStatus, GateStatus, KnownStatus

#: Counters of what was refused or went wrong: shown when they are not zero.
_TROUBLES = (
    "refused",
    "quota_refusals",
    "malformed",
    "malformed_requests",
    "turned_away",
    "sessions_broken",
    "vendor_errors",
    "control_refused",
    "control_not_permitted",
    "gate_owned_refusals",
    "plane_timeouts",
)


def describe_us(value: float) -> str:
    """A time in us, in the unit that keeps it short."""
    for limit, unit, scale in ((1e3, "us", 1.0), (1e6, "ms", 1e3)):
        if abs(value) < limit:
            return f"{value / scale:.0f} {unit}" if unit == "us" else f"{value / scale:.1f} {unit}"
    return f"{value / 1e6:.1f} s"


def describe_bytes(value: int) -> str:
    size = float(value)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def describe_gate(gate: GateStatus) -> str:
    expired = f", {gate.expired_leases} leases expired" if gate.expired_leases else ""
    if gate.owner is not None:
        one = gate.owner
        expired = f", owned by {safe(one.comm)} (pid {one.pid}, user {one.uid}){expired}"
    if gate.policy == "transparent":
        lease = f", lease {gate.owner.lease_left_s:.1f} s" if gate.owner is not None else ""
        return f"transparent{lease}{expired}"
    target = describe_us(gate.decode_target_us) if gate.decode_target_us else "its own"
    return (
        f"{gate.policy}, window {describe_us(gate.window_us)}, decode target {target}, "
        f"slowdown {gate.overlap_slowdown:.2f}, lease {gate.lease_left_s:.1f} s{expired}"
    )


def _session_table(status: DaemonStatus) -> Table:
    table = Table(title="sessions", title_justify="left", box=None, pad_edge=False)
    for name in (
        "session",
        "pid",
        "command",
        "user",
        "memory",
        "quota",
        "rings",
        "calls",
        "refused",
        "ring full",
    ):
        table.add_column(name, justify="left" if name == "command" else "right", no_wrap=True)
    for s in status.sessions:
        memory = describe_bytes(s.memory_bytes)
        quota = "-" if s.memory_quota_bytes is None else describe_bytes(s.memory_quota_bytes)
        row = (s.session, s.pid, Text(s.comm), s.uid, memory, quota, s.rings, s.calls, s.refused)
        table.add_row(*(cell if isinstance(cell, Text) else str(cell) for cell in row), str(s.ring_full))
    return table


def _lane_table(status: DaemonStatus) -> Table:
    table = Table(title="lanes", title_justify="left", box=None, pad_edge=False)
    for name in ("lane", "pid", "stream", "phase", "queued", "in flight", "launched", "device", "gated"):
        table.add_column(name, justify="left" if name == "phase" else "right", no_wrap=True)
    for lane in status.lanes:
        table.add_row(
            str(lane.lane),
            str(lane.pid),
            f"{lane.stream:x}",
            lane.phase,
            str(lane.queued),
            describe_us(lane.in_flight_us),
            str(lane.launched),
            describe_us(lane.device_us),
            describe_us(lane.gated_us) + (" held" if lane.held_now else ""),
        )
    return table


def show(status: KnownStatus, console: Console) -> None:
    """Print one daemon's status as tables, as far as it is known."""
    busy = ""
    if isinstance(status, DaemonStatus) and status.device_busy_us is not None and status.uptime_s > 0:
        busy = f", busy {status.device_busy_us / (status.uptime_s * 1e4):.1f} % of it"
    console.print(
        f"[bold]device {status.device}[/bold] ({status.soc}), flexnpud {status.version} pid {status.pid}, "
        f"up {status.uptime_s:.0f} s{busy}",
        highlight=False,
    )
    console.print(f"gate: {describe_gate(status.gate)}", highlight=False)
    if not isinstance(status, DaemonStatus):
        console.print(
            "[red]sessions and lanes: not known, the data plane did not answer[/red]", highlight=False
        )
        return
    if status.age_s > 0:
        console.print(
            f"[red]the data plane is slow: what follows is {status.age_s:.1f} s old[/red]", highlight=False
        )
    lost = {name: status.counters.get(name, 0) for name in _TROUBLES}
    if any(lost.values()):
        told = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in lost.items() if count)
        console.print(f"[red]{told}[/red]", highlight=False)
    if not status.sessions:
        console.print("no sessions", highlight=False)
        return
    console.print(_session_table(status))
    if status.lanes:
        console.print(_lane_table(status))


@click.command(short_help="Show who uses the NPUs, their lanes and the gate.")
@click.option("--device", type=DEVICE, metavar="N", help="Only this device's daemon.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array, one object a daemon.")
def status(device: int | None, as_json: bool) -> None:
    """Show every daemon's sessions, lanes (one a client stream) and gate.

    \b
    Examples:
      flexnpu status
      flexnpu status --device 0 --json | jq '.[0].lanes[] | {pid, phase, gated_us}'
    """
    clients = connect_all() if device is None else _of_device(device)
    if not clients:
        tried = ", ".join(str(directory) for directory in paths.search_dirs())
        raise click.ClickException(f"no daemon listens in {tried}: start one with: flexnpud --device 0")
    found: list[KnownStatus] = []
    failed = False
    for client in clients:
        with client:
            try:
                found.append(client.status())
            except BusyError as error:
                found += [error.known] if error.known is not None else []
                click.echo(f"Error: {client.path}: {error}", err=True)
                failed = True
            except ControlError as error:
                click.echo(f"Error: {error}", err=True)
                failed = True
    if as_json:
        click.echo(json.dumps([one.model_dump() for one in found], indent=2))
    else:
        console = Console()
        for i, one in enumerate(found):
            if i:
                console.print()
            show(one, console)
    if failed:
        raise SystemExit(1)


def _of_device(device: int) -> list[ControlClient]:
    candidates = [paths.control_socket(device, directory) for directory in paths.search_dirs()]
    path = next((path for path in candidates if path.exists()), candidates[0])
    return [ControlClient(path)]
