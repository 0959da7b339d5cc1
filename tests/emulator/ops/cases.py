"""Operators to compare with torch on the CPU, as data.

A row is an expression over named inputs; it is evaluated once on the CPU, with floating-point inputs in
float64, and then on the device in every type and layout of the row. An input is ``kind size size ...``:

    x     values of the row's type: floats around 0, small integers, or truth values
    pos   positive values of the row's type          unit   in (-1, 1)
    f32   float32, whatever the row's type           i64    small int64
    idxN  int64 in [0, N)                            sidxN  int64 in [-N, N)
    b     bool                                       permN  the numbers below N, shuffled (of N elements)

Add a row to add a test; nothing else names the operator.
"""

from __future__ import annotations

from dataclasses import dataclass, field

NARROW = ("float32", "float16", "bfloat16")
INTS = ("int64", "int32")
ALL = (*NARROW, *INTS)


@dataclass(frozen=True)
class Case:
    """One row. ``reference``: another expression for the CPU, where torch_npu's function is not in torch."""

    name: str
    expression: str
    inputs: dict[str, str]
    dtypes: tuple[str, ...] = NARROW
    reference: str = ""
    #: Errors allowed, in units of the type's rounding error.
    ulps: float = 1.0
    layouts: tuple[str, ...] = ("dense", "transposed", "sliced")
    seed: int = field(default=0)


def case(name: str, expression: str, dtypes: tuple[str, ...] = NARROW, /, **options: object) -> Case:
    fields = {key: options.pop(key) for key in ("reference", "ulps", "layouts", "seed") if key in options}
    return Case(name, expression, {k: str(v) for k, v in options.items()}, dtypes, **fields)  # type: ignore[arg-type]


UNARY = (
    [
        case(name, f"torch.{name}(a)", a="x 3 17")
        for name in (
            "abs",
            "neg",
            "sin",
            "cos",
            "tanh",
            "sigmoid",
            "exp",
            "floor",
            "ceil",
            "trunc",
            "round",
            "sign",
            "erf",
            "expm1",
            "square",
            "relu",
            "atan",
            "sinh",
            "cosh",
            "frac",
        )
    ]
    + [
        case(name, f"torch.{name}(a)", a="pos 3 17")
        for name in ("log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal")
    ]
    + [case(name, f"torch.{name}(a)", a="unit 3 17", ulps=2) for name in ("asin", "acos", "atanh", "erfinv")]
)

ACTIVATIONS = [
    case("silu", "F.silu(a)", a="x 5 33"),
    case("gelu erf", "torch_npu.npu_gelu(a)", a="x 5 33", ulps=3, reference="F.gelu(a)"),
    case(
        "gelu tanh",
        "torch_npu.npu_gelu(a, approximate='tanh')",
        a="x 5 33",
        ulps=3,
        reference="F.gelu(a, approximate='tanh')",
    ),
    # torch_npu calls the NPU's own GELU, the tanh form, whatever the argument says.
    case("gelu", "F.gelu(a)", a="x 5 33", ulps=3, reference="F.gelu(a, approximate='tanh')"),
    case("softplus", "F.softplus(a)", a="x 5 33"),
    case("leaky relu", "F.leaky_relu(a, 0.1)", a="x 5 33"),
    case("hardtanh", "F.hardtanh(a)", a="x 5 33"),
    case("mish", "F.mish(a)", a="x 5 33", ulps=3),
    case("swiglu", "torch_npu.npu_swiglu(a)", a="x 3 4 16", reference="F.silu(a[..., :8]) * a[..., 8:]"),
    case(
        "rms norm",
        "torch_npu.npu_rms_norm(a, g, 1e-6)[0]",
        a="x 2 5 64",
        g="x 64",
        reference="a * torch.rsqrt(a.pow(2).mean(-1, keepdim=True) + 1e-6) * g",
        ulps=3,
    ),
    case("layer norm", "F.layer_norm(a, (64,), g, b, 1e-5)", a="x 2 5 64", g="x 64", b="x 64", ulps=4),
    case(
        "rotary",
        "torch_npu.npu_rotary_mul(a, c, s)",
        a="x 2 3 5 16",
        c="x 1 1 5 16",
        s="x 1 1 5 16",
        reference="a * c + torch.cat((-a[..., 8:], a[..., :8]), -1) * s",
        ulps=2,
    ),
]

