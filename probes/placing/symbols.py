"""Which mapped file of a process defines a symbol, and where in the file to put a probe.

Nothing is assumed about library names: `resolve` reads /proc/PID/maps and looks into the dynamic symbol
table of every mapped shared object. So it finds `aclrt*` in libacl_rt.so on current CANN, in
libascendcl.so on an older one, in the emulated CANN's libraries, or in FlexNPU's client, and it finds
them in containers too.

When several mapped files define a symbol, a compatibility library usually forwards to the one that it needs
(CANN keeps `aclrt*` in libascendcl.so, forwarding to libacl_rt.so). Probing both would count twice, so
definers that (transitively) need another definer are left out.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from flexnpu.common.processes import folder_of
from probes.placing.elf import Elf, ElfError

_CODE = 1024
"""Bytes of a function's code to keep: its prologue, and what may jump back into it."""

Version = tuple[int, ...]
"""A file's device, inode, size, and when its contents and its inode last changed: what is known of it holds
as long as they do."""


@dataclass(frozen=True)
class Mapped:
    """An executable mapping of a file: `path` as the process names it, `real` as this process can open it."""

    path: str
    real: str
    start: int
    offset: int
    inode: int


@dataclass(frozen=True)
class Definition:
    """A symbol's definition: the file that holds it, the file offset of its first instruction, its first
    bytes."""

    symbol: str
    library: Mapped
    offset: int
    size: int
    code: bytes
    machine: str


class ProcessGone(RuntimeError):
    """The process ended, or never was."""


def mapped_files(pid: int) -> list[Mapped]:
    """The files mapped executable into process `pid`. Raises `ProcessGone` or PermissionError."""
    found = []
    for path, fields in _executable(pid).items():
        real = _reachable(pid, path, fields[0])
        if real is not None:
            start = int(fields[0].split("-")[0], 16)
            found.append(Mapped(path, real, start, int(fields[2], 16), int(fields[4])))
    return found


def mapped_paths(pid: int) -> frozenset[str]:
    """The paths of `mapped_files`, without looking at the files. Raises the same."""
    return frozenset(_executable(pid))


def _executable(pid: int) -> dict[str, list[str]]:
    """The first executable mapping of each file, as the fields of its line in /proc/PID/maps."""
    try:
        text = Path(f"{folder_of(pid)}/maps").read_text(errors="surrogateescape")
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(f"no process {pid}") from None
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and "x" in fields[1] and fields[5].startswith("/"):
            found.setdefault(fields[5].removesuffix(" (deleted)"), fields)
    return found


def _reachable(pid: int, path: str, span: str) -> str | None:
    """A name under which this process can open the file that `pid` has mapped, in `pid`'s own root.

    A library replaced on disk since it was mapped has the same path and another inode. The kernel's
    map_files link always leads to the file that is mapped, so it decides, and serves when the path no
    longer leads there.
    """
    folder = folder_of(pid)
    by_path = f"{folder}/root{path}"
    by_map = f"{folder}/map_files/{span}"
    try:
        mapped = os.stat(by_map)
    except OSError:
        return by_path if os.path.exists(by_path) else None
    try:
        named = os.stat(by_path)
    except OSError:
        return by_map
    return by_path if (named.st_dev, named.st_ino) == (mapped.st_dev, mapped.st_ino) else by_map


@dataclass(frozen=True)
class _Scan:
    found: tuple[tuple[str, int, int, bytes], ...]
    needed: tuple[str, ...]
    soname: str
    machine: str


@dataclass(frozen=True)
class Dependencies:
    """What an ELF file calls itself and needs."""

    soname: str
    needed: tuple[str, ...]
    build_id: str
    """Hexadecimal, empty if it bears none."""


def dependencies(real: str) -> Dependencies:
    """Of the file `real`; everything empty when it is no ELF file or cannot be read."""
    try:
        with Elf(real) as elf:
            return Dependencies(elf.soname, elf.needed, elf.build_id())
    except (OSError, ElfError):
        return Dependencies("", (), "")


_cache: dict[tuple[Version, tuple[str, ...]], _Scan] = {}


def _scan(version: Version, real: str, names: tuple[str, ...]) -> _Scan:
    """What one file defines of `names`. Cached by the file's identity; `real` is one way to open it."""
    key = (version, names)
    if key not in _cache:
        if len(_cache) >= 4096:
            _cache.clear()
        _cache[key] = _read(real, names)
    return _cache[key]


def _read(real: str, names: tuple[str, ...]) -> _Scan:
    try:
        with Elf(real) as elf:
            found = []
            for name in names:
                symbol = elf.find(name)
                offset = None if symbol is None else elf.file_offset(symbol.value)
                if symbol is not None and offset is not None:
                    code = elf.read(offset, min(symbol.size or 64, _CODE))
                    found.append((name, offset, symbol.size, code))
            return _Scan(tuple(found), elf.needed, elf.soname, elf.machine)
    except (OSError, ElfError):
        return _Scan((), (), "", "")


def version_of(real: str) -> Version | None:
    """Of the file `real`; None when it cannot be found."""
    try:
        stat = os.stat(real)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def resolve(
    pid: int, names: Iterable[str], *, only: Collection[str] | None = None
) -> dict[str, tuple[Definition, ...]]:
    """For each of `names` that a file mapped into `pid` defines: its definitions to probe (mostly one).

    `only`, if given, restricts the search to libraries whose path or file name is in it.
    Raises `ProcessGone`, or PermissionError when the process's maps may not be read.
    """
    wanted = tuple(sorted(set(names)))
    scans: list[tuple[Mapped, _Scan]] = []
    needs: dict[str, tuple[str, ...]] = {}
    for mapping in mapped_files(pid):
        if only is not None and mapping.path not in only and os.path.basename(mapping.path) not in only:
            continue
        version = version_of(mapping.real)
        if version is None:
            continue
        scan = _scan(version, mapping.real, wanted)
        needs[_soname(mapping, scan)] = scan.needed
        if scan.found:
            scans.append((mapping, scan))
    result: dict[str, tuple[Definition, ...]] = {}
    for name in wanted:
        definers = [
            (mapping, scan, entry) for mapping, scan in scans for entry in scan.found if entry[0] == name
        ]
        sonames = {_soname(mapping, scan) for mapping, scan, _ in definers}
        kept = tuple(
            Definition(name, mapping, entry[1], entry[2], entry[3], scan.machine)
            for mapping, scan, entry in definers
            if not _forwards(_soname(mapping, scan), sonames, needs)
        )
        if kept:
            result[name] = kept
    return result


def _soname(mapping: Mapped, scan: _Scan) -> str:
    return scan.soname or os.path.basename(mapping.path)


def _forwards(name: str, definers: set[str], needs: dict[str, tuple[str, ...]]) -> bool:
    """Whether library `name` needs, directly or not, another definer that does not need it in turn."""
    return any(
        other in _closure(name, needs) and name not in _closure(other, needs) for other in definers - {name}
    )


def _closure(start: str, needs: dict[str, tuple[str, ...]]) -> set[str]:
    seen: set[str] = set()
    todo = list(needs.get(start, ()))
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo.extend(needs.get(name, ()))
    return seen


def processes() -> list[int]:
    """Ids of all processes that this one can see."""
    return sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit())
