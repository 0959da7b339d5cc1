"""vLLM-Ascend's own operators, called as its extension calls them, against torch on the CPU.

Prints a JSON object: name of a case to the largest error in units of the type's rounding error (float32's own
functions allowed for), or to the text of a failure.
"""

import ctypes
import json
import os
from ctypes import byref, c_bool, c_char_p, c_double, c_int32, c_int64, c_uint64, c_void_p
from typing import Any

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
import torch

acl = ctypes.CDLL("libascendcl.so")
opapi = ctypes.CDLL("libopapi.so")
acl.aclGetRecentErrMsg.restype = c_char_p
for name in ("aclCreateTensor", "aclCreateTensorList", "aclCreateIntArray"):
    getattr(opapi, name).restype = c_void_p
TYPES = {torch.float32: 0, torch.float16: 1, torch.int8: 2, torch.int32: 3, torch.bfloat16: 27}
EPSILON = {torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
stream = c_void_p()


def call(function: Any, *arguments: Any) -> None:
    code = function(*arguments)
    if code != 0:
        raise RuntimeError(f"{code}: {(acl.aclGetRecentErrMsg() or b'').decode()}")


class Device:
    """A tensor on the device; `handle` is its descriptor."""

    def __init__(self, host: torch.Tensor) -> None:
        self.host = host.contiguous()
        self.size = self.host.numel() * self.host.element_size()
        self.address = c_void_p()
        call(acl.aclrtMalloc, byref(self.address), c_uint64(self.size), c_int32(0))
        call(
            acl.aclrtMemcpy,
            self.address,
            c_uint64(self.size),
            c_void_p(self.host.data_ptr()),
            c_uint64(self.size),
            1,
        )
        sizes = (c_int64 * host.dim())(*host.shape)
        strides = (c_int64 * host.dim())(*self.host.stride())
        self.handle = c_void_p(
            opapi.aclCreateTensor(
                sizes,
                c_uint64(host.dim()),
                TYPES[host.dtype],
                strides,
                c_int64(0),
                2,
                sizes,
                c_uint64(host.dim()),
                self.address,
            )
        )

    def read(self) -> torch.Tensor:
        out = torch.empty_like(self.host)
        call(
            acl.aclrtMemcpy,
            c_void_p(out.data_ptr()),
            c_uint64(self.size),
            self.address,
            c_uint64(self.size),
            2,
        )
        return out


def launch(name: str, *arguments: Any) -> None:
    size, executor = c_uint64(), c_void_p()
    plain = [a.handle if isinstance(a, Device) else a for a in arguments]
    call(getattr(opapi, f"{name}GetWorkspaceSize"), *plain, byref(size), byref(executor))
    workspace = c_void_p()
    if size.value:
        call(acl.aclrtMalloc, byref(workspace), size, c_int32(0))
    call(getattr(opapi, name), workspace, size, executor, stream)
    call(acl.aclrtSynchronizeStream, stream)


def worst(actual: torch.Tensor, exact: torch.Tensor) -> float:
    """In units of the rounding error of the type at the size of the result."""
    if not torch.equal(actual.isinf(), exact.isinf()):
        return float("inf")
    kept = ~exact.isinf()
    a, e = actual.double()[kept], exact.double()[kept]
    return float(((a - e).abs() / (EPSILON[actual.dtype] * (e.abs() + 0.05 * e.abs().max()))).max())


def random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape).to(dtype)


def add_rms_norm_bias(dtype: torch.dtype, with_beta: bool) -> float:
    x1, x2, gamma, beta = (random(*s, dtype=dtype) for s in ((3, 5, 64), (3, 5, 64), (64,), (64,)))
    y, rstd, total = torch.empty_like(x1), torch.empty(3, 5, 1), torch.empty_like(x1)
    on = [Device(t) for t in (x1, x2, gamma, beta, y, rstd, total)]
    beta_on = on[3] if with_beta else None
    launch("aclnnAddRmsNormBias", on[0], on[1], on[2], beta_on, c_double(1e-6), on[4], on[5], on[6])
    summed = (x1.double() + x2.double()).to(dtype)
    wide = summed.double()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    expected = wide * scale * gamma.double() + (beta.double() if with_beta else 0)
    return max(worst(on[4].read(), expected), worst(on[5].read(), scale), worst(on[6].read(), summed))


