"""Every OpInfo sample of torch's operators, on the CPU and on the device.

OpInfo is torch's own table of its operators' arguments. This runs unmodified torch_npu in a process of its
own, whose environment chooses the libraries. In: one JSON object a line, `{"operator": name, "dtype": name}`,
with `"most": n` for the first n samples only; `{}` asks for all operators. Out: how many samples are `right`,
`wrong`, `refused` by the device, or `missing` there (it has no body for a function), and how many say nothing
(`elsewhere`), with reasons.

A sample says nothing when torch_npu itself refuses it or computes it on the CPU, and when its result is
random. A result is right when it is near the exact one, or near the CPU's in the sample's own type. What the
operator gives is torch_npu's choice where the device has none: see the tables below.
"""

from __future__ import annotations

import collections
import importlib
import itertools
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_map

from workloads.numerics import compare, flatten

SYNCHRONIZE = importlib.import_module("torch_npu").npu.synchronize
OPERATORS: list[Any] = op_db
#: Their results are what was in the memory before, or random among so few values that two may agree.
RANDOM = re.compile(r"^((new_)?empty(_like|_strided|_permuted)?|randint(_like)?)$")
#: How torch_npu reports that a function of the device's libraries has failed, and one without a body.
REFUSAL = re.compile(r"(call aclnn\w+ failed|OPS function error: \w+)(, error code is (?P<code>\d+))?")
NO_BODY = "100024"
#: Errors allowed, in units of the type's rounding error: samples differ in size, so there is one for all.
ULPS = 64.0
FALLBACK = "fall back to run on the CPU"

#: Results that are unique only up to a sign, an order or a choice: compared bit by bit or not at all.
FREE = {
    name: "its result is unique only up to signs, order or pivots"
    for name in ("eig", "eigh", "svd", "qr", "lu", "lu_factor", "ldl_factor", "householder_product")
} | {"geqrf": "its result depends on the algorithm"}
#: Results with positions of values: position of the argument `dim`, and its default. Among equal values any
#: may be named, so what they select is compared.
POSITIONS = {"sort": (0, -1), "argsort": (0, -1), "topk": (1, -1), "kthvalue": (1, -1)}
#: What torch_npu computes in the place of the operator.
INSTEAD: dict[str, Callable[..., Any]] = {
    # It calls aclnnGelu for either form, which is the tanh form.
    "nn.functional.gelu": lambda x, **_: F.gelu(x, approximate="tanh"),
}
#: What torch_npu's own operator does not share with torch's.
APART = {"native_dropout_backward": "torch_npu's mask has a bit an element, torch's a byte"}
#: The shape of their empty results is torch_npu's.
EMPTY = frozenset({"native_layer_norm"})


def _to(device: str, values: Any) -> Any:
    return tree_map(lambda v: v.to(device) if isinstance(v, torch.Tensor) else v, values)


def _copied(values: Any) -> Any:
    return tree_map(lambda v: v.clone() if isinstance(v, torch.Tensor) else v, values)


def _wide(values: Any) -> Any:
    return tree_map(
        lambda v: v.double() if isinstance(v, torch.Tensor) and v.dtype.is_floating_point else v,
        _copied(values),
    )


def _tensors(value: Any) -> list[torch.Tensor]:
    found = [t for t in flatten(value) if isinstance(t, torch.Tensor)] if value is not None else []
    return [t if t.layout == torch.strided else t.to_dense() for t in found]


@contextmanager
def seeded(number: int) -> Iterator[None]:
    """With this seed, also where the table's own functions set one."""
    actually = torch.manual_seed
    actually(number)
    with mock.patch.object(torch, "manual_seed", lambda seed: actually(seed + number)):
        yield