BINARY = [
    case("add", "a + b", (*ALL, "uint8"), a="x 3 1 5", b="x 4 1"),
    case("add alpha", "torch.add(a, b, alpha=3)", ALL, a="x 3 5", b="x 3 5"),
    case("add scalar", "a + 2", ALL, a="x 3 5"),
    case("add float to int", "a + 0.5", INTS, a="x 3 5"),
    case("add mixed", "a + b", a="x 3 5", b="i64 5"),
    case("add in place", "a.add_(b)", ALL, a="x 3 5", b="x 5"),
    case("sub", "a - b", ALL, a="x 2 3 4", b="x 3 1"),
    case("sub scalar", "a - 7", ALL, a="x 3 5"),
    case("rsub", "7 - a", ALL, a="x 3 5"),
    case("mul", "a * b", ALL, a="x 1 37 16", b="x 1 37 1"),
    case("mul scalar", "a * 2.5", ALL, a="x 3 5"),
    case("mul in place", "a.mul_(b)", ALL, a="x 3 5", b="x 5"),
    case("div", "a / b", ALL, a="x 3 5", b="pos 5"),
    case("div scalar", "a / 4", ALL, a="x 3 5"),
    case("div floor", "torch.div(a, b, rounding_mode='floor')", INTS, a="x 3 50", b="pos 50"),
    case("div trunc", "torch.div(a, b, rounding_mode='trunc')", INTS, a="x 3 50", b="pos 50"),
    case("floor divide scalar", "a // 3", INTS, a="x 3 50"),
    case("remainder", "torch.remainder(a, 3)", ("float32", *INTS), a="x 3 50"),
    case("fmod", "torch.fmod(a, 3)", ("float32", *INTS), a="x 3 50"),
    case("pow 2", "a.pow(2)", ALL, a="x 3 17"),
    case("pow 3", "a.pow(3)", ALL, a="x 3 17"),
    case("pow fraction", "a.pow(0.3)", a="pos 3 17", ulps=2),
    case("pow tensor", "torch.pow(a, b)", a="pos 3 17", b="unit 17", ulps=2),
    case("scalar pow", "torch.pow(2.0, a)", a="x 3 17", ulps=2),
    case("maximum", "torch.maximum(a, b)", ALL, a="x 3 5", b="x 5"),
    case("minimum", "torch.minimum(a, b)", ALL, a="x 3 5", b="x 5"),
    case("clamp", "a.clamp(-1, 2)", ALL, a="x 3 17"),
    case("clamp min", "a.clamp(min=0)", ALL, a="x 3 17"),
    case("clamp tensors", "torch.clamp(a, l, h)", a="x 3 17", l="unit 17", h="pos 3 1"),
    case("clamp by a lower tensor", "torch.clamp(a, min=l)", ALL, a="x 3 17", l="x 17"),
    case("clamp by an upper tensor", "torch.clamp(a, max=h)", ALL, a="x 3 17", h="x 3 1"),
    case("clamp by NaN", "torch.clamp(a, l / 0 * 0, h)", a="x 3 17", l="unit 17", h="pos 3 1"),
    case("addcmul", "torch.addcmul(a, b, c, value=0.5)", a="x 3 5", b="x 5", c="x 3 1", ulps=2),
    case("addcdiv", "torch.addcdiv(a, b, c, value=0.5)", a="x 3 5", b="x 5", c="pos 3 1", ulps=2),
    case("lerp", "torch.lerp(a, b, 0.3)", a="x 3 5", b="x 3 5", ulps=2),
    case("atan2", "torch.atan2(a, b)", ("float32",), a="x 3 5", b="x 3 5"),
]

LOGIC = (
    [
        case(f"{name}", f"torch.{name}(a, b)", ALL, a="x 4 9", b="x 9")
        for name in ("eq", "ne", "lt", "le", "gt", "ge")
    ]
    + [
        case(f"{name} scalar", f"torch.{name}(a, 1)", ALL, a="x 4 9")
        for name in ("eq", "ne", "lt", "le", "gt", "ge")
    ]
    + [
        case(f"{name}", f"torch.{name}(a, b)", (*INTS, "bool"), a="x 4 9", b="x 9")
        for name in ("logical_and", "logical_or", "logical_xor", "bitwise_and", "bitwise_or", "bitwise_xor")
    ]
    + [
        case("logical not", "torch.logical_not(a)", (*ALL, "bool"), a="x 4 9"),
        case("bitwise not", "~a", (*INTS, "bool"), a="x 4 9"),
        case("any", "a.any()", ("bool",), a="x 4 9"),
        case("any of dim", "(a > 2).any(-1)", ALL, a="x 4 9"),
        case("all", "a.all()", ("bool",), a="x 4 9"),
        case("all of dim", "(a > -2).all(0)", ALL, a="x 4 9"),
        case("where", "torch.where(c, a, b)", ALL, c="b 4 9", a="x 9", b="x 4 1"),
        case("where scalar", "torch.where(c, a, 0.0)", c="b 4 9", a="x 9"),
        case("masked fill", "a.masked_fill(m, -5)", ALL, a="x 2 4 9", m="b 4 9"),
        case(
            "masked fill minimum", "a.masked_fill(m, torch.finfo(torch.float16).min)", a="x 2 4 9", m="b 4 9"
        ),
        case("isfinite", "torch.isfinite(a / 0)", a="x 4 9"),
        case("isin", "torch.isin(a, b)", INTS, a="x 4 9", b="x 3"),
        case("isin scalar", "torch.isin(a, 3)", INTS, a="x 4 9"),
    ]
)

