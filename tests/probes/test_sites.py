"""Where probes go: as data, and held against the kernel with real functions and real probes."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from probes.placing.attach import Uprobe
from probes.placing.sites import ALL, READS, HitCost, choose

pytest.importorskip("capstone")

_CASES = yaml.safe_load((Path(__file__).parent / "site_cases.yaml").read_text())
_COSTS = {"e": HitCost.EMULATED, "s": HitCost.SINGLE_STEP, "u": HitCost.UNKNOWN}
_ALL = [(machine, case) for machine, cases in _CASES.items() for case in cases]


@pytest.mark.parametrize(
    ("machine", "case"), [pytest.param(m, case, id=f"{m}: {case['name']}") for m, case in _ALL]
)
def test_site(machine: str, case: dict[str, Any]) -> None:
    choice = choose(
        bytes.fromhex(case["code"]),
        machine,
        keep_stack=case.get("keep_stack", False),
        arguments=tuple(case.get("arguments", ALL)),
    )
    assert (choice.offset, choice.cost, choice.stack) == (
        case["offset"],
        _COSTS[case["cost"]],
        case.get("stack", 0),
    ), choice.reason
    assert choice.reason


@given(st.binary(max_size=80), st.sampled_from(["x86_64", "aarch64"]), st.booleans())
def test_any_bytes_have_a_site_within_them(code: bytes, machine: str, keep_stack: bool) -> None:
    choice = choose(code, machine, keep_stack=keep_stack)
    assert 0 <= choice.offset <= max(0, len(code) - 1)
    if keep_stack and choice.cost is HitCost.EMULATED:
        assert choice.stack == 0


SOURCE = r"""
#include <stdarg.h>
#include <stdint.h>
typedef int64_t i;
#define API __attribute__((noinline, noipa, visibility("default")))
#ifndef noipa
#define noipa
#endif
extern i other(i a, i b, i c, i d, i e, i f);
i table[64];
API i plain(i a, i b, i c, i d, i e, i f) { return other(f, e, d, c, b, a) + other(a, b, c, d, e, f) + a; }
API i thunk(i a, i b, i c, i d, i e, i f) { return other(a, b, c, d, e, f); }
API i early(i a, i b, i c, i d, i e, i f) { return a ? other(b, a, c, d, e, f) + 1 : 5; }
API i leaf(i a, i b, i c, i d, i e, i f) { return a + b * c + d * e + f; }
API i loop(i a, i b, i c, i d, i e, i f)
{
    i s = 0;
    do
        s += table[(a + s) & 63] + b;
    while (++s < c + 40);
    return s + d + e + f;
}
API i buffer(i a, i b, i c, i d, i e, i f)
{
    volatile char here[64] = {0};
    here[a & 63] = b + 1;
    return here[c & 63] + other(a, b, c, d, e, f);
}
API i variadic(i a, i b, i c, i d, i e, i f, ...)
{
    va_list list;
    va_start(list, f);
    i s = va_arg(list, int) + other(a, b, c, d, e, f);
    va_end(list);
    return s;
}
API i table_first(i a, i b, i c, i d, i e, i f) { table[3] += 1; return other(table[1], a, b, c, d, e) + f; }
"""
OTHER = "long other(long a, long b, long c, long d, long e, long f) { return a ^ b ^ c ^ d ^ e ^ f; }\n"

COMPILERS = (
    ("gcc", "-O2", "-fcf-protection=full", "-fstack-protector-all"),
    ("clang", "-O2"),
)
PROGRAM = """
#include <uapi/linux/ptrace.h>
struct seen { u64 hits, sum, bad, returned; };
BPF_ARRAY(seen, struct seen, 1);
int entry(struct pt_regs *ctx)
{
    int zero = 0;
    struct seen *s = seen.lookup(&zero);
    if (!s)
        return 0;
    u64 a = PT_REGS_PARM1(ctx);
    s->hits++;
    s->sum += a;
    if (PT_REGS_PARM2(ctx) != a + 1 || PT_REGS_PARM3(ctx) != a + 2 || PT_REGS_PARM4(ctx) != a + 3 ||
        PT_REGS_PARM5(ctx) != a + 4 || PT_REGS_PARM6(ctx) != a + 5)
        s->bad++;
    return 0;
}
int on_return(struct pt_regs *ctx)
{
    int zero = 0;
    struct seen *s = seen.lookup(&zero);
    if (s)
        s->returned++;
    return 0;
}
"""
FUNCTIONS = ("plain", "thunk", "early", "leaf", "loop", "buffer", "variadic", "table_first")
CALLS = 7


def functions(library: Path) -> dict[str, tuple[int, bytes]]:
    """The file offset and code of each function."""
    with library.open("rb") as file:
        elf = ELFFile(file)
        found = {}
        for symbol in elf.get_section_by_name(".dynsym").iter_symbols():
            if symbol.name in FUNCTIONS:
                address = symbol["st_value"]
                segment = next(
                    s
                    for s in elf.iter_segments("PT_LOAD")
                    if s["p_vaddr"] <= address < s["p_vaddr"] + s["p_filesz"]
                )
                offset = address - segment["p_vaddr"] + segment["p_offset"]
                file.seek(offset)
                found[symbol.name] = (offset, file.read(symbol["st_size"]))
        return found


@pytest.mark.ebpf
@pytest.mark.parametrize("compiler", COMPILERS, ids=" ".join)
def test_at_its_site_a_probe_sees_every_call_once_with_its_arguments(
    compiler: tuple[str, ...], tmp_path: Path
) -> None:
    """The kernel's word: each call is seen once, with all six arguments, and the function still works."""
    if os.geteuid() != 0 or shutil.which(compiler[0]) is None or platform.machine() != "x86_64":
        pytest.skip("needs root, x86-64 and a compiler")
    bcc = pytest.importorskip("bcc")
    from probes.placing import headers

    headers.prepare()
    (tmp_path / "f.c").write_text(SOURCE)
    (tmp_path / "other.c").write_text(OTHER)
    name = f"libsites{abs(hash(compiler))}.so"
    subprocess.run(
        [*compiler, "-w", "-shared", "-fPIC", "-o", name, "f.c", "other.c"],
        cwd=tmp_path,
        check=True,
        timeout=60,
    )
    library = ctypes.CDLL(str(tmp_path / name))
    bpf = bcc.BPF(text=PROGRAM, cflags=["-Wno-macro-redefined"])
    programs = {name: bpf.load_func(name.encode(), bcc.BPF.KPROBE).fd for name in ("entry", "on_return")}
    costs = {}
    for function, (offset, code) in functions(tmp_path / name).items():
        call = getattr(library, function)
        call.restype = ctypes.c_int64
        arguments = [[ctypes.c_int64(n) for n in range(a, a + 6)] for a in range(1000, 1000 + CALLS)]
        expected = [call(*six, 3) if function == "variadic" else call(*six) for six in arguments]
        for keep_stack in (False, True):
            choice = choose(code, "x86_64", keep_stack=keep_stack)
            costs[function] = choice.cost
            before = bpf[b"seen"][0]
            path = str(tmp_path / name)
            probes = [Uprobe(programs["entry"], path, offset + choice.offset, os.getpid())]
            if keep_stack:
                probes.append(
                    Uprobe(programs["on_return"], path, offset + choice.offset, os.getpid(), on_return=True)
                )
            got = [call(*six, 3) if function == "variadic" else call(*six) for six in arguments]
            after = bpf[b"seen"][0]
            for probe in probes:
                probe.close()
            assert after.hits - before.hits == CALLS, (function, choice)
            assert after.sum - before.sum == sum(range(1000, 1000 + CALLS)), (function, choice)
            assert after.bad == before.bad, (function, choice)
            assert after.returned - before.returned == (CALLS if keep_stack else 0), (function, choice)
            if function != "table_first":  # which counts its calls
                assert got == expected, (function, choice)
    assert costs["plain"] is HitCost.EMULATED or compiler[0] == "clang"


