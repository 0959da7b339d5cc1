"""The operators of a process: a probe on each one's second call, for windows of detail.

An operator is a pair of functions of one library, ``aclnnXxxGetWorkspaceSize`` and ``aclnnXxx``; the second
call launches it. All of them are placed by one uprobe_multi link, and told apart by its cookies.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from probes import symbols
from probes.attach import Point
from probes.placing import Group
from probes.plan import FUNNELS, Role
from probes.sites import REACH, READS, choose

_FIRST = "GetWorkspaceSize"
_CORE = "aclnnEmbedding"
_CODE = 128


@dataclass(frozen=True)
class Operators:
    """Where the operators of a process are; a point's cookie is the index of its name."""

    group: Group
    names: tuple[str, ...]


@lru_cache(maxsize=16)
def _scan(_identity: tuple[int, int, int], real: str) -> tuple[tuple[str, int, bytes], ...]:
    """(name, file offset of its cheapest instruction, code there) of each second call in a file."""
    try:
        with open(real, "rb") as file:
            elf = ELFFile(file)
            machine = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64"}.get(elf.header.e_machine, "")
            table: Any = elf.get_section_by_name(".dynsym")
            if table is None:
                return ()
            loads = [(s["p_vaddr"], s["p_filesz"], s["p_offset"]) for s in elf.iter_segments("PT_LOAD")]
            defined = {
                symbol.name: int(symbol["st_value"])
                for symbol in table.iter_symbols()
                if symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_shndx"] != "SHN_UNDEF"
            }
            found = []
            for name, address in defined.items():
                if not name.startswith("aclnn") or name + _FIRST not in defined:
                    continue
                for start, size, offset in loads:
                    if start <= address < start + size:
                        at = address - start + offset
                        file.seek(at)
                        code = file.read(_CODE)
                        chosen = choose(code[: REACH * 2], machine, arguments=READS["on_operator"])
                        found.append((name, at + chosen.offset, code[chosen.offset : chosen.offset + 8]))
            return tuple(sorted(found))
    except (OSError, ELFError, ValueError, KeyError, UnicodeDecodeError):
        return ()


def operators_of(pid: int, *, only: Collection[str] | None = None) -> Operators | None:
    """The operators of process `pid`, of the library that defines the embedding; None when there are none.

    The first call for a library reads its whole symbol table. Raises `symbols.ProcessGone`.
    """
    found = symbols.resolve(pid, [_CORE, *FUNNELS], only=only)
    if _CORE not in found:
        return None
    library = found[_CORE][0].library
    try:
        stat = os.stat(library.real)
    except OSError:
        return None
    scanned = _scan((stat.st_dev, stat.st_ino, stat.st_mtime_ns), library.real)
    if not scanned:
        return None
    points = [Point(offset, cookie) for cookie, (_, offset, _) in enumerate(scanned)]
    group = Group("on_operator", Role.COUNT, library, on_return=False, points=points)
    return Operators(group, tuple(name for name, _, _ in scanned))
