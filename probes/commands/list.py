"""`flexnpu-probe list`: what can be probed in a process."""

from __future__ import annotations

import os

import click

from flexnpu.console.numbers import PID
from flexnpu.console.output import out, out_json, say
from flexnpu.console.tables import Table, cell, wide_console
from probes.commands import early
from probes.commands.common import errors
from probes.host.inventory import Entry, Inventory, take
from probes.placing import symbols
from probes.placing.attach import AttachError
from probes.placing.plan import FUNNELS
from probes.placing.sites import HitCost

_COLUMNS = ("function", "library", "offset", "instruction", "hit", "often", "now")
_KINDS = {
    "client": "FlexNPU's client",
    "cann": "CANN",
    "none": "no AscendCL",
}


@click.command(name="list", short_help="Show what can be probed in running processes.")
@click.option(
    "--pid",
    "pids",
    type=PID,
    multiple=True,
    metavar="P",
    help="Look at process P. May be given several times.  [default: every process that uses an NPU]",
)
@click.option("--all", "everything", is_flag=True, help="Look at every process that uses an NPU.")
@click.option("--why", is_flag=True, help="Also say why each instruction was chosen.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a process.")
def command(pids: tuple[int, ...], everything: bool, why: bool, as_json: bool) -> None:
    """Show what can be probed in running processes.

    \b
    EXAMPLES
      sudo flexnpu-probe list
            every process that uses an NPU
      sudo flexnpu-probe list --pid 4242 --why
            one process, with the reason for each instruction
      sudo flexnpu-probe list --json | jq '.entries[] | select(.cost == "single-step")'
            functions whose probes would be dear

    Which functions of `attach`'s plan a process maps, from which library, on which instruction a probe would
    go, and what a hit would cost. Nothing is attached, and nothing in the process is changed or stopped: its
    memory map is read, and the libraries in it, through /proc/PID/root for containers.

    \b
    COLUMNS
      function     as the library exports it; "+ret" where its return is probed, too
      library      the file that defines it (--json has the whole path)
      offset       of the instruction in the file; left out on narrow terminals, as is the
                   instruction (--json has both)
      instruction  where the probe goes: the first of the function's beginning that the
                   kernel emulates, before any argument register changes
      hit          "emulated": 0.6 to 1.3 us on virtual machines; "single-step": 5 to 13 us
      often        how often it is hit: once a step, copy, layer, launch or tensor
      now          "probed" while somebody's probe is there, this tool's or another's; for
                   FlexNPU's probe points, how many listen

    \b
    OVERHEAD
      None for the processes: nothing runs in them. This command reads the dynamic symbols
      of each library that they map, some 0.1 s for the first process and little for
      others with the same libraries.

    \b
    EXIT STATUS
      0 if something can be probed in each process; 1 if not, or if a process cannot be
      read; 2 for wrong usage.
    """
    with errors():
        wanted = list(dict.fromkeys(pids)) or _using()
        if not wanted:
            raise AttachError("no process uses an NPU. Start one, or name one with --pid.")
        bad = False
        for pid in wanted:
            early.check_process(pid)
            try:
                inventory = take(pid)
            except PermissionError as error:
                raise AttachError(
                    f"may not read the memory map of process {pid}: {error}. Type: sudo flexnpu-probe list"
                ) from None
            if inventory.kind == "none":
                bad = True
                say(f"process {pid} ({inventory.comm}) maps no AscendCL library that could be probed")
                if not as_json:
                    continue
            if as_json:
                out_json(inventory.to_dict())
            else:
                _show(inventory, why)
    if bad:
        raise SystemExit(1)


def _using() -> list[int]:
    """Processes that can be probed, as far as they may be read; this one aside."""
    found = []
    for pid in symbols.processes():
        try:
            if pid != os.getpid() and symbols.resolve(pid, FUNNELS):
                found.append(pid)
        except (symbols.ProcessGone, OSError):
            continue
    return found


def entries_table(entries: tuple[Entry, ...], *, why: bool = False, width: int = 160) -> Table:
    """One row a function. Where `width` columns are too few, without the place in the file."""
    table = Table(box=None, pad_edge=False)
    narrow = width < 120
    for name in _COLUMNS:
        if not (narrow and name in ("offset", "instruction")):
            table.add_column(name, justify="right" if name == "offset" else "left", no_wrap=True)
    if why:
        table.add_column("why")
    for entry in entries:
        now = "probed" if entry.probed else ""
        if entry.semaphore is not None:
            now = f"{entry.semaphore} listen"
        style = {HitCost.EMULATED: "green", HitCost.SINGLE_STEP: "yellow"}.get(entry.cost, "")
        place = () if narrow else (f"{entry.offset:#x}", entry.instruction)
        table.add_row(
            entry.symbol + ("+ret" if entry.on_return else ""),
            os.path.basename(entry.library),
            *place,
            cell(entry.cost.value, style),
            entry.often,
            now,
            *([entry.reason] if why else []),
        )
    return table


def _show(inventory: Inventory, why: bool) -> None:
    console = wide_console(220 if why else 160)
    out(f"{inventory.comm} ({inventory.pid}): {_KINDS[inventory.kind]}")
    console.print(entries_table(inventory.entries, why=why, width=console.width))
    if inventory.missing:
        out(f"  not mapped: {', '.join(inventory.missing)}")
