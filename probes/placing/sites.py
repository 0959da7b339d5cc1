"""On which instruction of a function to put a probe.

The kernel emulates some instructions under a probe and single-steps a copy of the others, which costs five
to fifteen times as much. Measured with `probes/placing/cost.py` on virtual machines of Linux 6.18, a hit
with an empty program: 0.62 to 0.82 us for push of a register, nop, jmp, a conditional jump (taken or not)
and call; 9.4 to 12.7 us for endbr64, sub, lea, mov, push of a constant and ret. On others 1.25 and 5.8 us.

So the probe goes on the first instruction that the kernel emulates, among those that every call of the
function executes once, before any argument register changes:

- The search runs in a straight line and ends at the first branch, which may itself be the place: a thunk's
  jmp, or the test that a function begins with.
- What is passed over writes no argument register and no memory but the function's own new stack, and is
  neither a call nor a system call.
- A place to which the function itself jumps back would be hit several times a call, and is none.
- Never a nop of five bytes: Linux 6.18 turns a probe on it into a call, which overwrites the red zone of a
  leaf function.
- Never a call: the kernel keeps the return address, but not a shadow stack's copy of it.
- A return probe needs the return address where the caller left it: on x86-64 the stack pointer has not
  moved, on aarch64 the link register has been neither written nor signed. `keep_stack` asks for that; so do
  programs that read arguments from the stack.

What the kernel emulates, by its own rules (arch/x86/kernel/uprobes.c, arch/arm64/kernel/probes):

    x86-64    push of a register, nop (of one byte and its 0x66 form; all sizes since 6.18), jmp and call
              relative, conditional jumps
    aarch64   b, b.cond, cbz, cbnz, tbz, tbnz, adr, adrp, nop (since 6.13), br, blr, ret; hints such as bti
              and paciasp are single-stepped, as is everything else

The aarch64 rules were read and not measured.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

from probes.placing import store
from probes.placing.plan import Role, Site
from probes.placing.symbols import Definition

REACH = 64
"""Bytes of prologue to look at: within them a compiler saves registers and makes room on the stack."""


ALL = tuple(range(8))
"""The numbers of all arguments that are passed in registers (x86-64 has six of them)."""


class HitCost(StrEnum):
    """How the kernel gets past the instruction under a probe."""

    EMULATED = "emulated"
    SINGLE_STEP = "single-step"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Choice:
    """Where to put a probe in a function."""

    offset: int
    """Bytes from the function's beginning."""
    instruction: str
    """The instruction there, disassembled; empty where that is not known."""
    cost: HitCost
    reason: str
    """Why there, in words."""
    stack: int | None = 0
    """Bytes by which the stack pointer is lower there than at the entry; None where that is not known."""


@dataclass(frozen=True)
class _Step:
    """What matters of one instruction."""

    address: int
    size: int
    text: str
    cheap: bool
    """The kernel emulates it, and it is safe to probe."""
    why: str
    """Why it may be neither probed nor passed; empty if it may be passed."""
    moves: int | None
    """Bytes by which it lowers the stack pointer; None where that is not known."""
    links: bool
    """Whether a return probe behind it would find no return address."""
    banned: bool
    """Never to be probed, not even for want of a better place."""


@lru_cache(maxsize=4096)
def choose(
    code: bytes, machine: str, *, keep_stack: bool = False, arguments: tuple[int, ...] = ALL
) -> Choice:
    """The cheapest safe site in a function of this `code` (its beginning, better all of it), on `machine` as
    `uname -m` calls it.

    `keep_stack`: the site must see the return address, and arguments on the stack, where the caller left
    them. `arguments`: which of its arguments in registers are read there, by their numbers from 0.
    """
    decode = {"x86_64": _x86_step, "aarch64": _arm64_step}.get(machine)
    if decode is None:
        return Choice(
            0, "", HitCost.UNKNOWN, f"the rules of {machine} are not known here: the first instruction"
        )
    pushed = _pushed(code) if machine == "x86_64" else ""
    if pushed:
        return Choice(0, f"push {pushed}", HitCost.EMULATED, "the kernel emulates push")
    kept = KEPT.get(code, machine, keep_stack, arguments)
    if kept is None:
        kept = _disassembled(code, machine, decode, keep_stack=keep_stack, arguments=arguments)
        KEPT.add(kept, code, machine, keep_stack, arguments)
    return kept