def _same(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    """Bit by bit, NaN being NaN."""
    return len(some) == len(others) and all(
        a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
        for a, b in zip(some, others, strict=True)
    )


def _selected(name: str, sample: Any, results: list[torch.Tensor]) -> list[torch.Tensor]:
    """Positions replaced by the values that they select."""
    number, default = POSITIONS[name]
    dim = sample.kwargs.get("dim", sample.args[number] if len(sample.args) > number else default)
    if name == "sort" and "stable" in sample.kwargs:
        dim = sample.kwargs.get("dim", -1)

    def one(t: torch.Tensor) -> Any:
        if t.dtype != torch.int64 or t is not results[-1] or sample.input.dim() == 0:
            return t
        if t.dim() < sample.input.dim():
            return sample.input.gather(dim, t.unsqueeze(dim)).squeeze(dim)
        return sample.input.gather(dim, t)

    return [one(t) for t in results]


def _differs(name: str, actual: torch.Tensor, exact: torch.Tensor, plain: torch.Tensor) -> tuple[str, str]:
    """A word other than `right` and the reason, or nothing."""
    if actual.dtype.is_complex or plain.dtype.is_complex:
        return "", ""
    if name in EMPTY and actual.numel() == 0 and plain.numel() == 0:
        return "", ""
    # A result's type is torch_npu's choice, which has no float64.
    if actual.dtype.is_floating_point and plain.dtype.is_floating_point:
        plain = plain.to(actual.dtype)
    if actual.dtype != plain.dtype:
        return "elsewhere", f"torch_npu's result is {actual.dtype}, torch's {plain.dtype}"
    exact = exact if exact.shape == plain.shape else plain
    why = compare(actual, exact, plain, ULPS)
    if not why or not compare(actual, plain, plain, ULPS):
        return "", ""
    return "wrong", why


def judge(operator: Any, sample: Any) -> tuple[str, str]:
    """One of the words of the answer, and the reason."""
    name: str = operator.name
    if name in APART:
        return "elsewhere", APART[name]
    arguments = (sample.input, sample.args, sample.kwargs)

    def call(values: Any, function: Any = operator.op) -> list[torch.Tensor]:
        first, rest, named = values
        return _tensors(function(first, *rest, **named))

    reference = INSTEAD.get(name, operator.op)
    try:
        with seeded(1):
            plain = call(_copied(arguments), reference)
        with seeded(2):
            random = not _same(plain, call(_copied(arguments), reference)) or bool(RANDOM.search(name))
    except Exception:
        return "elsewhere", "not on the CPU either"
    try:
        exact = call(_wide(arguments), reference)
    except Exception:
        exact = plain
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            results = call(_to("npu", arguments))
            SYNCHRONIZE()  # a copy to the host may not have waited
            actual = [t.cpu() for t in results]
        except Exception as error:
            refusal = REFUSAL.search(str(error))
            word = "elsewhere" if refusal is None else "missing" if refusal["code"] == NO_BODY else "refused"
            return word, str(error)[refusal.start() if refusal else 0 :]
    if any(FALLBACK in str(one.message) for one in said):
        return "elsewhere", FALLBACK
    if random:
        return "elsewhere", "random"
    if len(actual) != len(plain) or len(exact) != len(plain):
        return "wrong", f"{len(actual)} results instead of {len(plain)}"
    free = FREE.get(name.removeprefix("linalg.").removesuffix("_ex"))
    if free and not _same(actual, plain):
        return "elsewhere", free
    if name in POSITIONS:
        actual, exact, plain = (_selected(name, sample, each) for each in (actual, exact, plain))
    for a, e, p in zip(actual, exact, plain, strict=True):
        word, why = _differs(name, a, e, p)
        if word:
            return word, why
    return "right", ""


def run(request: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request."""
    if not request:
        return {"operators": sorted({one.name for one in OPERATORS})}
    dtype = getattr(torch, request["dtype"])
    counts: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[tuple[str, str]] = collections.Counter()
    for operator in (one for one in OPERATORS if one.name == request["operator"]):
        if dtype not in operator.dtypes:
            continue
        torch.manual_seed(0)
        samples = operator.sample_inputs("cpu", dtype, requires_grad=False)
        for number, sample in enumerate(itertools.islice(samples, request.get("most"))):
            word, why = judge(operator, sample)
            counts[word] += 1
            if why:
                line = re.sub(r" \[ERROR\].*?(E\d+: |$)", "; ", " ".join(why.split()))[:300]
                reasons[word, line if word != "wrong" else f"sample {number}: {line}"] += 1
    return dict(counts) | {"reasons": [[*key, n] for key, n in reasons.most_common(12)]}


def main() -> None:
    """Answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    for line in sys.stdin:
        answers.write(json.dumps(run(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