COPIES = [
    case(f"to {target}", f"a.to(torch.{target})", (*ALL, "bool", "uint8"), a="x 3 17")
    for target in ("float32", "float16", "bfloat16", "int64", "int32", "bool", "uint8")
] + [
    case("copy broadcast", "torch.zeros(4, 3, 5, dtype=a.dtype, device=a.device).copy_(a)", ALL, a="x 3 1"),
    case("transpose", "a.transpose(1, 2).contiguous()", (*ALL, "bool"), a="x 2 3 4 5"),
    case("permute", "a.permute(3, 0, 2, 1).contiguous()", ALL, a="x 2 3 4 5"),
    case("expand", "a.expand(4, 3, 5).contiguous()", ALL, a="x 3 1"),
    case("repeat", "a.repeat(2, 3, 1)", ALL, a="x 3 5"),
    case("repeat interleave", "a.repeat_interleave(3, dim=1)", a="x 2 4 5"),
    case("repeat each along a dimension", "a.repeat_interleave(i, dim=1)", ALL, a="x 2 4 5", i="idx4 4"),
    case("repeat each", "a.repeat_interleave(i)", ALL, a="x 20", i="idx4 20"),
    case("repeat all by a tensor", "a.repeat_interleave(i + 2, dim=0)", ALL, a="x 4 5", i="idx2 1"),
    case("repeat kv", "a[:, :, None].expand(2, 3, 2, 4, 5).reshape(2, 6, 4, 5)", a="x 2 3 4 5"),
    case("cat", "torch.cat((a, b, a), 1)", (*ALL, "bool"), a="x 2 3 5", b="x 2 1 5"),
    case("cat last", "torch.cat((-a[..., 4:], a[..., :4]), -1)", a="x 2 3 8"),
    case("cat empty", "torch.cat((torch.empty(0, dtype=a.dtype, device=a.device), a), -2)", a="x 2 3 8"),
    case("stack", "torch.stack((a, b), 1)", ALL, a="x 2 5", b="x 2 5"),
    case("split", "torch.split(a, 3, dim=1)", a="x 2 7"),
    case("chunk", "a.chunk(2, -1)", a="x 2 8"),
    case("flip", "a.flip((0, 2))", ALL, a="x 2 3 5"),
    case("flip of no dimension", "a.flip(())", ALL, a="x 2 3 5"),
    case("to complex", "torch.view_as_real(a.to(torch.complex64))", (*ALL, "bool"), a="x 3 5"),
    case("roll", "a.roll(2, 1)", ALL, a="x 2 7"),
    case("roll over several dimensions", "a.roll((-3, 9, 1), (1, 2, 0))", ALL, a="x 2 8 7 4"),
    case("roll over one dimension twice", "a.roll((3, -5), (1, 1))", a="x 3 7"),
    case("roll of the flat tensor", "a.roll(-5)", ALL, a="x 2 3 7"),
    case("roll of nothing", "a.roll((1, 2), (0, 1))", a="x 0 7"),
    case("triu", "a.triu(1)", ALL, a="x 2 5 7"),
    case("tril", "a.tril(-1)", ALL, a="x 2 7 5"),
    case("tril all kept", "a.tril(9)", a="x 5 7"),
    case("pad", "F.pad(a, (1, 2, 0, 3), value=2)", a="x 2 3 4"),
    case("pad negative", "F.pad(a, (-1, 2), value=2)", a="x 2 3 4"),
    case("arange", "torch.arange(3, 30, 4, device=a.device) + a", ("int64",), a="x 7"),
    case("arange floats", "torch.arange(0, 1, 0.125, device=a.device)", ("float32",), a="x 1"),
    case("linspace", "torch.linspace(-1, 1, 7, device=a.device)", ("float32",), a="x 1"),
    case("full", "torch.full((3, 4), 2.5, dtype=a.dtype, device=a.device)", a="x 1"),
    case("fill", "a.fill_(3)", ALL, a="x 3 5"),
    case("zero", "a.zero_()", ALL, a="x 3 5"),
    case("zero much", "a.fill_(3).zero_()", ALL, a="x 700001", layouts=("dense",)),
    case("fill much", "a.fill_(3)", ALL, a="x 700001", layouts=("dense",)),
    case("ones", "torch.ones_like(a)", ALL, a="x 3 5"),
    case("eye", "torch.eye(3, 5, device=a.device)", ("float32",), a="x 1"),
    case("nan to num", "torch.nan_to_num(a / 0, nan=1.0, posinf=2.0, neginf=3.0)", ("float32",), a="x 3 5"),
]

PRODUCTS = [
    case("matmul", "a @ b", a="x 7 33", b="x 33 19", ulps=8),
    case("matmul int", "a @ b", ("int32",), a="x 7 33", b="x 33 19"),
    case("linear", "F.linear(a, w)", a="x 2 5 64", w="x 48 64", ulps=8),
    case("linear bias", "F.linear(a, w, b)", a="x 2 5 64", w="x 48 64", b="x 48", ulps=8),
    case("linear one token", "F.linear(a, w, b)", a="x 1 1 64", w="x 48 64", b="x 48", ulps=8),
    case("linear wide", "F.linear(a, w)", a="x 3 1500", w="x 33 1500", ulps=40),
    case("bmm", "torch.bmm(a, b)", a="x 3 5 16", b="x 3 16 9", ulps=8),
    case("matmul heads", "a @ b.transpose(-1, -2)", a="x 2 4 5 16", b="x 2 4 9 16", ulps=8),
    case("matmul broadcast", "a @ b", a="x 2 1 5 16", b="x 3 16 9", ulps=8),
    case("matmul shared", "a @ b", a="x 2 3 5 16", b="x 16 9", ulps=8),
    case("vector matrix", "a @ b", a="x 16", b="x 16 9", ulps=8),
    case("matrix vector", "a @ b", a="x 5 16", b="x 16", ulps=8),
    case("dot", "a @ b", a="x 16", b="x 16", ulps=8),
    case("outer", "torch.outer(a, b)", a="x 5", b="x 7"),
    case("addmm", "torch.addmm(c, a, b, beta=0.5, alpha=2)", c="x 9", a="x 5 16", b="x 16 9", ulps=8),
    case(
        "baddbmm",
        "torch.baddbmm(c, a, b, beta=0.5, alpha=2)",
        c="x 3 5 9",
        a="x 3 5 16",
        b="x 3 16 9",
        ulps=8,
    ),
    case("empty inner", "a @ b", ("float32",), a="x 3 0", b="x 0 4", layouts=("dense",)),
]

