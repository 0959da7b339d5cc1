"""What one hit of a probe costs on this machine, by the instruction under it.

    measure(["push", "endbr64"])  ->  {"push": 1240.0, "endbr64": 5790.0}    ns a hit

The instructions are machine code of our own in a file in memory, called in a loop by this process, with and
without a probe that does nothing. So the figures are the trap's and the kernel's way of getting past the
instruction; what a BPF program does comes on top.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import struct
import time
from collections.abc import Iterable

from probes.placing import capabilities
from probes.placing.attach import TRACE_UPROBE_MULTI, AttachError, Point, place, remove

# name -> (code up to the function's end, offset of the instruction in it). Each is called and returns.
_X86 = {
    "nop": ("90 c3", 0),
    "nop of 2 bytes": ("66 90 c3", 0),
    "nop of 3 bytes": ("0f 1f 00 c3", 0),
    "nop of 4 bytes": ("0f 1f 40 00 c3", 0),
    "push": ("55 5d c3", 0),
    "push r15": ("41 57 41 5f c3", 0),
    "jmp": ("eb 00 c3", 0),
    "jmp rel32": ("e9 00 00 00 00 c3", 0),
    "jcc, taken": ("39 c0 74 00 c3", 2),
    "jcc, not taken": ("39 c0 75 00 c3", 2),
    "call": ("e8 01 00 00 00 c3 c3", 0),
    "endbr64": ("f3 0f 1e fa c3", 0),
    "sub rsp": ("48 83 ec 18 48 83 c4 18 c3", 0),
    "lea": ("48 8d 44 24 08 c3", 0),
    "mov": ("48 89 e0 c3", 0),
    "mov, rip relative": ("48 8b 05 00 00 00 00 c3", 0),
    "push imm": ("6a 00 58 c3", 0),
    "ret": ("c3", 0),
}
_ARM64 = {
    "nop": ("1f2003d5 c0035fd6", 0),
    "bti c": ("5f2403d5 c0035fd6", 0),
    "paciasp": ("3f2303d5 bf2303d5 c0035fd6", 0),
    "adrp": ("09000090 c0035fd6", 0),
    "adr": ("09000010 c0035fd6", 0),
    "b": ("01000014 c0035fd6", 0),
    "cbz": ("290000b4 c0035fd6", 0),
    "tbz": ("29000036 c0035fd6", 0),
    "ldr literal": ("29000058 c0035fd6 1f2003d5 1f2003d5", 0),
    "stp": ("fd7bbfa9 fd7bc1a8 c0035fd6", 0),
    "sub sp": ("ff4300d1 ff430091 c0035fd6", 0),
    "mov": ("e90300aa c0035fd6", 0),
    "ret": ("c0035fd6", 0),
}
INSTRUCTIONS = {"x86_64": _X86, "aarch64": _ARM64}

BODY = 256  # where the called code starts in the file
# Calls the code at BODY as often as the first argument says.
_LOOPS = {
    # push rbx; mov rbx, rdi; L: call BODY; dec rbx; jnz L; pop rbx; ret
    "x86_64": bytes.fromhex("53 4889fb e8")
    + struct.pack("<i", BODY - 9)
    + bytes.fromhex("48ffcb 75f6 5b c3"),
    # stp x29, x30, [sp, -32]!; str x19, [sp, 16]; mov x19, x0; L: bl BODY; subs x19, x19, 1; b.ne L;
    # ldr x19, [sp, 16]; ldp x29, x30, [sp], 32; ret
    "aarch64": bytes.fromhex("fd7bbea9 f30b00f9 f30300aa")
    + struct.pack("<I", 0x94000000 | (BODY - 12) // 4)
    + bytes.fromhex("730600f1 c1ffff54 f30b40f9 fd7bc2a8 c0035fd6"),
}

CHEAP = {"x86_64": "push", "aarch64": "adrp"}
"""An instruction that the kernel emulates."""

DEAR = {"x86_64": "endbr64", "aarch64": "stp"}
"""One that it single-steps."""


class Code:
    """One instruction's code, mapped executable from a file in memory."""

    def __init__(self, machine: str, text: str) -> None:
        code = _LOOPS[machine].ljust(BODY, b"\0") + bytes.fromhex(text)
        self.fd = os.memfd_create("flexnpu-hitcost", os.MFD_CLOEXEC)
        os.write(self.fd, code.ljust(mmap.PAGESIZE, b"\0"))
        # Through libc: Python's mmap gives no address of a mapping that is not writable.
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        address = libc.mmap(
            None, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_PRIVATE, self.fd, 0
        )
        if address in (None, ctypes.c_void_p(-1).value):
            raise AttachError(f"cannot map code to measure: {os.strerror(ctypes.get_errno())}")
        self.address: int = address
        self.call = ctypes.CFUNCTYPE(None, ctypes.c_uint64)(self.address)

    def close(self) -> None:
        """Unmap the code. It must not be called after that."""
        libc = ctypes.CDLL(None)
        libc.munmap(ctypes.c_void_p(self.address), ctypes.c_size_t(mmap.PAGESIZE))
        os.close(self.fd)


def best_of(code: Code, hits: int, rounds: int) -> float:
    """Nanoseconds a hit: the least of `rounds` means over `hits` calls."""
    best = float("inf")
    for _ in range(rounds):
        begun = time.perf_counter_ns()
        code.call(hits)
        best = min(best, (time.perf_counter_ns() - begun) / hits)
    return best


def measure(
    names: Iterable[str] | None = None, *, hits: int = 2000, rounds: int = 5
) -> dict[str, float | None]:
    """ns a hit for the instructions `names` of `INSTRUCTIONS` (default: all of this machine's).

    The best of `rounds`, since whatever else runs here only adds to it. None where the kernel refuses a probe
    on the instruction. Raises `AttachError` when probes cannot be placed at all.
    """
    machine = platform.machine()
    if machine not in INSTRUCTIONS:
        raise AttachError(f"no code to measure on {machine}")
    known = INSTRUCTIONS[machine]
    multi = capabilities.uprobe_multi()
    program = capabilities.load_nothing(TRACE_UPROBE_MULTI if multi else 0)
    if program < 0:
        raise AttachError(f"the kernel loads no BPF program: {os.strerror(-program)}")
    result: dict[str, float | None] = {}
    refused: AttachError | None = None
    try:
        for name in known if names is None else names:
            text, offset = known[name]
            with contextlib.closing(Code(machine, text)) as code:
                plain = best_of(code, hits, rounds)
                path = f"/proc/self/fd/{code.fd}"
                try:
                    probes = place(program, path, [Point(BODY + offset)], os.getpid(), multi=multi)
                except AttachError as error:
                    result[name], refused = None, error
                    continue
                try:
                    result[name] = max(0.0, best_of(code, hits, rounds) - plain)
                finally:
                    remove(probes)
        if refused is not None and all(cost is None for cost in result.values()):
            raise refused
    finally:
        os.close(program)
    return result
