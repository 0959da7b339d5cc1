"""What the demo's chip makes of the tiny model, beside what the default chip makes of a 7 B model.

Operator time as in the device model: a fixed part, plus the larger of operations over the matrix unit's
reachable peak and bytes over the memory's reachable rate.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flexnpu.emulator
from flexnpu.cli.demo.plan import Plan
from workloads.models import TinyModel

_PROFILES = Path(flexnpu.emulator.__file__).parent / "profiles"
_PROMPT = 2048


@dataclass(frozen=True)
class Shape:
    """A model's dimensions and the bytes of one element; ``dtype`` names the matrix peak that it uses."""

    hidden: int
    intermediate: int
    heads: int
    element: int
    dtype: str


#: Qwen2.5-7B, bfloat16.
_BIG = Shape(3584, 18944, 28, 2, "bf16")


def _time_us(profile: dict[str, Any], dtype: str, flops: float, moved: float) -> float:
    compute, memory = profile["compute"], profile["memory"]
    peak = compute[f"{dtype}_tflops"] * 1e12 * compute["efficiency"]
    rate = memory["rate_tibps"] * 2**40 * memory["efficiency"]
    static = profile["static_us"]["mma" if flops else "vector"]
    return float(static + max(flops / peak, moved / rate) * 1e6)


def _times(profile: dict[str, Any], shape: Shape, prompt: int) -> dict[str, float]:
    def product(rows: int, inner: int, columns: int) -> float:
        moved = shape.element * (rows * inner + inner * columns + rows * columns)
        return _time_us(profile, shape.dtype, 2.0 * rows * inner * columns, moved)

    def elementwise(elements: int) -> float:
        return _time_us(profile, shape.dtype, 0.0, 2.0 * shape.element * elements)

    return {
        "decode: query projection": product(1, shape.hidden, shape.hidden),
        "decode: gate projection": product(1, shape.hidden, shape.intermediate),
        "decode: elementwise on hidden": elementwise(shape.hidden),
        f"prefill of {_PROMPT}: query projection": product(prompt, shape.hidden, shape.hidden),
        f"prefill of {_PROMPT}: gate projection": product(prompt, shape.hidden, shape.intermediate),
        f"prefill of {_PROMPT}: elementwise on hidden": elementwise(prompt * shape.hidden),
        f"prefill of {_PROMPT}: elementwise on scores": elementwise(shape.heads * prompt * prompt),
    }


def _tiny(model: TinyModel) -> Shape:
    return Shape(model.hidden, model.intermediate, model.heads, 4, "fp32")


def operator_times(plan: Plan) -> dict[str, Any]:
    """Operator times, us: the 7 B model on the default chip and the demo's model on the demo's chip."""
    default = tomllib.loads((_PROFILES / "ascend910c-die.toml").read_text(encoding="utf-8"))
    demo = tomllib.loads((_PROFILES / f"{plan.profile}.toml").read_text(encoding="utf-8"))
    prompt = round(_PROMPT * plan.flood.scaling.prompt_scale)
    big = _times(default, _BIG, _PROMPT)
    tiny = _times(demo, _tiny(plan.flood.model), prompt)
    return {
        "name": plan.profile,
        "why": "a tiny model on a fast chip is bound by its host; on this smaller chip its operators take "
        "about as long as a 7 B model's on the default chip. The tiny model has "
        f"{plan.flood.model.layers} layers, the 7 B model 28, so its steps are that much shorter.",
        "prompt_tokens": {"qwen2.5-7b": _PROMPT, "tiny": prompt},
        "operator_us": {
            name: {"qwen2.5-7b on ascend910c-die": round(big[name], 1), "tiny on demo": round(tiny[name], 1)}
            for name in big
        },
    }