REDUCTIONS = [
    case("sum", "a.sum()", ALL, a="x 3 5 7", ulps=4),
    case("sum last", "a.sum(-1)", ALL, a="x 3 5 70", ulps=4),
    case("sum first", "a.sum(0)", ALL, a="x 3 5 70", ulps=4),
    case("sum two", "a.sum((0, 2), keepdim=True)", ALL, a="x 3 5 70", ulps=4),
    case("sum bool", "a.sum(-1)", ("bool",), a="x 3 70"),
    case("mean last", "a.mean(-1, keepdim=True)", a="x 2 37 64", ulps=4),
    case("mean", "a.mean()", a="x 2 37 64", ulps=20),
    case("prod", "a.prod(-1)", ("float32",), a="x 3 9", ulps=4),
    case("amax", "a.amax(-1)", ALL, a="x 3 70"),
    case("amin", "a.amin((0, 2))", ALL, a="x 3 5 7"),
    case("max", "a.max()", ALL, a="x 3 70"),
    case("min", "a.min()", ALL, a="x 3 70"),
    case("max dim", "a.max(-1)", NARROW, a="x 3 70"),
    case("min dim", "a.min(0, keepdim=True)", ("float32",), a="x 3 70"),
    case("argmax", "a.argmax(-1)", ("float32", *INTS), a="x 3 70"),
    case("argmax first of equals", "(a > 0).to(torch.int32).argmax(-1)", ("float32",), a="x 3 70"),
    case("argmax flat", "a.argmax()", ("float32",), a="x 3 70"),
    case("argmin", "a.argmin(0)", ("float32",), a="x 30 7"),
    case("norm", "torch.linalg.vector_norm(a, dim=-1)", a="x 3 70", ulps=4),
    case("norm 1", "torch.linalg.vector_norm(a, 1, dim=(0, 1))", a="x 3 70", ulps=4),
    case("var", "a.var(-1)", a="x 3 70", ulps=8),
    case("std", "a.std(0, correction=0)", a="x 30 7", ulps=8),
    case("logsumexp", "torch.logsumexp(a, -1)", a="x 3 70", ulps=4),
    case("softmax", "torch.softmax(a, -1)", a="x 3 5 70", ulps=4),
    case("softmax middle", "torch.softmax(a, 1)", a="x 3 50 7", ulps=4),
    case("softmax wider", "torch.softmax(a, -1, dtype=torch.float32)", a="x 3 70", ulps=4),
    case("log softmax", "torch.log_softmax(a, -1)", a="x 3 70", ulps=4),
    case("cumsum", "a.cumsum(-1)", ALL, a="x 3 40", ulps=8),
    case("cumsum first", "a.cumsum(0)", INTS, a="x 40 3"),
    case("cumsum bool", "a.cumsum(-1)", ("bool",), a="x 3 40"),
    case("cumprod", "a.cumprod(0)", ("float32",), a="unit 6 3", ulps=8),
]

ORDER = [
    case("sort", "a.sort(-1)[0]", ALL, a="x 3 40"),
    case("sort descending", "a.sort(dim=-1, descending=True, stable=True)", ("float32", *INTS), a="x 3 40"),
    case("sort first", "a.sort(dim=0, stable=True)", ("float32",), a="x 40 3"),
    case("argsort", "a.argsort(-1)", ("float32",), a="x 3 40"),
    case("topk", "a.topk(5, -1)", ("float32",), a="x 3 40"),
    case("topk smallest", "a.topk(5, -1, largest=False)[0]", a="x 3 40"),
    case("topk values", "a.topk(7, -1)[0]", ALL, a="x 3 40"),
    case("searchsorted", "torch.searchsorted(a.sort(-1)[0], b)", ("float32",), a="x 3 40", b="x 3 5"),
    case(
        "searchsorted by a sorter",
        "torch.searchsorted(a, b, sorter=a.argsort(-1), right=True)",
        ("float32",),
        **{"a": "x 3 40", "b": "x 3 5"},
    ),
    case(
        "searchsorted by one sorter",
        "torch.searchsorted(a, b, sorter=a.argsort(-1))",
        ("float32",),
        **{"a": "x 40", "b": "x 3 5"},
    ),
]

