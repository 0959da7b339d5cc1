"""`flexnpu top`: what the daemons do, now."""

from __future__ import annotations

import contextlib
import datetime
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import click
from rich.console import Group
from rich.live import Live
from rich.text import Text

from flexnpu.cli.rates import LaneRates, Rates, SessionRates, between
from flexnpu.cli.status import describe_bytes, describe_gate, describe_us, no_daemon, status_of
from flexnpu.console.numbers import DEVICE, Duration
from flexnpu.console.output import out_json, say
from flexnpu.console.tables import Console, Table, cell
from flexnpu.control import paths
from flexnpu.control.client import ControlClient, ControlError, NoDaemonError, closed_directories
from flexnpu.control.messages import DaemonStatus

SORTS = ("device", "memory", "queue", "pid")
_PHASE_STYLE = {"prefill": "magenta", "decode": "cyan"}


class Daemons:
    """Asks every daemon there is, also those that start later; remembers the last answers."""

    def __init__(self, device: int | None) -> None:
        self.device = device
        self._clients: dict[Path, ControlClient] = {}
        self._last: dict[Path, DaemonStatus] = {}

    def sample(self) -> tuple[list[Rates], list[ControlError]]:
        """Rates since the call before, by device, and what went wrong."""
        for path in paths.control_sockets():
            if self.device is None or path.name == f"npu{self.device}.ctl":
                self._clients.setdefault(path, ControlClient(path))
        rates: list[Rates] = []
        troubles = closed_directories()
        for path, client in list(self._clients.items()):
            try:
                status = client.status()
            except ControlError as error:
                known = self._last.pop(path, None)
                client.close()
                if isinstance(error, NoDaemonError):
                    del self._clients[path]
                    if known is None:
                        continue
                troubles.append(error)
                continue
            rates.append(between(self._last.get(path), status))
            self._last[path] = status
        return sorted(rates, key=lambda one: one.device), troubles

    def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            client.close()


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"


def _rate(value: float | None) -> str:
    if value is None:
        return "-"
    for limit, unit, scale in ((1e4, "", 1.0), (1e7, "k", 1e3)):
        if value < limit:
            return f"{value / scale:.0f}{unit}"
    return f"{value / 1e6:.0f}M"


def _table(columns: str, several: bool) -> Table:
    """`columns`: names with widths, as ``pid:7``; ``<`` before the width: left-aligned."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="reverse")
    for column in (["npu:3"] if several else []) + columns.split():
        name, _, width = column.partition(":")
        left = width.startswith("<")
        size = int(width.lstrip("<"))
        table.add_column(name, justify="left" if left else "right", width=size, no_wrap=True)
    return table


def _order(one: SessionRates | LaneRates, sort: str) -> tuple[float, int]:
    """Biggest first, by pid among equals."""
    if sort == "pid":
        return 0.0, one.pid
    if sort == "memory" and isinstance(one, SessionRates):
        return -float(one.memory_bytes), one.pid
    if sort == "queue":
        return -float(one.queued), one.pid
    return -(one.device_share or 0.0), one.pid


def _sessions(all_rates: list[Rates], sort: str, several: bool) -> Table:
    table = _table(
        "ses:3 pid:7 command:<10 uid:5 memory:8 quota:8 device:6 ops/s:5 queued:6 held:4 ref:3", several
    )
    rows = [(rates.device, one) for rates in all_rates for one in rates.sessions]
    for device, one in sorted(rows, key=lambda row: _order(row[1], sort)):
        quota = "-" if one.memory_quota_bytes is None else describe_bytes(one.memory_quota_bytes)
        cells: list[str | Text] = [
            *([str(device)] if several else []),
            str(one.session),
            str(one.pid),
            one.comm,
            str(one.uid),
            describe_bytes(one.memory_bytes),
            quota,
            _share(one.device_share),
            _rate(one.launches_per_s),
            str(one.queued),
            _share(one.held_share),
            cell(str(one.refused), style="red" if one.refused_per_s else ""),
        ]
        table.add_row(*cells)
    return table


def _lanes(all_rates: list[Rates], sort: str, several: bool) -> Table:
    table = _table(
        "lane:4 pid:7 stream:<12 phase:<8 queued:6 flight:8 ops/s:5 device:6 held:4 gate:<4", several
    )
    rows = [(rates.device, one) for rates in all_rates for one in rates.lanes]
    for device, one in sorted(rows, key=lambda row: _order(row[1], sort)):
        cells: list[str | Text] = [
            *([str(device)] if several else []),
            str(one.lane),
            str(one.pid),
            f"{one.stream:x}",
            cell(one.phase, style=_PHASE_STYLE.get(one.phase, "")),
            str(one.queued),
            describe_us(one.in_flight_us),
            _rate(one.launches_per_s),
            _share(one.device_share),
            _share(one.held_share),
            cell("held" if one.held_now else "", style="yellow"),
        ]
        table.add_row(*cells)
    return table


def view(
    rates: list[Rates], troubles: Sequence[object], sort: str, frozen: bool = False, keys: bool = True
) -> Group:
    """The screen."""
    now = datetime.datetime.now().strftime("%H:%M:%S")
    parts: list[Text | Table] = []
    for one in rates:
        busy = "" if one.device_busy is None else f", busy {_share(one.device_busy)}"
        line = cell(
            f"npu{one.device} {one.soc}, flexnpud {one.pid} up {one.uptime_s:.0f} s{busy}", style="bold"
        )
        parts += [line, cell(f"gate: {describe_gate(one.gate)}")]
    parts += [cell(trouble, style="red") for trouble in troubles]
    several = len(rates) > 1
    if any(one.sessions for one in rates):
        parts += [Text(""), _sessions(rates, sort, several)]
        if any(one.lanes for one in rates):
            parts += [Text(""), _lanes(rates, sort, several)]
    elif rates:
        parts += [Text(""), cell("no sessions")]
    elif not troubles:
        parts.append(cell("no daemon listens"))
    if keys:
        state = "frozen" if frozen else now
        parts.insert(0, cell(f"{state}   sort: {sort}   q quit  s sort  f freeze", style="dim"))
    return Group(*parts)


@contextlib.contextmanager
def _keys() -> Iterator[int | None]:
    """The terminal's descriptor, giving keys as they are typed; None without a terminal."""
    if not sys.stdin.isatty():
        yield None
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _key(fd: int | None, seconds: float) -> str:
    """The next key within `seconds`; empty when there is none."""
    if fd is None:
        time.sleep(max(0.0, seconds))
        return ""
    if not select.select([fd], [], [], max(0.0, seconds))[0]:
        return ""
    data = os.read(fd, 1)
    return data.decode(errors="replace") if data else "q"  # the terminal is gone


