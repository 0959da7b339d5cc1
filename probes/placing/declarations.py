"""What our C headers declare, for ctypes: a layout that C, BPF and Python share stands once, in C.

    told = read(Path("step_record.h"), Path("records.h"))
    told.struct("record")        ->  a ctypes.Structure of that layout
    told.constant("TARGETS")     ->  256
    told.enumerators("hits")     ->  the names of an enum's members, in order

It knows the C that those headers are written in: structures of integers, characters, arrays, pointers and
other structures; enums; and macros that are a number or another constant.
"""

from __future__ import annotations

import ctypes
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import flexnpu

_TYPES: dict[str, Any] = {
    "char": ctypes.c_char,
    "int": ctypes.c_int,
    **{f"{sign}{bits}": getattr(ctypes, f"c_{kind}{bits}")
       for sign, kind in (("u", "uint"), ("s", "int")) for bits in (8, 16, 32, 64)},
    **{f"{kind}{bits}_t": getattr(ctypes, f"c_{kind}{bits}")
       for kind in ("uint", "int") for bits in (8, 16, 32, 64)},
}  # fmt: skip

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_DEFINE = re.compile(r"^#define (\w+) +([\w()]+) *$", re.MULTILINE)
_ENUM = re.compile(r"\benum\s*(\w*)\s*\{(.*?)\}", re.DOTALL)
_STRUCT = re.compile(r"\bstruct (\w+) \{([^{}]*)\};")
_MEMBER = re.compile(r"^(struct \w+|\w+)\s+(.*)$", re.DOTALL)
_DECLARATOR = re.compile(r"^(\*?)\s*(\w+)((?:\[\w+\])*)$")


class DeclarationError(ValueError):
    """A header declares something that is not understood here; the message says what."""


class Declarations:
    """Of some headers' text; a later one may use what an earlier one declares."""

    def __init__(self, text: str) -> None:
        text = re.sub(r"\*\s*", " *", _COMMENT.sub("", text))
        self._constants: dict[str, int] = {}
        self._enums: dict[str, tuple[str, ...]] = {}
        self._structs: dict[str, Any] = {}
        for name, body in _ENUM.findall(text):
            self._enum(name, body)
        self._macros = dict(_DEFINE.findall(text))
        self._bodies = dict(_STRUCT.findall(text))

    def _enum(self, name: str, body: str) -> None:
        value = 0
        names = []
        for entry in filter(None, (one.strip() for one in body.split(","))):
            member, _, given = (part.strip() for part in entry.partition("="))
            value = int(given, 0) if given else value
            self._constants[member] = value
            names.append(member)
            value += 1
        self._enums[name] = tuple(names)

    def constant(self, name: str) -> int:
        """The value of a macro or an enum's member. Raises `DeclarationError`."""
        if name in self._constants:
            return self._constants[name]
        text = self._macros.get(name, name)
        if text == name and not text.isdigit():
            raise DeclarationError(f"{name} is declared nowhere")
        try:
            return int(text, 0)
        except ValueError:
            return self.constant(text)

    def enumerators(self, name: str) -> tuple[str, ...]:
        """The names of the members of enum `name`."""
        return self._enums[name]

    def struct(self, name: str) -> Any:
        """``struct name`` as a ctypes.Structure. Raises `DeclarationError`."""
        if name not in self._structs:
            if name not in self._bodies:
                raise DeclarationError(f"struct {name} is declared nowhere")
            fields: list[tuple[str, Any]] = []
            for statement in filter(None, (one.strip() for one in self._bodies[name].split(";"))):
                fields += self._members(statement)
            self._structs[name] = type(name, (ctypes.Structure,), {"_fields_": tuple(fields)})
        return self._structs[name]

    def _members(self, statement: str) -> list[tuple[str, Any]]:
        found = _MEMBER.match(statement)
        if found is None:
            raise DeclarationError(f"not understood: {statement}")
        kind, declarators = found.groups()
        base = self.struct(kind.split()[1]) if kind.startswith("struct ") else _TYPES.get(kind)
        members = []
        for declarator in declarators.split(","):
            parts = _DECLARATOR.match(declarator.strip())
            if parts is None or base is None:
                raise DeclarationError(f"not understood: {statement}")
            pointer, name, sizes = parts.groups()
            member: Any = ctypes.c_uint64 if pointer else base
            for size in reversed(re.findall(r"\w+", sizes)):
                member = member * self.constant(size)
            members.append((name, member))
        return members


@lru_cache(maxsize=8)
def read(*paths: Path) -> Declarations:
    """Of these headers together. Raises OSError, `DeclarationError`."""
    return Declarations("\n".join(path.read_text() for path in paths))


def of_steps() -> Declarations:
    """What the step programs and FlexNPU's client tell, and the programs' maps hold."""
    probes = Path(__file__).parents[1]
    return read(
        Path(flexnpu.__file__).parent / "wire" / "step_record.h",
        probes / "bpf" / "layout.h",
        probes / "bpf" / "records.h",
    )
