"""Every operator against torch on the CPU, through unmodified torch_npu on the emulated device."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.emulator.ops.cases import CASES, Case
from tests.emulator.ops.conftest import Worker

pytestmark = pytest.mark.torch_npu


ROWS = [pytest.param(case, dtype, id=f"{case.name}-{dtype}") for case in CASES for dtype in case.dtypes]


@pytest.mark.parametrize(("case", "dtype"), ROWS)
def test_operator(worker: Worker, case: Case, dtype: str) -> None:
    for layout in case.layouts:
        why = worker.ask(asdict(case) | {"dtype": dtype, "layout": layout})
        assert not why, f"{case.expression} in {layout} {dtype}: {why}"


@st.composite
def broadcasting(draw: st.DrawFn) -> list[tuple[int, ...]]:
    """Shapes that broadcast together, of up to 5 dimensions, with sizes 0 and 1 among them."""
    whole = draw(st.lists(st.sampled_from([1, 1, 2, 3, 5, 17, 0]), max_size=5))
    shapes = []
    for _ in range(3):
        shape = [1 if draw(st.booleans()) else size for size in whole]
        shapes.append(tuple(shape[draw(st.integers(0, len(shape))) :]))
    return shapes


EXPRESSIONS = ["a + b", "a * b * c", "torch.where(a > b, a, c)", "a.maximum(b) + c", "(a < b) | (b < c)"]


@given(
    shapes=broadcasting(),
    expression=st.sampled_from(EXPRESSIONS),
    dtype=st.sampled_from(["float32", "float16", "bfloat16", "int64", "int32"]),
    layout=st.sampled_from(["dense", "transposed", "sliced"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shapes_broadcast(
    worker: Worker, shapes: list[tuple[int, ...]], expression: str, dtype: str, layout: str, seed: int
) -> None:
    request: dict[str, Any] = {
        "name": "broadcast",
        "expression": expression,
        "reference": "",
        "inputs": {n: " ".join(["x", *map(str, s)]) for n, s in zip("abc", shapes, strict=True)},
        "dtype": dtype,
        "layout": layout,
        "ulps": 4.0,
        "seed": seed,
    }
    why = worker.ask(request)
    assert not why, f"{request}: {why}"


@st.composite
def attention(draw: st.DrawFn) -> dict[str, Any]:
    """Sizes, masks and layouts of scaled_dot_product_attention, with grouped heads and single tokens."""
    batch, kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    rows, keys = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    width = 4 * draw(st.integers(1, 12))
    options = ["enable_gqa=True"]
    mask = draw(st.sampled_from(["none", "causal", "mask"]))
    if mask == "causal":
        options.append("is_causal=True")
    if mask == "mask":
        # Every row sees its first key: what a row that sees none gives is not the same everywhere.
        options.append("attn_mask=m | (torch.arange(m.shape[-1], device=m.device) == 0)")
    if draw(st.booleans()):
        options.append("scale=0.3")
    heads = draw(st.sampled_from([1, kv_heads * group]))
    dtype = draw(st.sampled_from(["float32", "float16", "bfloat16"]))
    return {
        "name": "attention",
        "expression": f"F.scaled_dot_product_attention(q, k, v, {', '.join(options)})",
        "reference": "",
        "inputs": {
            "q": f"x {batch} {kv_heads * group} {rows} {width}",
            "k": f"x {batch} {kv_heads} {keys} {width}",
            "v": f"x {batch} {kv_heads} {keys} {width}",
            "m": f"b {draw(st.sampled_from([1, batch]))} {heads} {rows} {keys}",
        },
        "dtype": dtype,
        "layout": draw(st.sampled_from(["dense", "transposed", "sliced"])),
        # Scores reach some tens, and an error in a score is a relative error in its exponential.
        "ulps": 100.0 if dtype == "float32" else 10.0,
        "seed": draw(st.integers(0, 1000)),
    }


@given(case=attention())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_attention(worker: Worker, case: dict[str, Any]) -> None:
    why = worker.ask(case)
    assert not why, f"{case}: {why}"