INDEXING = [
    case("embedding", "F.embedding(i, w)", i="idx11 2 37", w="x 11 16"),
    case("index select", "a.index_select(1, i)", (*ALL, "bool"), a="x 3 7 5", i="idx7 9"),
    case("gather", "a.gather(-1, i)", ALL, a="x 3 11", i="idx11 3 4"),
    case("gather first", "a.gather(0, i)", ALL, a="x 11 3", i="idx11 4 3"),
    case("gather from one number", "a.gather(0, i)", ALL, a="x", i="idx1 5"),
    case("gather one number", "a.gather(0, i)", ALL, a="x", i="idx1"),
    case("gather nothing", "a.gather(0, i)", ALL, a="x 5", i="idx5 2 0"),
    case("take along", "torch.take_along_dim(a, i, 1)", a="x 3 11", i="idx11 3 4"),
    case("index", "a[i]", ALL, a="x 11 3 5", i="sidx11 4"),
    case("index matrix", "a[i]", ALL, a="x 11 3", i="idx11 4 2"),
    case("index two", "a[i, j]", ALL, a="x 11 7 5", i="idx11 4", j="idx7 4"),
    case("index second", "a[:, i]", ALL, a="x 3 7 5", i="sidx7 4 2"),
    case("index apart", "a[i, :, j]", ALL, a="x 11 3 7", i="idx11 4 1", j="idx7 6"),
    case("index mask", "a[m]", ("float32", "int64"), a="x 4 9", m="b 4 9"),
    case("index rows by mask", "a[m]", ("float32",), a="x 9 4", m="b 9"),
    case("masked select", "torch.masked_select(a, m)", ("float32",), a="x 4 9", m="b 9"),
    case(
        "unique consecutive",
        "torch.unique_consecutive(i, return_inverse=True, return_counts=True)",
        ("float32",),
        i="idx3 40",
    ),
    case(
        "unique consecutive counts",
        "torch.unique_consecutive(i, return_counts=True)",
        ("int32",),
        i="idx2 40",
    ),
    case("unique consecutive rows", "torch.unique_consecutive(a)", ("int64",), a="x 6 7"),
    case("nonzero", "m.nonzero()", ("float32",), m="b 4 9"),
    case("nonzero of one number", "(m | True).nonzero()", ("float32",), m="b"),
    case("nonzero of zero", "(m & False).nonzero()", ("float32",), m="b"),
    case("argwhere of one number", "torch.argwhere(m | True)", ("float32",), m="b"),
    case("index put", "a.index_put_((i,), b)", ALL, a="x 11 3", i="perm11 11", b="x 11 3"),
    case("index put scalar", "a.index_put_((i,), b)", ALL, a="x 11 3", i="idx11 4", b="x"),
    case("index put nowhere", "a.index_put_((m & False,), b)", ALL, a="x 5 3", m="b 5", b="x 3"),
    case(
        "index put second",
        "a.index_put_((torch.arange(3, device=a.device)[:, None], i), b)",
        a="x 3 7 5",
        i="perm7 7",
        b="x 3 7 5",
    ),
    case(
        "index put add",
        "a.index_put_((i,), b, accumulate=True)",
        ("float32", *INTS),
        a="x 11 3",
        i="idx11 20",
        b="x 20 3",
        ulps=4,
    ),
    case("mask assign", "a.masked_fill_(m, 0).add_(1)", ALL, a="x 4 9", m="b 4 9"),
    case("scatter", "a.scatter_(0, i[:, None].expand(11, 3), b)", ALL, a="x 11 3", i="perm11 11", b="x 11 3"),
    case("scatter value", "a.scatter_(1, i, 2)", ALL, a="x 3 11", i="idx11 3 4"),
    case("scatter one number", "a.scatter(0, i, b)", ALL, a="x", i="idx1", b="x"),
    case("scatter nothing", "a.scatter(0, i, b)", ALL, a="x 5", i="idx5 0", b="x 0"),
    case("scatter bool", "a.scatter(1, i, m)", ("bool",), a="x 3 11", i="idx11 3 1", m="b 3 1"),
    case(
        "scatter add",
        "a.scatter_add_(0, i, b)",
        ("float32", *INTS),
        a="x 11 3",
        i="idx11 20 3",
        b="x 20 3",
        ulps=4,
    ),
    case("index copy", "a.index_copy_(2, i, b)", a="x 2 3 9 4", i="perm9 9", b="x 2 3 9 4"),
    case("index add", "a.index_add_(0, i, b)", ("float32",), a="x 11 3", i="idx11 20", b="x 20 3", ulps=4),
    case(
        "index add, scaled",
        "a.index_add_(1, i, b, alpha=-2)",
        ("float32", "int64"),
        **{"a": "x 3 11", "i": "idx11 4", "b": "x 3 4", "ulps": 4},
    ),
    case("index fill", "a.index_fill_(1, i, 2)", ALL, a="x 3 11", i="idx11 4"),
    case("index add to one number", "a.index_add(0, i, b)", ("float32", *INTS), a="x", i="idx1 1", b="x"),
    case("index copy to one number", "a.index_copy(0, i, b)", ALL, a="x", i="idx1 1", b="x"),
    case("index fill of one number", "a.index_fill(0, i, 2)", ALL, a="x", i="idx1 1"),
    case("index select of one number", "a.index_select(0, i)", ALL, a="x", i="idx1 1"),
    case("one hot", "F.one_hot(i, 11)", ("float32",), i="idx11 3 4"),
    case("masked scatter", "a.masked_scatter_(m, b)", ("float32",), a="x 4 9", m="b 4 9", b="x 40"),
]

