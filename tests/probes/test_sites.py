from __future__ import annotations

import pytest

from probes.sites import cheap_offset

pytest.importorskip("capstone")

ENDBR = b"\xf3\x0f\x1e\xfa"
PUSH_RBP, PUSH_R15, RET, NOP = b"\x55", b"\x41\x57", b"\xc3", b"\x90"
SUB_RSP = b"\x48\x83\xec\x18"
MOV_RBP_RSP = b"\x48\x89\xe5"
MOV_RDI_RAX = b"\x48\x89\xc7"
NOP5 = b"\x0f\x1f\x44\x00\x00"
STORE = b"\x48\x89\x5c\x24\x08"  # mov [rsp+8], rbx
JMP = b"\xeb\x10"
XOR_EDX = b"\x31\xd2"


@pytest.mark.parametrize(
    ("code", "offset"),
    [
        (PUSH_RBP + MOV_RBP_RSP, 0),
        (ENDBR + PUSH_RBP, 4),
        (ENDBR + PUSH_R15, 4),
        (SUB_RSP + PUSH_RBP, 4),
        (NOP + RET, 0),
        (ENDBR + NOP5 + RET, 0),  # never on, nor past, a long nop
        (MOV_RDI_RAX + PUSH_RBP, 0),  # an argument is gone by then
        (XOR_EDX + PUSH_RBP, 0),
        (STORE + PUSH_RBP, 0),
        (JMP + PUSH_RBP, 0),
        (RET + PUSH_RBP, 0),
        (b"", 0),
        (b"\xff", 0),
        (b"\x06" * 30, 0),  # no instruction at all
    ],
)
def test_site(code: bytes, offset: int) -> None:
    assert cheap_offset(code, "x86_64")[0] == offset


@pytest.mark.parametrize(
    ("code", "offset"), [(ENDBR + PUSH_RBP, 4), (SUB_RSP + PUSH_RBP, 0), (PUSH_RBP + MOV_RBP_RSP, 0)]
)
def test_sites_of_return_probes(code: bytes, offset: int) -> None:
    assert cheap_offset(code, "x86_64", keep_stack=True)[0] == offset


def test_other_architectures_are_probed_at_the_entry() -> None:
    assert cheap_offset(PUSH_RBP, "aarch64") == (0, "")
