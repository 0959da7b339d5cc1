"""Every OpInfo sample of torch's operators, on the CPU and on the device.

OpInfo is torch's own table of its operators' arguments. This runs unmodified torch_npu in a process of its
own, whose environment chooses the libraries. In: one JSON object a line, `{"operator": name, "dtype": name}`;
`{}` asks for all operators. Out: how many samples are `right`, `refused` by the device, `wrong`, and
`elsewhere` (what torch_npu itself refuses or computes on the CPU), with reasons.
"""

from __future__ import annotations

import collections
import json
import os
import re
import sys
import warnings
from typing import Any

import torch
import torch_npu  # noqa: F401
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_map

from workloads.numerics import compare, flatten

#: Their results are random, or what was in the memory before.
RANDOM = re.compile(
    r"^(_?normal|uniform|bernoulli|multinomial|cauchy|exponential|geometric|log_normal|rand|empty|new_empty|"
    r"nn\.functional\.(.*dropout|rrelu|fractional)|svd_lowrank|pca_lowrank)"
)
#: How torch_npu reports that a function of the device's libraries has failed.
REFUSAL = re.compile(r"call (aclnn\w+) failed")
#: Errors allowed, in units of the type's rounding error: samples differ in size, so there is one for all.
ULPS = 64.0
FALLBACK = "fall back to run on the CPU"


def _to(device: str, values: Any) -> Any:
    return tree_map(lambda v: v.to(device) if isinstance(v, torch.Tensor) else v, values)


def _wide(values: Any) -> Any:
    return tree_map(
        lambda v: v.double() if isinstance(v, torch.Tensor) and v.dtype.is_floating_point else v, values
    )


def _tensors(value: Any) -> list[torch.Tensor]:
    return [t for t in flatten(value) if isinstance(t, torch.Tensor)] if value is not None else []


def judge(operator: Any, sample: Any) -> tuple[str, str]:
    """One of the words of the answer, and the reason."""
    arguments = (sample.input, sample.args, sample.kwargs)

    def call(values: Any) -> Any:
        first, rest, named = values
        return operator.op(first, *rest, **named)

    try:
        plain = _tensors(call(tree_map(lambda v: v.clone() if isinstance(v, torch.Tensor) else v, arguments)))
    except Exception:
        return "elsewhere", "not on the CPU either"
    try:
        exact = _tensors(call(_wide(arguments)))
    except Exception:
        exact = plain
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            actual = [t.cpu() for t in _tensors(call(_to("npu", arguments)))]
        except Exception as error:
            text = str(error)
            return ("refused" if REFUSAL.search(text) else "elsewhere"), text
    if any(FALLBACK in str(one.message) for one in said):
        return "elsewhere", FALLBACK
    if len(actual) != len(exact):
        return "wrong", f"{len(actual)} results instead of {len(exact)}"
    for a, e, p in zip(actual, exact, plain, strict=True):
        if a.dtype.is_complex or p.dtype.is_complex:
            continue
        if why := compare(a, e if e.shape == p.shape else p, p, ULPS):
            return "wrong", why
    return "right", ""


def run(request: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request."""
    if not request:
        return {"operators": sorted({one.name for one in op_db if not RANDOM.search(one.name)})}
    dtype = getattr(torch, request["dtype"])
    counts: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[tuple[str, str]] = collections.Counter()
    for operator in (one for one in op_db if one.name == request["operator"]):
        if dtype not in operator.dtypes:
            continue
        torch.manual_seed(0)
        for number, sample in enumerate(operator.sample_inputs("cpu", dtype, requires_grad=False)):
            word, why = judge(operator, sample)
            counts[word] += 1
            if why:
                line = " ".join(why.split())[:300]
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
