"""What AscendCL a program's shared objects ask for: symbols that they link, names that they look up.

A linked symbol is undefined in an object's dynamic symbol table. A looked-up name is not marked in any way:
it is a string in read-only data. A string counts when it names a function of the API table or one half of an
operator (`aclnnX` beside `aclnnXGetWorkspaceSize`). Linkers let short strings share the end of long ones, so
the last word of every string is read too. Other strings that look like AscendCL functions are kept apart:
nothing says whether they are looked up, or words of a message.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

#: C functions of AscendCL, by their prefixes.
_C_NAME = re.compile(r"(?:acl[a-z]*[A-Z]|acl[a-z]+[A-Z]|Hccl[A-Z]|Msprof[A-Z])\w+\Z")
#: What objects link besides: the runtime below AscendCL, bounded string functions, and the C++ of the graph
#: engine, of the chip's properties, of ATB and of transfers between engines.
_LINKED_NAME = re.compile(
    r"(?:rt|mm)[A-Z]\w+\Z|(?:strcpy|memcpy|vsnprintf)_s\Z|_ZT?[NIVS]?[KTVS]*N?K?(?:2ge|2fe|3atb|4adxl)\d"
)
_OPERATOR = re.compile(r"(aclnn\w+?)Get(?:Max)?WorkspaceSize\Z")
_LAST_WORD = re.compile(rb"[A-Za-z_][A-Za-z0-9_]{3,120}\Z")


@dataclass
class Wants:
    """What one object, or several together, ask for."""

    linked: set[str] = field(default_factory=set)
    looked_up: set[str] = field(default_factory=set)
    mentioned: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class SharedObject:
    """What one file says. `words`: whole strings of read-only data; `tails`: last words of longer ones."""

    name: str
    undefined: frozenset[str]
    defined: frozenset[str]
    words: frozenset[str]
    tails: frozenset[str]


class CoverageError(Exception):
    """A file that cannot be read; the message names it."""


def _parse(name: str, data: bytes) -> SharedObject:
    try:
        elf = ELFFile(io.BytesIO(data))
        table = elf.get_section_by_name(".dynsym")
        undefined: set[str] = set()
        defined: set[str] = set()
        for symbol in table.iter_symbols() if isinstance(table, SymbolTableSection) else ():
            if symbol.name:
                (undefined if symbol["st_shndx"] == "SHN_UNDEF" else defined).add(symbol.name)
        words: set[str] = set()
        tails: set[str] = set()
        for section in elf.iter_sections():
            # Without a section of their own, constants lie in .rodata, .rodata.str1.1 and the like.
            if not section.name.startswith((".rodata", ".data.rel.ro")) or section["sh_type"] == "SHT_NOBITS":
                continue
            for text in section.data().split(b"\0"):
                found = _LAST_WORD.search(text)
                if found:
                    (words if found.start() == 0 else tails).add(found[0].decode())
    except (ELFError, ValueError, UnicodeDecodeError) as error:
        raise CoverageError(f"{name}: not a shared object that can be read: {error}") from None
    return SharedObject(name, frozenset(undefined), frozenset(defined), frozenset(words), frozenset(tails))


def read(path: Path) -> Iterator[SharedObject]:
    """The shared objects at `path`: a file, a wheel's, or those below a folder. Raises CoverageError."""
    if path.is_dir():
        found = sorted(p for p in path.rglob("*.so*") if p.is_file() and not p.is_symlink())
        found = [p for p in found if p.open("rb").read(4) == b"\x7fELF"]
        if not found:
            raise CoverageError(f"{path}: no shared object in this folder")
        for one in found:
            yield _parse(str(one), one.read_bytes())
        return
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as wheel:
                names = [n for n in wheel.namelist() if re.search(r"\.so(\.[\d.]+)?\Z", n)]
                if not names:
                    raise CoverageError(f"{path}: no shared object in this wheel")
                for name in names:
                    yield _parse(f"{path.name}:{name}", wheel.read(name))
            return
        yield _parse(str(path), path.read_bytes())
    except OSError as error:
        raise CoverageError(f"{path}: {error.strerror}") from None


def wants(one: SharedObject, known: Collection[str], defined: Collection[str]) -> Wants:
    """What `one` asks AscendCL for. `known`: names of the table; `defined`: by its fellow libraries."""
    result = Wants()
    for name in one.undefined:
        if name not in defined and (name in known or _C_NAME.match(name) or _LINKED_NAME.match(name)):
            result.linked.add(name)
    strings = one.words | one.tails
    firsts = {m[1] for m in map(_OPERATOR.match, strings) if m}
    for name in strings - one.defined:
        # Names like aclnnStatus are no functions: an operator's name comes with its first call's.
        first = _OPERATOR.match(name)
        if name in known or (first and name in one.words) or (name in firsts and name in one.words):
            result.looked_up.add(name)
        elif name in one.words and _C_NAME.match(name):
            result.mentioned.add(name)
    result.looked_up -= result.linked
    return result


def exports(folder: Path) -> dict[str, bool]:
    """Every function that the libraries in `folder` define, and whether its definition is weak."""
    found: dict[str, bool] = {}
    for path in sorted(folder.glob("*.so")):
        with path.open("rb") as file:
            table = ELFFile(file).get_section_by_name(".dynsym")
            for symbol in table.iter_symbols() if isinstance(table, SymbolTableSection) else ():
                info = symbol["st_info"]
                if symbol["st_shndx"] != "SHN_UNDEF" and info["type"] in ("STT_FUNC", "STT_GNU_IFUNC"):
                    weak = info["bind"] == "STB_WEAK"
                    found[symbol.name] = weak and found.get(symbol.name, True)
    return found


def union(parts: Iterable[Wants]) -> Wants:
    """What several objects want together. A symbol counts once: linked, else looked up, else mentioned."""
    whole = Wants()
    for part in parts:
        whole.linked |= part.linked
        whole.looked_up |= part.looked_up
        whole.mentioned |= part.mentioned
    whole.looked_up -= whole.linked
    whole.mentioned -= whole.looked_up | whole.linked
    return whole
