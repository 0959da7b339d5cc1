"""Evaluates cases on the CPU and on the device; one JSON object a line in, one out.

Runs unmodified torch_npu in a process of its own, whose environment chooses the libraries. In: a case's
fields, one ``dtype`` and one ``layout``. Out: ``{"ok": true}``, or ``{"ok": false, "why": text}``.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
import zlib
from typing import Any

warnings.simplefilter("ignore")

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import torch_npu  # noqa: E402

from workloads.numerics import compare, flatten  # noqa: E402


def make(spec: str, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """The CPU tensor that an input's description asks for."""
    kind, *sizes = spec.split()
    shape = tuple(int(size) for size in sizes)

    def integers(low: int, high: int, of: torch.dtype) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator).to(of)

    if kind == "b":
        return integers(0, 2, torch.bool)
    if kind == "i64":
        return integers(-9, 10, torch.int64)
    if kind == "f32":
        return torch.randn(shape, generator=generator)
    if kind.startswith("perm"):
        return torch.randperm(int(kind[4:]), generator=generator)
    if kind.startswith("sidx"):
        return integers(-int(kind[4:]), int(kind[4:]), torch.int64)
    if kind.startswith("idx"):
        return integers(0, int(kind[3:]), torch.int64)
    if dtype == torch.bool:
        return integers(0, 2, dtype)
    if not dtype.is_floating_point:
        return integers(1 if kind == "pos" else 0 if dtype == torch.uint8 else -9, 10, dtype)
    if kind == "pos":
        return (torch.rand(shape, generator=generator) * 3 + 0.1).to(dtype)
    if kind == "unit":
        return (torch.rand(shape, generator=generator) * 1.9 - 0.95).to(dtype)
    if kind == "x":
        return (torch.randn(shape, generator=generator) * 2).to(dtype)
    raise ValueError(f"unknown kind of input {kind!r}")


def place(t: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values on the device, in a layout."""
    if layout == "transposed" and t.dim() > 1:
        order = tuple(reversed(range(t.dim())))
        return t.permute(order).contiguous().npu().permute(order)
    if layout == "sliced" and t.dim() > 0:
        # Every second element of a larger tensor, from the second on.
        storage = torch.zeros([2 * size + 1 for size in t.shape], dtype=t.dtype)
        where = tuple(slice(1, 1 + 2 * size, 2) for size in t.shape)
        storage[where] = t
        return storage.npu()[where]
    return t.npu()


def run(request: dict[str, Any]) -> str:
    dtype = getattr(torch, request["dtype"])
    seed = zlib.crc32(f"{request['name']} {request['seed']}".encode())

    def inputs() -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {name: make(spec, dtype, generator) for name, spec in request["inputs"].items()}

    scope = {"torch": torch, "F": F, "torch_npu": torch_npu}
    on_device = {name: place(t, request["layout"]) for name, t in inputs().items()}
    actual = flatten(eval(request["expression"], scope | on_device))
    actual = [t.cpu() for t in actual]
    reference = request["reference"] or request["expression"]
    wide = {n: t.double() if t.dtype.is_floating_point else t for n, t in inputs().items()}
    exact = flatten(eval(reference, scope | wide))
    plain: list[torch.Tensor | None] = [None] * len(exact)
    if not request["reference"]:
        plain = list(flatten(eval(reference, scope | inputs())))
    if len(actual) != len(exact):
        return f"{len(actual)} results instead of {len(exact)}"
    for i, (a, e, p) in enumerate(zip(actual, exact, plain, strict=True)):
        if why := compare(a, e, p, request["ulps"]):
            return f"result {i}: {why}"
    return ""


def main() -> None:
    # Whatever libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    for line in sys.stdin:
        try:
            why = run(json.loads(line))
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        answers.write(json.dumps({"ok": not why, "why": why}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
