"""`flexnpu status`: what the daemons say about themselves."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from flexnpu.console.numbers import DEVICE
from flexnpu.console.output import out_json, say
from flexnpu.console.program import FAILED, NOT_PERMITTED
from flexnpu.console.tables import Console, Table, cell
from flexnpu.console.text import safe
from flexnpu.control import paths
from flexnpu.control.client import (
    BusyError,
    ControlClient,
    ControlError,
    NotPermittedError,
    connect_all,
)
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


#: Why a controller sets nothing, in plain words.
_DOUBTS = {
    "launches": "decode steps launch now more, now less than they should",
    "contradiction": "decode steps are shorter beside a prefill than alone",
    "device-time": "the device's time and that of the steps do not agree",
    "missing": "most launches are in no step",
}


def describe_us(value: float) -> str:
    """A time in us, in the unit that keeps it short."""
    for limit, unit, scale in ((1e3, "us", 1.0), (1e6, "ms", 1e3)):
        if abs(value) < limit:
            return f"{value / scale:.0f} {unit}" if unit == "us" else f"{value / scale:.1f} {unit}"
    return f"{value / 1e6:.1f} s"


def describe_bytes(value: int) -> str:
    """A size in bytes as people read it, in powers of 1024."""
    size = float(value)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def describe_gate(gate: GateStatus) -> str:
    """The gate's policy, targets, owner and lease in a few words."""
    expired = f", {gate.expired_leases} leases expired" if gate.expired_leases else ""
    if gate.owner is not None:
        one = gate.owner
        expired = f", owned by {safe(one.comm)} (pid {one.pid}, user {one.uid}){expired}"
    if gate.policy == "transparent":
        lease = f", lease {gate.owner.lease_left_s:.1f} s" if gate.owner is not None else ""
        doubt = gate.owner.doubt if gate.owner is not None else None
        why = f"; it does not act, since {_DOUBTS[doubt]}" if doubt is not None else ""
        return f"transparent{lease}{expired}{why}"
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
    for s in filter(lambda one: one.used, status.sessions):
        memory = describe_bytes(s.memory_bytes)
        quota = "-" if s.memory_quota_bytes is None else describe_bytes(s.memory_quota_bytes)
        row = (s.session, s.pid, s.comm, s.uid, memory, quota, s.rings, s.calls, s.refused, s.ring_full)
        table.add_row(*map(str, row))
    return table


def _lane_table(status: DaemonStatus) -> Table:
    table = Table(title="lanes", title_justify="left", box=None, pad_edge=False)
    for name in ("lane", "pid", "stream", "phase", "queued", "in flight", "launched", "device", "gated"):
        table.add_column(name, justify="left" if name == "phase" else "right", no_wrap=True)
    for lane in filter(lambda one: one.used, status.lanes):
        table.add_row(
            str(lane.lane),
            str(lane.pid),
            f"{lane.stream:x}",
            lane.does,
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
    line = cell(f"device {status.device}", "bold")
    line.append(
        safe(
            f" ({status.soc}), flexnpud {status.version} pid {status.pid}, up {status.uptime_s:.0f} s{busy}"
        ),
        "not bold",
    )
    console.print(line)
    console.print(cell(f"gate: {describe_gate(status.gate)}"))
    if not isinstance(status, DaemonStatus):
        console.print(cell("sessions and lanes: not known, the data plane did not answer", "red"))
        return
    if status.age_s > 0:
        console.print(cell(f"the data plane is slow: what follows is {status.age_s:.1f} s old", "red"))
    lost = {name: status.counters.get(name, 0) for name in _TROUBLES}
    if any(lost.values()):
        told = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in lost.items() if count)
        console.print(cell(told, "red"))
    if not any(session.used for session in status.sessions):
        connected = len(status.sessions)
        console.print(f"no session has called yet ({connected} connected)" if connected else "no sessions")
        return
    console.print(_session_table(status))
    if any(lane.used for lane in status.lanes):
        console.print(_lane_table(status))


@click.command(short_help="Show who uses the NPUs, their lanes and the gate.")
@click.option("--device", type=DEVICE, metavar="N", help="Only this device's daemon.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array, one object a daemon.")
def status(device: int | None, as_json: bool) -> None:
    """Show every daemon's sessions, lanes (one a client stream) and gate.
    Sessions that never called, and lanes on which nothing was ever launched, are left out; --json has them.

    \b
    EXAMPLES
      flexnpu status
      flexnpu status --device 0 --json | jq '.[0].lanes[] | {pid, phase, gated_us}'

    \b
    OVERHEAD
      Each daemon is asked once, well below a millisecond of its time.

    \b
    EXIT STATUS
      0; 1 when there is no daemon, or one does not answer; 2 for wrong usage; 4 when
      you may not ask one. Standard error says which, and what to do.
    """
    clients, troubles = connect_all() if device is None else ([_of_device(device)], [])
    found: list[KnownStatus] = []
    for client in clients:
        with client:
            try:
                found.append(client.status())
            except BusyError as error:
                found += [error.known] if error.known is not None else []
                troubles.append(ControlError(f"{client.path}: {error}"))
            except ControlError as error:
                troubles.append(error)
    if not clients and not troubles:
        raise click.ClickException(no_daemon())
    for trouble in troubles:
        say(trouble)
    if as_json:
        out_json([one.model_dump() for one in found], indent=2)
    else:
        console = Console()
        for i, one in enumerate(found):
            if i:
                console.print()
            show(one, console)
    if troubles:
        raise SystemExit(status_of(troubles))


def no_daemon(device: int = 0) -> str:
    """What to say when nobody listens."""
    tried = ", ".join(str(directory) for directory in paths.search_dirs())
    return f"no daemon listens in {tried}: start one with: flexnpud --device {device}"


def status_of(troubles: Sequence[ControlError]) -> int:
    """The exit status for daemons that could not be asked."""
    return NOT_PERMITTED if any(isinstance(one, NotPermittedError) for one in troubles) else FAILED


def _of_device(device: int) -> ControlClient:
    candidates = [paths.control_socket(device, directory) for directory in paths.search_dirs()]
    return ControlClient(next((path for path in candidates if os.path.exists(path)), candidates[0]))
