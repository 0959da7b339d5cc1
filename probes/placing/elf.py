"""The dynamic symbols of ELF files, looked up as the dynamic linker does: by the hash table, name by name.

Attaching to a program asks some hundred libraries for some fifty names, most of which they do not define.
The table's Bloom filter says so after two loads, so a library costs a fraction of a millisecond; section
headers, which may be stripped, are not needed. A file is somebody else's: whatever it holds, and whatever is
done to it meanwhile, the answer is symbols, `ElfError` or OSError. (So files are read, not mapped: who
shortens a mapped file kills its readers.) 64-bit little-endian files only, as x86-64 and aarch64 have.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flexnpu.common.closeable import Closeable

_HEADER = struct.Struct("<4sBBBBB7xHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")  # type, flags, offset, vaddr, paddr, filesz, memsz, align
_DYNAMIC = struct.Struct("<qQ")
_SYMBOL = struct.Struct("<IBBHQQ")  # name, info, other, section, value, size
_GNU_HASH = struct.Struct("<IIII")  # buckets, first symbol, Bloom words, Bloom shift

_LOAD, _DYNAMIC_SEGMENT, _NOTE = 1, 2, 4
_NEEDED, _HASH, _STRTAB, _SYMTAB, _STRSZ, _SONAME, _GNU_HASH_TAG = 1, 4, 5, 6, 10, 14, 0x6FFFFEF5
_NT_BUILD_ID = 3
_MACHINES = {62: "x86_64", 183: "aarch64"}
_OBJECT, _FUNCTION = 1, 2
_MOST = 4096
"""Program headers, entries of a chain, notes: a file that has more is not believed."""
_MOST_SYMBOLS = 1 << 20
_MOST_NAMES = 64 << 20  # bytes


class ElfError(ValueError):
    """A file that is no ELF file that is understood here, or contradicts itself."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """A defined function or object."""

    name: str
    value: int
    """Its address, as the file is linked."""
    size: int


def gnu_hash(name: bytes) -> int:
    """A symbol's hash in DT_GNU_HASH."""
    value = 5381
    for char in name:
        value = (value * 33 + char) & 0xFFFFFFFF
    return value


def sysv_hash(name: bytes) -> int:
    """A symbol's hash in DT_HASH (System V ABI, chapter 5)."""
    value = 0
    for char in name:
        value = (value << 4) + char
        high = value & 0xF0000000
        value = (value ^ high >> 24) & ~high & 0xFFFFFFFF
    return value