def test_functions_of_an_aarch64_compiler(tmp_path: Path) -> None:
    """Every choice there is an instruction that the kernel emulates, or the first one."""
    if shutil.which("aarch64-linux-gnu-gcc") is None:
        pytest.skip("no cross compiler (apt-get install gcc-aarch64-linux-gnu)")
    (tmp_path / "f.c").write_text(SOURCE)
    for flags in (["-O2"], ["-O2", "-mbranch-protection=standard"], ["-O0"]):
        (tmp_path / "f.so").unlink(missing_ok=True)
        subprocess.run(
            ["aarch64-linux-gnu-gcc", *flags, "-w", "-shared", "-fPIC", "-nostdlib", "-o", "f.so", "f.c"],
            cwd=tmp_path,
            check=True,
            timeout=60,
        )
        found = functions(tmp_path / "f.so")
        assert len(found) == len(FUNCTIONS)
        choices = {name: choose(code, "aarch64") for name, (_, code) in found.items()}
        for choice in choices.values():
            assert choice.offset == 0 or choice.cost is HitCost.EMULATED, choice
        if "-O0" not in flags:
            assert choices["thunk"].cost is HitCost.EMULATED, choices["thunk"]


def test_the_arguments_that_programs_read() -> None:
    """Against the source: a program reads what it names, itself or by a function that it calls first."""
    folder = Path(__file__).parents[2] / "probes" / "bpf"
    source = "".join(path.read_text() for path in sorted(folder.glob("*.c")))
    bodies = re.findall(r"^PROBE int (on_\w+)\(struct pt_regs ?\* ?ctx\)\s*\{\n(.*?)^\}", source, re.M | re.S)
    read = {name: {int(n) - 1 for n in re.findall(r"PT_REGS_PARM(\d)", body)} for name, body in bodies}
    assert len(read) > 10
    for name, numbers in read.items():
        if not name.endswith(("_return", "_first")) and name != "on_calibrate":
            assert numbers == set(READS[name]) if name in READS else numbers <= set(ALL), name