def _pushed(code: bytes) -> str:
    """The register that the first instruction pushes, as most functions begin; empty if it does not."""
    low = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")
    if code[:1] == b"\x41" and code[1:2] and 0x50 <= code[1] <= 0x57:
        return f"r{code[1] - 0x50 + 8}"
    return low[code[0] - 0x50] if code and 0x50 <= code[0] <= 0x57 else ""


class Kept:
    """Choices that were made once, by the code that they are for: the disassembler takes 7 MiB and, at its
    import, as long as all the rest of placing probes."""

    _KIND = "sites"
    _MOST = 2048

    def __init__(self) -> None:
        self._choices: dict[str, list[Any]] | None = None
        self._new = False

    @staticmethod
    def _key(code: bytes, machine: str, keep_stack: bool, arguments: tuple[int, ...]) -> str:
        where = f"{machine} {keep_stack:d} {arguments}".encode()
        return store.digest(where + b"\0" + code)

    def _known(self) -> dict[str, list[Any]]:
        if self._choices is None:
            read = store.get(self._KIND, self.rules())
            self._choices = read if isinstance(read, dict) else {}
        return self._choices

    @staticmethod
    def rules() -> str:
        """Changes with the rules by which sites are chosen."""
        return store.digest(Path(__file__).read_bytes())

    def get(self, *what: Any) -> Choice | None:
        """The choice made for this code before; None if there is none."""
        found = self._known().get(self._key(*what))
        try:
            offset, text, cost, reason, moved = found  # type: ignore[misc]
            return Choice(int(offset), str(text), HitCost(cost), str(reason), moved)
        except (TypeError, ValueError):
            return None

    def add(self, choice: Choice, *what: Any) -> None:
        """Keep a choice for this code. One made without a disassembler is not kept."""
        if choice.cost is HitCost.UNKNOWN:
            return  # with a disassembler it may be another
        known = self._known()
        if len(known) >= self._MOST:
            known.clear()
        known[self._key(*what)] = [
            choice.offset,
            choice.instruction,
            choice.cost.value,
            choice.reason,
            choice.stack,
        ]
        self._new = True

    def save(self) -> None:
        """Keep what is new for later programs."""
        if self._new:
            store.put(self._KIND, self.rules(), self._known())
        self._new = False


KEPT = Kept()


