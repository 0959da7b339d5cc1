"""`flexnpu-probe doctor`: does tracing work here, and if not, why."""

from __future__ import annotations

import click

from flexnpu.console.numbers import PID
from flexnpu.console.output import out, out_json
from flexnpu.console.tables import Table, cell, wide_console
from probes.commands import early
from probes.commands.list import entries_table
from probes.host.inventory import Inventory
from probes.selftest import doctor
from probes.selftest.doctor import Check, Status

_MARKS = {
    Status.OK: ("ok", "green"),
    Status.INFO: ("", ""),
    Status.WARN: ("warn", "yellow"),
    Status.FAIL: ("FAIL", "red"),
}


@click.command(name="doctor", short_help="Find out whether tracing works here, and prove it.")
@click.option(
    "--pid",
    "pids",
    type=PID,
    multiple=True,
    metavar="P",
    help="Also look at process P: which functions would be probed where, and whether the layout of its "
    "tensors can be learned. May be given several times.",
)
@click.option(
    "--self-test/--no-self-test",
    default=True,
    show_default=True,
    help="Trace small programs of our own and compare every count.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(pids: tuple[int, ...], self_test: bool, as_json: bool) -> None:
    """Find out whether tracing works here, and prove it.

    \b
    EXAMPLES
      sudo flexnpu-probe doctor
            is everything there, and does it work?
      sudo flexnpu-probe doctor --pid 4242
            what would be probed in process 4242?
      sudo flexnpu-probe doctor --json | jq '.checks[] | select(.status == "fail")'
            what is wrong, for scripts
      setpriv --reuid=nobody --clear-groups --inh-caps=+bpf,+perfmon,+sys_ptrace
          --ambient-caps=+bpf,+perfmon,+sys_ptrace flexnpu-probe doctor
            what works with these rights alone?

    Looks at the kernel, at the rights of this process, and at what has to be installed. What can be tried is
    tried rather than looked up: programs are loaded, probes placed on code of our own, another user's memory
    map is read. With --pid also symbol by symbol what would be probed in a process: the library, the offset,
    the instruction, what a hit would cost.

    Then the self-test: programs that come with this one make known calls of functions with CANN's names, and
    of the probe points of FlexNPU's client. They are attached to as any other process. Beside each of the
    tracer's probes sits a second, simpler one, which counts hits and adds up argument registers. It is shown
    that every probe fires once a call, a prime number of times; that each argument is still what the caller
    passed; and that steps, tokens and batches come out as the program made them.

    \b
    LINES
      ok    works, mostly by trying
      warn  something works less well, or does not work that not everybody needs
      FAIL  tracing does not work, or its figures would be wrong; the line below says
            what to do

    \b
    RIGHTS
      CAP_BPF and CAP_PERFMON load the programs, CAP_SYS_PTRACE reads other users'
      memory maps: these three are enough where the kernel has uprobe_multi links (Linux
      6.6). Before, placing a probe takes CAP_SYS_ADMIN. To find libraries in folders
      that are closed to others and to read tracefs (--wire): CAP_DAC_READ_SEARCH. To
      learn layouts as the process's own user: CAP_SETUID and CAP_SETGID.

    \b
    OVERHEAD
      None for other processes, unless --pid names one: then its memory map and libraries
      are read, and code of its libraries runs in a process of its own, as the process's
      user, to learn layouts. The self-test takes some 10 s, mostly for compiling and for
      removing probes.

    \b
    EXIT STATUS
      0 if nothing fails (there may be warnings); 1 if something does; 2 for wrong usage.
    """
    for pid in pids:
        early.check_process(pid)
    checks: list[Check] = []
    inventories: list[Inventory] = []
    console = wide_console(160)
    for part in (doctor.kernel, doctor.rights, doctor.software):
        checks += _shown(list(part()), as_json)
    for pid in dict.fromkeys(pids):
        inventory, found = doctor.process(pid)
        checks += _shown(found, as_json)
        if inventory is not None:
            inventories.append(inventory)
            if not as_json and inventory.entries:
                console.print(entries_table(inventory.entries, why=True, width=console.width))
    if self_test and not doctor.failed(checks):
        running: list[Check] = []
        for check in doctor.selftest():
            if running and running[-1].group != check.group:
                checks += _shown(running, as_json)
                running = []
            running.append(check)
        checks += _shown(running, as_json)
    elif self_test and not as_json:
        out("", "The self-test is left out: something fails above.")
    bad = doctor.failed(checks)
    if as_json:
        out_json(
            {
                "ok": not bad,
                "checks": [check.to_dict() for check in checks],
                "processes": [inventory.to_dict() for inventory in inventories],
            }
        )
    else:
        failures = sum(check.status is Status.FAIL for check in checks)
        warnings = sum(check.status is Status.WARN for check in checks)
        verdict = (
            "Tracing works here" if not bad else f"{failures} failed: tracing does not work as it should"
        )
        out("", f"{verdict}{f' ({warnings} warnings)' if warnings else ''}.")
    if bad:
        raise SystemExit(1)


def _shown(checks: list[Check], as_json: bool) -> list[Check]:
    if checks and not as_json:
        table = Table(
            box=None, pad_edge=False, show_header=False, title=checks[0].group, title_justify="left"
        )
        table.add_column(width=4)
        table.add_column(min_width=26)
        table.add_column()
        for check in checks:
            table.add_row(cell(*_MARKS[check.status]), check.name, check.detail)
            if check.remedy and check.status in (Status.WARN, Status.FAIL):
                table.add_row("", "", cell(check.remedy, "italic"))
        wide_console(160).print(table)
    return checks