ATTENTION = [
    case(
        "sdpa",
        "F.scaled_dot_product_attention(q, k, v)",
        q="x 2 4 7 16",
        k="x 2 4 9 16",
        v="x 2 4 9 16",
        ulps=8,
    ),
    case(
        "sdpa causal",
        "F.scaled_dot_product_attention(q, k, v, is_causal=True)",
        q="x 2 4 37 16",
        k="x 2 4 37 16",
        v="x 2 4 37 16",
        ulps=8,
    ),
    case(
        "sdpa decode",
        "F.scaled_dot_product_attention(q, k, v)",
        q="x 2 4 1 32",
        k="x 2 4 50 32",
        v="x 2 4 50 32",
        ulps=8,
    ),
    case(
        "sdpa mask",
        "F.scaled_dot_product_attention(q, k, v, attn_mask=m | (torch.arange(9, device=q.device) == 0))",
        q="x 2 4 7 16",
        k="x 2 4 9 16",
        v="x 2 4 9 16",
        m="b 2 1 7 9",
        ulps=8,
    ),
    # The weights that dropout keeps, seen through values that are the identity, are those that it uses.
    case(
        "sdpa dropout",
        "(lambda run: run(torch.eye(16, dtype=q.dtype, device=q.device).expand(2, 4, 16, 16)) @ v - run(v))("
        "lambda v: (torch.manual_seed(5), F.scaled_dot_product_attention(q, k, v, dropout_p=0.25))[1])",
        ("float32",),
        reference="torch.zeros(2, 4, 7, 16)",
        q="x 2 4 7 16",
        k="x 2 4 16 16",
        v="x 2 4 16 16",
        layouts=("dense",),
    ),
    case(
        "sdpa scale",
        "F.scaled_dot_product_attention(q, k, v, scale=0.3)",
        q="x 2 4 7 16",
        k="x 2 4 9 16",
        v="x 2 4 9 16",
        ulps=8,
    ),
    case(
        "sdpa grouped",
        "F.scaled_dot_product_attention(q, k, v, enable_gqa=True)",
        q="x 2 4 7 16",
        k="x 2 2 9 16",
        v="x 2 2 9 16",
        ulps=8,
    ),
    case(
        "sdpa long",
        "F.scaled_dot_product_attention(q, k, v, is_causal=True)",
        q="x 1 2 130 64",
        k="x 1 2 130 64",
        v="x 1 2 130 64",
        ulps=8,
        layouts=("dense",),
    ),
    case(
        "fused attention BSH",
        "torch_npu.npu_fusion_attention(*(t.transpose(1, 2).reshape(2, -1, 64) for t in (q, k, v)), 4, 'BSH',"
        " scale=0.25)[0]",
        reference="(torch.softmax(q @ k.transpose(-1, -2) * 0.25, -1) @ v).transpose(1, 2).reshape(2, 7, 64)",
        q="x 2 4 7 16",
        k="x 2 4 9 16",
        v="x 2 4 9 16",
        ulps=8,
    ),
    case(
        "fused attention statistics",
        "torch_npu.npu_fusion_attention(q, k, v, 4, 'BNSD', scale=0.25)[1:3]",
        ("float32",),
        reference="(lambda s: (s.amax(-1, keepdim=True).expand(2, 4, 7, 8),"
        " (s - s.amax(-1, keepdim=True)).exp().sum(-1, keepdim=True).expand(2, 4, 7, 8)))"
        "(q @ k.transpose(-1, -2) * 0.25)",
        q="x 2 4 7 16",
        k="x 2 4 9 16",
        v="x 2 4 9 16",
        ulps=8,
    ),
    case(
        "inference attention",
        "torch_npu.npu_fused_infer_attention_score(q, k, v, num_heads=4, input_layout='BNSD', scale=0.25,"
        " num_key_value_heads=2)[0]",
        ("float16", "bfloat16"),
        reference="torch.softmax(q @ k.repeat_interleave(2, 1).transpose(-1, -2) * 0.25, -1)"
        " @ v.repeat_interleave(2, 1)",
        q="x 2 4 7 16",
        k="x 2 2 9 16",
        v="x 2 2 9 16",
        ulps=8,
    ),
    case(
        "inference attention, paged",
        "torch_npu.npu_fused_infer_attention_score(q, k.reshape(6, 16, 32), v.reshape(6, 16, 32),"
        " block_table=torch.tensor([[5, 0], [2, 3]], dtype=torch.int32, device=q.device), block_size=16,"
        " actual_seq_lengths=[1, 2], actual_seq_lengths_kv=[21, 9], num_heads=4, num_key_value_heads=2,"
        " input_layout='TND', scale=0.25)[0]",
        ("float16", "bfloat16"),
        # Two sequences of one token each, 21 keys on pages 5 and 0, 9 keys on page 2.
        reference="torch.stack([(lambda kk, vv, qq: torch.stack([torch.softmax(kk[:, h // 2] @ qq[h] * 0.25,"
        " 0) @ vv[:, h // 2] for h in range(4)]))(torch.cat([k[p] for p in pages])[:n],"
        " torch.cat([v[p] for p in pages])[:n], q[b])"
        " for b, (pages, n) in enumerate([((5, 0), 21), ((2, 3), 9)])])",
        q="x 2 4 16",
        k="x 6 16 2 16",
        v="x 6 16 2 16",
        ulps=8,
        layouts=("dense",),
    ),
]


_SLOTS = "torch.tensor([5, -1, 30, 0, 17], dtype=torch.int32, device=k.device)"
_TOP_P = (
    "(lambda l, p, k: (lambda v, i: torch.empty_like(l).scatter_(-1, i, (lambda w: w.masked_fill("
    "(torch.softmax(w, -1).cumsum(-1) <= 1 - p[:, None]) & (torch.arange(40) < 39), -torch.inf))("
    "v.masked_fill(v < v.gather(1, 40 - k[:, None]), -torch.inf))))(*l.sort(-1)))"
)
#: What an inference engine adds: sampling, paged caches, quantisation.
SERVING = [
    case(
        "top k and top p",
        "torch_npu.npu_top_k_top_p(a, torch.tensor([0.9, 0.5, 0.05], dtype=a.dtype, device=a.device),"
        " torch.tensor([7, 40, 3], dtype=torch.int32, device=a.device))",
        ("float32",),
        a="x 3 40",
        reference=f"{_TOP_P}(a, torch.tensor([0.9, 0.5, 0.05]), torch.tensor([7, 40, 3]))",
        layouts=("dense",),
    ),
    case(
        "scatter into a paged cache",
        f"(torch_npu.npu_scatter_pa_kv_cache(k, v, c, d, {_SLOTS}, cache_mode='Norm'), c, d)[1:]",
        ("float16", "bfloat16"),
        k="x 5 2 16",
        v="x 5 2 16",
        c="x 4 8 2 16",
        d="x 4 8 2 16",
        reference="tuple((lambda w: w.view(32, 2, 16).index_copy_(0, torch.tensor([5, 30, 0, 17]),"
        " t[[0, 2, 3, 4]]).view(4, 8, 2, 16))(u.clone()) for t, u in ((k, c), (v, d)))",
        layouts=("dense",),
    ),
    case(
        "quantize",
        "torch_npu.npu_quantize(a, torch.full((1,), 8.0, device=a.device),"
        " torch.full((1,), 3.0, device=a.device), torch.qint8, -1, False)",
        ("float32",),
        a="x 5 32",
        reference="(a * 8 + 3).round().clamp(-128, 127).to(torch.int8)",
        layouts=("dense",),
    ),
    case(
        "quantize by channel",
        "torch_npu.npu_quantize(a, s, None, torch.qint8, -1, False)",
        ("float32",),
        a="x 5 32",
        s="pos 32",
        reference="(a.float() * s.float()).round().clamp(-128, 127).to(torch.int8)",
        layouts=("dense",),
    ),
    case(
        "dynamic quantize",
        "torch_npu.npu_dynamic_quant(a)",
        ("float16", "bfloat16"),
        a="x 2 5 32",
        reference="((lambda b: (b.float() / (b.abs().amax(-1, keepdim=True).float() / 127)).round()"
        ".to(torch.int8))(a), a.abs().amax(-1).float() / 127)",
        layouts=("dense",),
        ulps=4,
    ),
    case(
        "dynamic quantize, asymmetric",
        "(lambda q, s, o: (q.float() - o[..., None]) * s[..., None])"
        "(*torch_npu.npu_dynamic_quant_asymmetric(a))",
        ("float16",),
        a="x 2 5 32",
        reference="(lambda a: (lambda s, o: ((a / s + o).round().clamp(-128, 127) - o) * s)("
        "(a.amax(-1, keepdim=True) - a.amin(-1, keepdim=True)) / 255,"
        " 127 - 255 * a.amax(-1, keepdim=True) / (a.amax(-1, keepdim=True) - a.amin(-1, keepdim=True))))"
        "(a.float())",
        layouts=("dense",),
        ulps=100,
    ),
]