def _live(daemons: Daemons, interval: float, sort: str, console: Console) -> None:
    def on_term(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)  # by way of the terminal's restoration

    signal.signal(signal.SIGTERM, on_term)
    frozen = False
    rates, troubles = daemons.sample()
    due = time.monotonic() + min(interval, 0.3)  # rates need a second sample: soon
    with _keys() as fd, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(view(rates, troubles, sort, frozen), refresh=True)
            key = _key(fd, due - time.monotonic())
            if key == "q":
                return
            if key == "s":
                sort = SORTS[(SORTS.index(sort) + 1) % len(SORTS)]
            elif key == "f":
                frozen = not frozen
            elif time.monotonic() >= due:
                due = time.monotonic() + interval
                if not frozen:
                    rates, troubles = daemons.sample()


@click.command(short_help="Watch sessions, lanes, memory and the gate, live.")
@click.option("--device", type=DEVICE, metavar="N", help="Only this device's daemon.")
@click.option(
    "--interval",
    type=Duration(0.1, 3600),
    default=1.0,
    show_default=True,
    metavar="S",
    help="Seconds between two looks.",
)
@click.option("--sort", type=click.Choice(SORTS), default=SORTS[0], show_default=True, help="Biggest first.")
@click.option("--once", is_flag=True, help="Look twice, --interval apart, print and end.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines, one a daemon a look, until interrupted.")
def top(device: int | None, interval: float, sort: str, once: bool, as_json: bool) -> None:
    """Watch every daemon's sessions and lanes: device time, operators a second, memory, queues, the gate.

    \b
    EXAMPLES
      flexnpu top
      flexnpu top --sort memory --interval 5
      flexnpu top --once --json | jq '.sessions[] | {pid, device_share}'

    "device" is the share of the time that the device works for a session; "held", the share for which the
    gate held the head of a lane; "flight", the device time of what was dispatched and has not come back;
    "ref" counts refused calls. Keys: q ends, s sorts by the next of device, memory, queue and pid, f freezes
    the screen.

    \b
    OVERHEAD
      A look asks each daemon for its status once, well below a millisecond of its time.

    \b
    EXIT STATUS
      0; 1 when there is no daemon, or one does not answer; 2 for wrong usage; 4 when
      you may not ask one.
    """
    daemons = Daemons(device)
    try:
        rates, troubles = daemons.sample()
        if not rates and not troubles:
            raise click.ClickException(no_daemon(device or 0))
        if not rates:
            for trouble in troubles:
                say(trouble)
            raise SystemExit(status_of(troubles))
        if not (once or as_json):
            console = Console()
            if not console.is_terminal:
                raise click.ClickException("the output is no terminal: use --once or --json")
            _live(daemons, interval, sort, console)
            return
        while True:
            time.sleep(interval)
            rates, troubles = daemons.sample()
            for trouble in troubles:
                say(trouble)
            if as_json:
                for one in rates:
                    out_json(one.as_json(), flush=True)
            else:
                Console().print(view(rates, [], sort, keys=False))
            if once:
                raise SystemExit(status_of(troubles) if troubles else 0)
    except KeyboardInterrupt:
        pass
    finally:
        daemons.close()
