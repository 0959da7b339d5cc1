"""What can be probed in a process: which function of which library, on which instruction, at what cost.

Nothing is attached and nothing in the process is changed; its memory map and the files in it are read.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from flexnpu.common.processes import comm_of
from probes.host import memory
from probes.placing import symbols
from probes.placing.plan import CLIENT, FUNNELS, SITES, Role
from probes.placing.sites import Choice, HitCost, choose_for

_OF_CLIENT = (Role.CLIENT, Role.OPERATOR, Role.TRANSFER)


@dataclass(frozen=True)
class Entry:
    """One function that can be probed."""

    symbol: str
    library: str
    """As the process names it."""
    function: int
    """Offset in the file of the function's first instruction."""
    offset: int
    """Offset in the file of the instruction to probe."""
    instruction: str
    cost: HitCost
    reason: str
    """Why that instruction."""
    often: str
    """How often it is hit, as `plan.Cost` says: step, copy, layer, launch, tensor."""
    role: str
    on_return: bool
    """Whether its return is probed, too."""
    probed: bool | None
    """Whether somebody has put a probe there at this moment; None where its memory cannot be read."""
    semaphore: int | None = None
    """How many listeners a probe point of FlexNPU's client has; None for functions that count none."""

    def to_dict(self) -> dict[str, Any]:
        """Its fields, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Inventory:
    """What can be probed in one process."""

    pid: int
    comm: str
    kind: str
    """``client`` (FlexNPU's), ``cann`` (the vendor's libraries, or emulated ones), or ``none``."""
    entries: tuple[Entry, ...]
    missing: tuple[str, ...]
    """Functions of the plan for this kind of process that it does not map."""

    def to_dict(self) -> dict[str, Any]:
        """Its fields and its entries', for JSON."""
        return asdict(self)


def take(pid: int) -> Inventory:
    """What can be probed in process `pid`. Raises `ProcessGone` or PermissionError."""
    names = [name for site in SITES for name in (site.symbol, site.semaphore) if name]
    found = symbols.resolve(pid, names)
    entries = []
    for site in SITES:
        for definition in found.get(site.symbol, ()):
            choice = choose_for(site, definition)
            semaphore = None
            for word in found.get(site.semaphore or "", ()):
                if word.library.path == definition.library.path:
                    semaphore = _word(pid, word)
            entries.append(
                Entry(
                    symbol=site.symbol,
                    library=definition.library.path,
                    function=definition.offset,
                    offset=definition.offset + choice.offset,
                    instruction=choice.instruction,
                    cost=choice.cost,
                    reason=choice.reason,
                    often=site.cost_class.value,
                    role=site.role.value,
                    on_return=site.on_return is not None,
                    probed=_probed(pid, definition, choice),
                    semaphore=semaphore,
                )
            )
    have = {entry.symbol for entry in entries}
    kind = "client" if CLIENT in have else "cann" if have & FUNNELS else "none"
    # The client's own copies of CANN's functions are not probed: it tells of its steps itself.
    wanted = [site.symbol for site in SITES if (site.role in _OF_CLIENT) == (kind == "client")]
    kept = tuple(entry for entry in entries if entry.symbol in wanted)
    missing = tuple(name for name in wanted if name not in have and kind != "none")
    return Inventory(pid, comm_of(pid), kind, kept, missing)


def _memory(pid: int, library: symbols.Mapped, offset: int, size: int) -> bytes | None:
    """`size` bytes of process `pid`'s memory where `offset` of the file `library` is mapped."""
    try:
        at = memory.address_of(pid, library, offset, size)
        return None if at is None else memory.read(pid, at, size)
    except OSError:
        return None


def _probed(pid: int, definition: symbols.Definition, choice: Choice) -> bool | None:
    there = _memory(pid, definition.library, definition.offset + choice.offset, 4)
    if there is None:
        return None
    return there != definition.code[choice.offset : choice.offset + len(there)]


def _word(pid: int, definition: symbols.Definition) -> int | None:
    data = _memory(pid, definition.library, definition.offset, 2)
    return None if data is None else int.from_bytes(data, "little")