#: The gradient of an expression in `a`, for an incoming gradient that is not constant.
def _gradient(name: str, expression: str, **options: object) -> Case:
    def whole(expression: object) -> str:
        inner = f"(lambda a: torch.autograd.grad((lambda y: (y * y.detach()).sum())({expression}), a)[0])"
        return f"{inner}(a.detach().requires_grad_())"

    options = {"ulps": 16, "layouts": ("dense",), **options}
    if "reference" in options:
        options["reference"] = whole(options["reference"])
    return case(f"gradient of {name}", whole(expression), ("float32",), **options)


#: What a training step needs: losses, gradients, operators over lists of tensors.
TRAINING = [
    case(
        "mse",
        "torch.stack([F.mse_loss(a, b), F.mse_loss(a, b, reduction='sum')])",
        ("float32",),
        a="x 3 5",
        b="x 3 5",
        ulps=8,
    ),
    case("smooth l1", "F.smooth_l1_loss(a, b, beta=0.5)", ("float32",), a="x 3 5", b="x 3 5", ulps=8),
    case("nll", "F.nll_loss(a, b)", ("float32",), a="x 6 5", b="idx5 6", ulps=8),
    case(
        "nll, weighted",
        "F.nll_loss(a, b, weight=w, ignore_index=2)",
        ("float32",),
        a="x 6 5",
        b="idx5 6",
        w="pos 5",
        ulps=8,
    ),
    case("nll, each", "F.nll_loss(a, b, reduction='none')", ("float32",), a="x 6 5", b="idx5 6"),
    _gradient("mse", "F.mse_loss(a, b)", a="x 3 5", b="x 3 5"),
    _gradient("mse, each", "F.mse_loss(a, b, reduction='none')", a="x 3 5", b="x 3 5"),
    _gradient("smooth l1", "F.smooth_l1_loss(a, b, reduction='sum')", a="x 3 5", b="x 3 5"),
    _gradient("nll", "F.nll_loss(a, b)", a="x 6 5", b="idx5 6"),
    _gradient(
        "nll, weighted", "F.nll_loss(a, b, weight=w, ignore_index=2)", a="x 6 5", b="idx5 6", w="pos 5"
    ),
    _gradient("cross entropy", "F.cross_entropy(a, b)", a="x 6 5", b="idx5 6"),
    _gradient("relu", "F.relu(a)", a="x 3 17"),
    _gradient("silu", "F.silu(a)", a="x 3 17"),
    _gradient("sigmoid", "torch.sigmoid(a)", a="x 3 17"),
    _gradient("tanh", "torch.tanh(a)", a="x 3 17"),
    _gradient("softmax", "torch.softmax(a, 1)", a="x 3 7 5"),
    _gradient("log softmax", "torch.log_softmax(a, -1)", a="x 3 7 5"),
    _gradient("layer norm", "F.layer_norm(a, (7,), w, b)", a="x 3 5 7", w="x 7", b="x 7", ulps=64),
    _gradient("embedding", "F.embedding(i, a)", a="x 9 5", i="idx9 4 3"),
    _gradient("embedding, padded", "F.embedding(i, a, padding_idx=2)", a="x 9 5", i="idx9 4 3"),
]
#: Of one and two dimensions; in `a` and in the weight.
CONVOLUTIONS = {
    "conv1d": ("F.conv1d(a, w, b)", "2 6 17", "4 6 3", "4"),
    "conv1d, strided": ("F.conv1d(a, w, b, stride=2, padding=1)", "2 6 17", "4 6 3", "4"),
    "conv1d, depthwise": ("F.conv1d(a, w, b, padding=2, dilation=2, groups=6)", "2 6 17", "6 1 3", "6"),
    "conv2d": ("F.conv2d(a, w)", "2 3 9 11", "4 3 3 2", "4"),
    "conv2d, all": ("F.conv2d(a, w, b, (2, 1), (1, 2), (1, 2), 2)", "2 4 9 11", "6 2 3 2", "6"),
    "conv2d, 1x1": ("F.conv2d(a, w, b)", "1 8 5 5", "3 8 1 1", "3"),
    "conv transposed": ("F.conv_transpose2d(a, w, b, 2, 1, 1, 2)", "2 4 5 6", "4 3 3 3", "6"),
}
TRAINING += [
    case(name, expression, a=f"x {a}", w=f"x {w}", b=f"x {b}", ulps=32)
    for name, (expression, a, w, b) in CONVOLUTIONS.items()
]
TRAINING += [
    _gradient(f"{name} in its {what}", expression, a=f"x {a}", w=f"x {w}", b=f"x {b}", ulps=256)
    for name, (whole, x, weight, b) in CONVOLUTIONS.items()
    for what, expression, a, w in (
        ("input", whole, x, weight),
        ("weight", whole.replace("(a, w", "(w, a"), weight, x),
    )
]
TRAINING += [
    _gradient(
        f"{name} in its bias",
        whole.replace("(a, w, b", "(b, w, a"),
        a=f"x {b}",
        w=f"x {w}",
        b=f"x {x}",
        ulps=256,
    )
    for name, (whole, x, w, b) in CONVOLUTIONS.items()
    if ", b" in whole
]
#: In each of its inputs; below with heads of keys and values that two of the query's share, and a bias.
TRAINING += [
    _gradient(
        f"attention{name} in {what}",
        f"F.scaled_dot_product_attention({names}{options})",
        a="x 2 4 9 16",
        b="x 2 4 9 16",
        c="x 2 4 9 16",
        m="b 9 9",
        ulps=256,
    )
    for name, options in {
        "": "",
        ", causal": ", is_causal=True",
        ", masked": ", attn_mask=m | torch.eye(9, device=m.device).bool()",
        ", scaled": ", scale=0.5",
    }.items()
    for what, names in {"q": "a, b, c", "k": "b, a, c", "v": "b, c, a"}.items()
]
_SCORES = "q.transpose(1, 2) @ k.repeat_interleave(2, 2).permute(0, 2, 3, 1) * 0.25 + m"
_GROUPED = f"(lambda q, k, v: torch.softmax({_SCORES}, -1) @ v.repeat_interleave(2, 2).transpose(1, 2))"
TRAINING += [
    _gradient(
        f"attention, grouped in {what}",
        f"torch_npu.npu_fusion_attention({names}, 4, 'BSND', pse=m, scale=0.25)[0]",
        reference=f"{_GROUPED}({names}).transpose(1, 2)",
        **{"a": sizes[0], "b": sizes[1], "c": sizes[2], "m": "x 2 4 16 16"},
        ulps=256,
    )
    for what, names, sizes in (
        ("q", "a, b, c", ("x 2 16 4 16", "x 2 16 2 16", "x 2 16 2 16")),
        ("k", "b, a, c", ("x 2 16 2 16", "x 2 16 4 16", "x 2 16 2 16")),
        ("v", "b, c, a", ("x 2 16 2 16", "x 2 16 4 16", "x 2 16 2 16")),
    )
]
TRAINING += [
    case(
        f"foreach {name}",
        f"torch.cat([t.flatten() for t in torch._foreach_{call}])",
        ("float32",),
        a="x 3 4",
        b="pos 7",
        ulps=2,
    )
    for name, call in {
        "add, scaled": "add([a, b], [a * 2, b], alpha=0.5)",
        "sub": "sub([a, b], [a * 2, b])",
        "mul": "mul([a, b], [a * 2, b])",
        "div": "div([a, b], [a * 2, b])",
        "add scalar": "add([a, b], 1.5)",
        "mul scalar": "mul([a, b], 1.5)",
        "div scalars": "div([a, b], [1.5, 3.0])",
        "maximum": "maximum([a, b], [b[:4].expand(3, 4), b])",
        "minimum scalar": "clamp_max([a, b], 0.25)",
        "power": "pow([a, b], 2)",
        "sqrt": "sqrt([a * a, b])",
        "neg": "neg([a, b])",
        "reciprocal": "reciprocal([b, b])",
        "exp": "exp([a, b])",
        "lerp": "lerp([a, b], [a * 2, b * 3], 0.25)",
        "addcmul": "addcmul([a, b], [a, b], [a, b], value=0.5)",
        "addcdiv": "addcdiv([a, b], [a, b], [a * 0 + 2, b], [0.5, 2.0])",
        "norm": "norm([a, b])",
    }.items()
]

