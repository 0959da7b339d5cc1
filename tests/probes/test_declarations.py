"""Reading our C headers, and what the plan reads from the API table."""

from __future__ import annotations

import ctypes

import pytest

from probes.placing import declarations, plan
from probes.placing.declarations import DeclarationError, Declarations

TEXT = """
#define FEW 3
#define SOME FEW  // another name
enum colour { RED = 1, GREEN, BLUE = 7, /* no */ VIOLET };
struct inner {
    u8 a, b;
    char *name;
    s64 values[FEW];
};
struct outer { struct inner first; struct inner* other; u32 table[SOME][2], last; };
"""


def test_structures_enums_and_constants() -> None:
    told = Declarations(TEXT)
    assert [told.constant(name) for name in ("FEW", "SOME", "RED", "GREEN", "BLUE", "VIOLET")] == [
        3,
        3,
        1,
        2,
        7,
        8,
    ]
    assert told.enumerators("colour") == ("RED", "GREEN", "BLUE", "VIOLET")
    inner, outer = told.struct("inner"), told.struct("outer")
    assert ctypes.sizeof(inner) == 40
    assert (inner.name.offset, inner.values.offset) == (8, 16)
    assert (outer.other.offset, outer.table.offset, outer.last.offset) == (40, 48, 72)


@pytest.mark.parametrize(
    "text", ["struct a { f32 x; };", "struct a { u8 x[NOWHERE]; };", "struct a { struct b x; };"]
)
def test_what_is_not_understood_is_an_error(text: str) -> None:
    with pytest.raises(DeclarationError):
        Declarations(text).struct("a")


def test_the_enums_that_python_has_names_for() -> None:
    told = declarations.of_steps()
    assert len(told.enumerators("flexnpu_step_end")) == 5
    assert plan.HITS[:2] == ("embedding_first", "embedding_return")
    assert set(plan.HIT_OF.values()) <= set(plan.HITS)


def test_attention_arguments_come_from_the_table() -> None:
    table = "op\targuments\tneeded_by\naclnnIncreFlashAttentionV2\tTLLTTITTTTTidiisi\tx\naclnnAdd\tTTst\tx\n"
    # A double travels in another register, so what follows it has a lower number.
    assert plan.attention_arguments(table) == (("aclnnIncreFlashAttentionV2", 0, 5, 14),)
    cookies = {site.symbol: site.cookie for site in plan.SITES if site.role is plan.Role.ATTENTION}
    assert cookies["aclnnFusedInferAttentionScoreV3GetWorkspaceSize"] == 5 | 6 << 8 | 30 << 16
    assert cookies["aclnnFlashAttentionVarLenScoreGetWorkspaceSize"] == 8 | 9 << 8 | 13 << 16
    assert cookies["aclnnPromptFlashAttentionGetWorkspaceSize"] == 5 | 9 << 16
    assert len(cookies) > 15
    assert not any("Grad" in name or "GetMax" in name for name in cookies)