def _disassembled(
    code: bytes,
    machine: str,
    decode: Callable[[Any, tuple[int, ...]], _Step],
    *,
    keep_stack: bool,
    arguments: tuple[int, ...],
) -> Choice:
    try:
        capstone: Any = importlib.import_module("capstone")
    except ImportError:
        return Choice(0, "", HitCost.UNKNOWN, "no disassembler (pip install capstone): the first instruction")
    mode = (capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    if machine == "aarch64":
        mode = (capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
    decoder = capstone.Cs(*mode)
    decoder.detail = True
    steps = [decode(instruction, arguments) for instruction in decoder.disasm(code[: REACH + 16], 0)]
    if not steps:
        return Choice(0, "", HitCost.UNKNOWN, "its code cannot be disassembled: the first instruction")
    decoder.detail = False
    return _chosen(steps, _jumps(decoder.disasm_lite(code, 0)), keep_stack)


READS: dict[str, tuple[int, ...]] = {
    "on_create_tensor": (0, 1, 2),
    "on_create_int_array": (0, 1),
    "on_embedding_first": (0, 1, 2, 4),
    "on_embedding_second": (2, 3),
    "on_kernel_launch": (2,),
    "on_graph": (0, 1),
    "on_capture_begin": (0,),
    "on_capture_end": (0, 1),
    "on_sync_stream": (0,),
    "on_sync_device": (),
    "on_sync_event": (0,),
    "on_copy": (3, 4),
    "on_copy_session": (3, 4),
    "on_copy_async": (3, 4, 5),
    "on_operator": (3,),
    "on_client_step": (0,),
    "on_client_operator": (0, 1),
}
"""The arguments that a BPF program reads from registers, by its name; others are taken to read all. A test
holds this against the programs' source."""


def choose_for(site: Site, definition: Definition) -> Choice:
    """The instruction for the probes of `site`: one for its entry and its return, which share a trap."""
    # Attention operators have more arguments than fit in registers.
    keep_stack = site.on_return is not None or site.role is Role.ATTENTION
    return choose(
        definition.code,
        definition.machine,
        keep_stack=keep_stack,
        arguments=READS.get(site.entry, ALL),
    )


def _jumps(instructions: Iterable[tuple[int, int, str, str]]) -> list[tuple[int, int]]:
    """(address, target) of direct jumps within a function, of its start relative to 0."""
    found = []
    for address, _, name, operands in instructions:
        if name.startswith(("j", "b", "loop", "cb", "tb")) and not name.startswith("bl"):
            number = re.search(r"(?:^|#)(0x[0-9a-f]+|[0-9]+)$", operands)
            if number:
                found.append((address, int(number[1], 0)))
    return found


def _chosen(steps: list[_Step], jumps: list[tuple[int, int]], keep_stack: bool) -> Choice:
    ends = "nothing cheaper before"
    moved: int | None = 0
    for step in steps:
        if step.address >= REACH:
            ends = f"nothing cheaper in {REACH} bytes"
            break
        if step.cheap:
            back = next((at for at, to in jumps if at >= step.address and 0 < to <= step.address), None)
            if back is None:
                reason = f"the kernel emulates {step.text.split()[0]}"
                return Choice(step.address, step.text, HitCost.EMULATED, reason, moved)
            ends = f"the function jumps back before {step.text} from {back:#x}"
            break
        if step.why:
            ends += f" {step.text}, which {step.why}"
            break
        if keep_stack and (step.links or step.moves != 0):
            ends += f" {step.text}, which hides the return address"
            break
        moved = None if step.moves is None or moved is None else moved + step.moves
    else:
        ends = "nothing cheaper in it"
    # There is nothing better than the first instruction, unless it must not be probed.
    start = 1 if steps[0].banned and len(steps) > 1 else 0
    chosen = steps[start]
    cost = HitCost.EMULATED if chosen.cheap else HitCost.SINGLE_STEP
    where = "the first instruction" if start == 0 else "behind a nop that must not be probed"
    return Choice(chosen.address, chosen.text, cost, f"{where}: {ends}")


# -- x86-64 -------------------------------------------------------------------------------------------------

_X86_ARGUMENTS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
_X86_FAMILY = {
    part: whole
    for whole, parts in {
        "rdi": "edi di dil",
        "rsi": "esi si sil",
        "rdx": "edx dx dl dh",
        "rcx": "ecx cx cl ch",
        "r8": "r8d r8w r8b",
        "r9": "r9d r9w r9b",
        "rsp": "esp sp spl",
    }.items()
    for part in parts.split()
}
_X86_LEAVES = ("call", "ret", "jmp", "syscall", "sysenter", "int", "int1", "int3", "hlt", "ud2", "iretq")


def _x86_stores(instruction: Any) -> bool:
    name = instruction.mnemonic
    if name.startswith(("rep", "lock", "xchg", "stos", "movs")) and name not in ("movsx", "movsxd"):
        return True
    return name != "push" and any(o.type == 3 and o.access & 2 for o in instruction.operands)  # X86_OP_MEM


def _x86_step(instruction: Any, arguments: tuple[int, ...]) -> _Step:
    name = instruction.mnemonic
    raw = bytes(instruction.bytes)
    # Of the raw bytes, because the kernel decides by them: a prefix may make it single-step.
    body = raw[1:] if raw[0] & 0xF0 == 0x40 else raw
    branch = raw[0] in (0xEB, 0xE9) or 0x70 <= raw[0] <= 0x7F or (raw[0] == 0x0F and 0x80 <= raw[1] <= 0x8F)
    push = 0x50 <= body[0] <= 0x57 and (body is raw or raw[0] in (0x40, 0x41))
    nop = raw in (b"\x90", b"\x66\x90")
    immediate = [operand.imm for operand in instruction.operands if operand.type == 2]  # X86_OP_IMM
    _, written = instruction.regs_access()
    changed = {_X86_FAMILY.get(name, name) for name in map(instruction.reg_name, written)}
    long_nop = name == "nop" and len(raw) == 5
    jumps = branch or name.split()[-1] in _X86_LEAVES or name.startswith(("j", "loop"))
    why = ""
    if jumps:
        why = "may go elsewhere"
    elif long_nop:
        why = "may become a call"
    elif lost := changed.intersection(_X86_ARGUMENTS[n] for n in arguments if n < 6):
        why = f"changes {min(lost)}"
    elif _x86_stores(instruction):
        why = "writes memory"
    moves: int | None = 0
    if name == "push":
        moves = 8
    elif "rsp" in changed:
        moves = int(immediate[0]) if name == "sub" and immediate else None
    return _Step(
        address=int(instruction.address),
        size=len(raw),
        text=f"{name} {instruction.op_str}".strip(),
        cheap=branch or push or nop,
        why=why,
        moves=moves,
        links=False,
        banned=long_nop,
    )


# -- aarch64 ------------------------------------------------------------------------------------------------

_ARM64_ARGUMENTS = tuple(f"x{n}" for n in range(8))
_ARM64_CHEAP = ("b", "cbz", "cbnz", "tbz", "tbnz", "adr", "adrp")
_ARM64_LEAVES = (
    "bl", "blr", "br", "ret", "retaa", "retab", "braa", "brab", "blraa", "blrab", "eret", "svc", "hvc", "smc",
    "brk", "hlt", "udf",
)  # fmt: skip
_SIGNS = ("paciasp", "pacibsp", "paciaz", "pacibz", "pacia", "pacib")


def _whole(register: str) -> str:
    return f"x{register[1:]}" if register[:1] == "w" and register[1:].isdigit() else register


def _arm64_step(instruction: Any, arguments: tuple[int, ...]) -> _Step:
    name = instruction.mnemonic
    _, written = instruction.regs_access()
    changed = {_whole(instruction.reg_name(register)) for register in written}
    branch = name in ("b", "cbz", "cbnz", "tbz", "tbnz") or name.startswith("b.")
    stores = name.startswith(("st", "swp", "cas", "ldadd", "ldclr", "ldeor", "ldset", "dc"))
    on_stack = any(o.type == 3 and instruction.reg_name(o.mem.base) == "sp" for o in instruction.operands)
    immediate = [operand.imm for operand in instruction.operands if operand.type == 2]  # ARM64_OP_IMM
    why = ""
    if branch or name in _ARM64_LEAVES:
        why = "may go elsewhere"
    elif lost := changed.intersection(_ARM64_ARGUMENTS[n] for n in arguments):
        why = f"changes {min(lost)}"
    elif stores and not (on_stack and name in ("stp", "str", "stur")):
        why = "writes memory"
    moves: int | None = 0
    if "sp" in changed:
        moves = None
        if name == "sub" and len(immediate) == 1:
            moves = int(immediate[0])
        elif stores and on_stack and instruction.writeback:
            memory = next(o.mem for o in instruction.operands if o.type == 3)  # ARM64_OP_MEM
            moves = -int(memory.disp) if memory.disp else -int(immediate[0]) if immediate else None
    return _Step(
        address=int(instruction.address),
        size=4,
        text=f"{name} {instruction.op_str}".strip(),
        # What it changes itself does not matter: the probe is hit before it.
        cheap=branch or name in _ARM64_CHEAP or name == "nop",
        why=why,
        moves=moves,
        links=bool(changed & {"x30", "lr"}) or name in _SIGNS,
        banned=False,
    )