class Elf(Closeable):
    """The file `path`. Raises OSError, `ElfError`."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.needed: tuple[str, ...] = ()
        self.soname = ""
        try:
            self._read()
        except (struct.error, UnicodeDecodeError, OverflowError) as error:
            self.close()
            raise ElfError(str(error)) from None
        except (ElfError, OSError):
            self.close()
            raise

    def close(self) -> None:
        """May be called again."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes of the file."""
        return os.pread(self._fd, size, offset)

    def _unpack(self, layout: struct.Struct, offset: int) -> tuple[Any, ...]:
        return layout.unpack(os.pread(self._fd, layout.size, offset))

    def _words(self, offset: int, count: int) -> tuple[int, ...]:
        """`count` numbers of 32 bits."""
        if count > _MOST_SYMBOLS:
            raise ElfError("a table is larger than symbols could need")
        return struct.unpack(f"<{count}I", os.pread(self._fd, 4 * count, offset))

    def _read(self) -> None:
        fields = self._unpack(_HEADER, 0)
        magic, bits, order = fields[:3]
        if magic != b"\x7fELF" or bits != 2 or order != 1:
            raise ElfError("no 64-bit little-endian ELF file")
        machine, at, entry, count = fields[7], fields[10], fields[14], fields[15]
        self.machine = _MACHINES.get(machine, str(machine))
        if count > _MOST or entry < _PROGRAM.size:
            raise ElfError("program headers make no sense")
        headers = [self._unpack(_PROGRAM, at + n * entry) for n in range(count)]
        self._loads = [
            (vaddr, size, offset) for kind, _, offset, vaddr, _, size, *_ in headers if kind == _LOAD
        ]
        self._notes = [(offset, size) for kind, _, offset, _, _, size, *_ in headers if kind == _NOTE]
        self._tags: dict[int, int] = {}
        wanted = []
        for kind, _, offset, _, _, size, *_ in headers:
            if kind != _DYNAMIC_SEGMENT:
                continue
            entries = os.pread(self._fd, min(size, _MOST * _DYNAMIC.size), offset)
            for tag, value in _DYNAMIC.iter_unpack(entries[: len(entries) // _DYNAMIC.size * _DYNAMIC.size]):
                if tag == 0:
                    break
                if tag == _NEEDED:
                    wanted.append(value)
                else:
                    self._tags[tag] = value
        self._strings = self._table(_STRTAB)
        self._strings_size = self._tags.get(_STRSZ, 0)
        self._symbols = self._table(_SYMTAB)
        self._gnu = self._table(_GNU_HASH_TAG)
        self._sysv = self._table(_HASH)
        if self._gnu:
            self._buckets, self._first, words, self._shift = self._unpack(_GNU_HASH, self._gnu)
            self._bloom_words = words
            if not self._buckets or not words or self._shift > 31:
                raise ElfError("its hash table makes no sense")
            if words > _MOST_SYMBOLS:
                raise ElfError("a table is larger than symbols could need")
            self._bloom = os.pread(self._fd, 8 * words, self._gnu + _GNU_HASH.size)
            self._chains = self._gnu + _GNU_HASH.size + 8 * words
        if self._strings:
            self.needed = tuple(self._string(value).decode() for value in wanted)
            if _SONAME in self._tags:
                self.soname = self._string(self._tags[_SONAME]).decode()

    def _table(self, tag: int) -> int:
        """Where in the file a table is; 0 where there is none."""
        if tag not in self._tags:
            return 0
        return self.file_offset(self._tags[tag]) or 0

    def _string(self, at: int) -> bytes:
        if not 0 <= at < self._strings_size:
            raise ElfError("a name lies outside of its table")
        name, end, _ = os.pread(self._fd, min(_MOST, self._strings_size - at), self._strings + at).partition(
            b"\0"
        )
        if not end:
            raise ElfError("a name has no end")
        return name

    def file_offset(self, address: int) -> int | None:
        """Where in the file the byte at a virtual address is; None if it is in no segment."""
        for start, size, offset in self._loads:
            if start <= address < start + size:
                return int(address - start + offset)
        return None

    # -- symbols --------------------------------------------------------------------------------------------

    def find(self, name: str) -> Symbol | None:
        """The defined function or object `name`. Raises `ElfError`."""
        try:
            return self._find(name.encode())
        except (struct.error, OverflowError) as error:
            raise ElfError(str(error)) from None

    def _find(self, name: bytes) -> Symbol | None:
        if not self._symbols or not self._strings:
            return None
        if self._gnu:
            indices = self._by_gnu_hash(gnu_hash(name))
        elif self._sysv:
            indices = self._by_hash(sysv_hash(name))
        else:
            return None
        for index in indices:
            symbol = self._symbol(index, name)
            if symbol is not None:
                return symbol
        return None

    def _by_gnu_hash(self, wanted: int) -> Iterator[int]:
        (word,) = struct.unpack_from("<Q", self._bloom, wanted // 64 % self._bloom_words * 8)
        if not (word >> wanted % 64 & 1 and word >> (wanted >> self._shift) % 64 & 1):
            return
        (start,) = self._words(self._chains + 4 * (wanted % self._buckets), 1)
        if start < self._first:
            return
        hashes = self._chains + 4 * (self._buckets - self._first)
        for index in range(start, start + _MOST):
            (found,) = self._words(hashes + 4 * index, 1)
            if found | 1 == wanted | 1:
                yield index
            if found & 1:
                return

    def _by_hash(self, wanted: int) -> Iterator[int]:
        buckets, chains = self._words(self._sysv, 2)
        if not buckets:
            return
        (index,) = self._words(self._sysv + 8 + 4 * (wanted % buckets), 1)
        for _ in range(_MOST):
            if not 0 < index < chains:
                return
            yield index
            (index,) = self._words(self._sysv + 8 + 4 * (buckets + index), 1)

    def _symbol(self, index: int, wanted: bytes) -> Symbol | None:
        name, info, _, section, value, size = self._unpack(_SYMBOL, self._symbols + _SYMBOL.size * index)
        # Objects, too: a probe point's semaphore is data.
        if info & 0xF not in (_FUNCTION, _OBJECT) or not section or not value:
            return None
        if os.pread(self._fd, len(wanted) + 1, self._strings + name) != wanted + b"\0":
            return None
        return Symbol(wanted.decode(), value, size)

    def functions(self) -> dict[str, int]:
        """The address of every defined function, by name. Raises `ElfError`."""
        found: dict[str, int] = {}
        try:
            count = self._count()
            if not count or not self._symbols or self._strings_size > _MOST_NAMES:
                return found
            entries = os.pread(self._fd, count * _SYMBOL.size, self._symbols)
            names = os.pread(self._fd, self._strings_size, self._strings)
            for name, info, _, section, value, _ in _SYMBOL.iter_unpack(entries):
                if info & 0xF == _FUNCTION and section and value:
                    end = names.find(b"\0", name)
                    if end >= 0:
                        found[names[name:end].decode(errors="replace")] = value
        except (struct.error, OverflowError) as error:
            raise ElfError(str(error)) from None
        return found

    def _count(self) -> int:
        """Dynamic symbols: nothing says how many, but the hash tables know the last one."""
        if self._sysv:
            return min(self._words(self._sysv + 4, 1)[0], _MOST_SYMBOLS)
        if not self._gnu:
            return 0
        last = max(self._words(self._chains, self._buckets))
        if last < self._first:
            return int(self._first)
        hashes = self._chains + 4 * (self._buckets - self._first)
        while last < _MOST_SYMBOLS:
            (entry,) = self._words(hashes + 4 * last, 1)
            last += 1
            if entry & 1:
                break
        return last

    def build_id(self) -> str:
        """Hexadecimal; empty where it bears none."""
        for offset, size in self._notes:
            notes, at = os.pread(self._fd, min(size, _MOST), offset), 0
            while at + 12 <= len(notes):
                name, length, kind = struct.unpack_from("<III", notes, at)
                body = at + 12 + (name + 3 & ~3)
                if kind == _NT_BUILD_ID and notes[at + 12 : at + 16] == b"GNU\0" and length <= 64:
                    return notes[body : body + length].hex()
                at = body + (length + 3 & ~3)
        return ""