#: Shapes without elements and without dimensions.
CORNERS = [
    case("scalar add", "a + b", ALL, a="x", b="x", layouts=("dense",)),
    case("scalar times vector", "a * b", ALL, a="x", b="x 5", layouts=("dense",)),
    case("scalar to", "a.to(torch.float32)", ALL, a="x", layouts=("dense",)),
    case("scalar sum", "a.sum()", ALL, a="x", layouts=("dense",)),
    case("scalar softmax", "a.softmax(-1)", a="x", layouts=("dense",)),
    case("empty add", "a + b", ALL, a="x 0 3", b="x 3", layouts=("dense",)),
    case("empty sum", "a.sum()", ("float32", "int64"), a="x 0 3", layouts=("dense",)),
    case("empty cat", "torch.cat((a, b))", ALL, a="x 0 3", b="x 2 3", layouts=("dense",)),
    case("empty index", "b[a]", ("float32",), a="idx5 0", b="x 5 3", layouts=("dense",)),
    case("one row", "a.transpose(0, 1).contiguous()", ALL, a="x 1 5"),
]

CASES = [
    *UNARY,
    *ACTIVATIONS,
    *BINARY,
    *LOGIC,
    *COPIES,
    *PRODUCTS,
    *REDUCTIONS,
    *ORDER,
    *INDEXING,
    *ATTENTION,
    *SERVING,
    *TRAINING,
    *CORNERS,
]
