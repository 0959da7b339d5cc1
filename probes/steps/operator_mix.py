"""The operators of a process: a probe on each one's second call, for windows of detail.

An operator is a pair of functions of one library, ``aclnnXxxGetWorkspaceSize`` and ``aclnnXxx``; the second
call launches it. All of them are placed by one uprobe_multi link, and told apart by its cookies.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

from probes.placing import store, symbols
from probes.placing.attach import Point
from probes.placing.elf import Elf, ElfError
from probes.placing.groups import Group
from probes.placing.plan import FUNNELS, Role
from probes.placing.sites import KEPT, REACH, READS, choose

_FIRST = "GetWorkspaceSize"
_CORE = "aclnnEmbedding"
_CODE = 128


@dataclass(frozen=True)
class Operators:
    """Where the operators of a process are; a point's cookie is the index of its name."""

    group: Group
    names: tuple[str, ...]


Found = tuple[tuple[str, int], ...]
"""Of each second call in a file, its name and the file offset of its cheapest instruction."""


@lru_cache(maxsize=16)
def _scan(version: symbols.Version, real: str) -> Found:
    key = f"{version} {KEPT.rules()}"
    kept = store.get("operators", key)
    try:
        return tuple((str(name), int(offset)) for name, offset in kept)  # type: ignore[union-attr]
    except (TypeError, ValueError):
        found = _read(real)
        if found:
            store.put("operators", key, found)
        return found


def _read(real: str) -> Found:
    try:
        with Elf(real) as library:
            defined = library.functions()
            found = []
            for name, address in defined.items():
                if not name.startswith("aclnn") or name + _FIRST not in defined:
                    continue
                at = library.file_offset(address)
                if at is not None:
                    code = library.read(at, _CODE)
                    chosen = choose(code[: REACH * 2], library.machine, arguments=READS["on_operator"])
                    found.append((name, at + chosen.offset))
            return tuple(sorted(found))
    except (OSError, ElfError):
        return ()


def operators_of(pid: int, *, only: Collection[str] | None = None) -> Operators | None:
    """The operators of process `pid`, of the library that defines the embedding; None when there are none.

    The first call for a library reads its whole symbol table. Raises `symbols.ProcessGone`.
    """
    found = symbols.resolve(pid, [_CORE, *FUNNELS], only=only)
    if _CORE not in found:
        return None
    library = found[_CORE][0].library
    version = symbols.version_of(library.real)
    scanned = _scan(version, library.real) if version is not None else ()
    if not scanned:
        return None
    points = [Point(offset, cookie) for cookie, (_, offset) in enumerate(scanned)]
    group = Group("on_operator", Role.COUNT, library, on_return=False, points=points)
    return Operators(group, tuple(name for name, _ in scanned))