def top_k_top_p(name: str, dtype: torch.dtype, with_p: bool, with_k: bool) -> float:
    logits = random(4, 100, dtype=dtype) * 3
    p = torch.tensor([0.9, 0.3, 1.0, 0.0], dtype=dtype)
    k = torch.tensor([10, 100, 1, 50], dtype=torch.int32)
    out = torch.empty_like(logits)
    on = [Device(t) for t in (logits, p, k, out)]
    launch(name, on[0], on[1] if with_p else None, on[2] if with_k else None, on[3])
    # As vLLM defines it: sort, drop below the k-th, drop while the sum of probabilities is at most 1 - p.
    values, at = logits.float().sort(-1)
    if with_k:
        values = values.masked_fill(values < values.gather(1, 100 - k.long()[:, None]), -torch.inf)
    if with_p:
        drop = torch.softmax(values.double(), -1).cumsum(-1) <= 1 - p.double()[:, None]
        drop[:, -1] = False
        values = values.masked_fill(drop, -torch.inf)
    return worst(on[3].read(), torch.empty_like(values).scatter_(1, at, values))


def fused_attention(dtype: torch.dtype) -> float:
    """Version 4, of which this is what vLLM-Ascend asks: pages, several tokens a sequence, causal."""
    heads, kv_heads, width, block = 4, 2, 64, 16
    query_ends, lengths = [3, 4, 9], [20, 7, 5]
    query = random(9, heads, width, dtype=dtype)
    keys, values = (random(8, block, kv_heads * width, dtype=dtype) for _ in range(2))
    table = torch.tensor([[7, 2], [4, 0], [1, 0]], dtype=torch.int32)
    mask = torch.ones(2048, 2048, dtype=torch.int8).triu(1)
    out, lse = torch.empty_like(query), torch.empty(1)
    on = [Device(t) for t in (query, keys, values, mask, table, out, lse)]
    lists = []
    for one in on[1:3]:
        handles = (c_void_p * 1)(one.handle)
        lists.append(c_void_p(opapi.aclCreateTensorList(handles, c_uint64(1))))
    ints = [c_void_p(opapi.aclCreateIntArray((c_int64 * 3)(*v), c_uint64(3))) for v in (query_ends, lengths)]
    launch(
        "aclnnFusedInferAttentionScoreV4",
        *(on[0], *lists, None, on[3], *ints, *[None] * 7, on[4], *[None] * 14),
        *(
            c_int64(heads),
            c_double(0.125),
            c_int64(2147483647),
            c_int64(2147483647),
            b"TND",
            c_int64(kv_heads),
        ),
        *(
            c_int64(3),
            c_int64(0),
            c_int64(block),
            c_int64(0),
            c_bool(False),
            c_int64(0),
            c_int64(0),
            c_int64(0),
        ),
        *(on[5], on[6]),
    )
    expected, first = [], 0
    for row, (last, length) in enumerate(zip(query_ends, lengths, strict=True)):
        k, v = (
            torch.cat([cache[page] for page in table[row].tolist()])[:length]
            .double()
            .view(length, kv_heads, width)
            for cache in (keys, values)
        )
        count = last - first
        seen = torch.ones(count, length, dtype=torch.bool).tril(length - count)
        for token in range(count):
            q = query[first + token].double()
            for head in range(heads):
                scores = (k[:, head // 2] @ q[head] * 0.125).masked_fill(~seen[token], -torch.inf)
                expected.append(torch.softmax(scores, 0) @ v[:, head // 2])
        first = last
    return worst(on[5].read(), torch.stack(expected).view(9, heads, width))


torch.manual_seed(0)
call(acl.aclInit, None)
call(acl.aclrtSetDevice, 0)
call(acl.aclrtCreateStream, byref(stream))
result: dict[str, object] = {}
cases: list[tuple[str, Any]] = []
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    short = str(dtype).removeprefix("torch.")
    cases += [
        (f"add, norm{' and bias' if beta else ''}, {short}", lambda d=dtype, b=beta: add_rms_norm_bias(d, b))
        for beta in (False, True)
    ]
    cases += [
        (
            f"{op}{' k' * k}{' p' * p}, {short}",
            lambda o=op, d=dtype, p=p, k=k: top_k_top_p(f"aclnn{o}", d, p, k),
        )
        for op in ("ApplyTopKTopPCustom", "ApplyTopKTopP")
        for p, k in ((True, False), (False, True), (True, True))
    ]
cases += [(f"attention, {d}", lambda d=d: fused_attention(d)) for d in (torch.float16, torch.bfloat16)]
for title, check in cases:
    try:
        result[title] = check()
    except RuntimeError as error:
        result[title] = str(error)
print(json.dumps(result))
