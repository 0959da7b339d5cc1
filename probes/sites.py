"""On which instruction of a function to put a probe.

The kernel emulates some instructions under a probe and single-steps the others out of line, which costs five
to twelve times as much (measured on virtual machines: 0.8 to 1.3 us for a push or a one-byte nop, 5.8 to
9.6 us for endbr64, sub, mov or ret). So the probe goes on the first instruction of the prologue that is
emulated, when everything before it leaves the argument registers alone and cannot branch. Never on a nop of
more than one byte: Linux 6.18 was seen to overwrite a leaf function's red zone there.

On aarch64 the kernel emulates branches and address computations, which no prologue begins with; there, and
where capstone is missing, the probe stays on the first instruction.
"""

from __future__ import annotations

import importlib
from typing import Any

_LIMIT = 24
"""Bytes of prologue to look at: within them a compiler saves registers and makes room on the stack."""

_ARGUMENTS = {"rdi", "rsi", "rdx", "rcx", "r8", "r9", "edi", "esi", "edx", "ecx", "r8d", "r9d"}
_HARMLESS = {"endbr64", "push", "sub", "mov", "lea", "xor"}
"""Mnemonics that may be passed over, as long as they write no argument register and no memory."""


def cheap_offset(code: bytes, machine: str, *, keep_stack: bool = False) -> tuple[int, str]:
    """(offset in bytes, the instruction there) of the cheapest safe site in a function of this `code`.

    `keep_stack`: the return address must still be on top of the stack there, as a return probe needs it.
    """
    if machine != "x86_64":
        return 0, ""
    try:
        capstone: Any = importlib.import_module("capstone")
    except ImportError:
        return 0, ""
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    decoder.detail = True
    first = ""
    for instruction in decoder.disasm(code[:_LIMIT], 0):
        text = f"{instruction.mnemonic} {instruction.op_str}".strip()
        first = first or text
        if _emulated(instruction):
            return int(instruction.address), text
        if not _passable(instruction) or (keep_stack and instruction.mnemonic != "endbr64"):
            break
    return 0, first


def _emulated(instruction: Any) -> bool:
    """Whether Linux emulates it under a probe without single-stepping: push of a register, or a one-byte
    nop."""
    if instruction.mnemonic == "push":
        return bool(instruction.operands and instruction.operands[0].type == 1)  # X86_OP_REG
    return bool(instruction.mnemonic == "nop" and instruction.size == 1)


def _passable(instruction: Any) -> bool:
    if instruction.mnemonic not in _HARMLESS:
        return False
    if instruction.mnemonic == "endbr64":
        return True
    target = instruction.operands[0]
    if target.type != 1:  # writes memory: spills may alias nothing we read, but stay on the safe side
        return False
    return instruction.reg_name(target.reg) not in _ARGUMENTS
