"""How a device's results are held against a reference. For programs that have torch."""

from __future__ import annotations

from typing import Any

import torch

#: Relative rounding error of a result that is rounded once, with room for float32's own functions.
EPSILON = {
    torch.float32: 2e-6,
    torch.float16: 2**-10,
    torch.bfloat16: 2**-7,
    torch.float64: 1e-12,
}


def flatten(value: Any) -> list[torch.Tensor]:
    """The tensors of a result, which may be nested."""
    return [value] if isinstance(value, torch.Tensor) else [t for part in value for t in flatten(part)]


def compare(actual: torch.Tensor, exact: torch.Tensor, plain: torch.Tensor | None, ulps: float) -> str:
    """Why they differ, or nothing. `exact`: from float64 inputs; `plain`: from the case's own type."""
    if plain is not None and (actual.dtype != plain.dtype or actual.shape != plain.shape):
        return f"{actual.dtype}{list(actual.shape)} instead of {plain.dtype}{list(plain.shape)}"
    if actual.shape != exact.shape:
        return f"shape {list(actual.shape)} instead of {list(exact.shape)}"
    if actual.numel() == 0:
        return ""
    if not actual.dtype.is_floating_point:
        expected = exact if plain is None else plain
        differing = (actual != expected.to(actual.dtype)).sum().item()
        return f"{differing} of {actual.numel()} elements differ" if differing else ""
    a, e = actual.double(), exact.double().to(actual.dtype).double()
    finite = e.isfinite()
    same_kind = torch.where(finite, a.isfinite(), (a == e) | (a.isnan() & e.isnan()))
    if not same_kind.all():
        return f"{(~same_kind).sum().item()} elements are infinite or NaN on one side only"
    a, e = a[finite], e[finite]
    if a.numel() == 0:
        return ""
    tolerance = EPSILON[actual.dtype] * ulps
    excess = (a - e).abs() - tolerance * (e.abs() + 0.05 * e.abs().max()) - 1e-7
    if (excess > 0).any():
        at = excess.argmax()
        many = f"{(excess > 0).sum().item()} of {a.numel()} elements"
        return f"{a[at].item()!r} instead of {e[at].item()!r} ({many})"
    return ""
