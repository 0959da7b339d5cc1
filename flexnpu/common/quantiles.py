"""Quantiles: the one definition that all figures of this project use.

The `q` quantile is by nearest rank: of n values in ascending order it is number ``ceil(q * n)``, counted from
1; in words, the smallest value that at least the share `q` of the values do not exceed. It is always a value
that was measured. (Hyndman and Fan, "Sample Quantiles in Statistical Packages", 1996: type 1.)

>>> quantile([4.0, 1.0, 3.0, 2.0], 0.5)
2.0
>>> quantile([], 0.5) is None
True
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache


@lru_cache(maxsize=64)
def _exact(q: float) -> Fraction:
    return Fraction(str(q))


def rank(count: int, q: float) -> int:
    """Index, from 0, of the `q` quantile (0 to 1) among `count` >= 1 ascending values.

    The product is exact for the decimal that `q` is written as: 0.07 of 100 values is the 7th, not the 8th.
    """
    return max(0, math.ceil(_exact(q) * count) - 1)


def nearest_rank(ordered: Sequence[float], q: float) -> float:
    """The `q` quantile (0 to 1) of ascending values. Raises IndexError when there are none."""
    return ordered[rank(len(ordered), q)]


def quantile(values: Iterable[float], q: float) -> float | None:
    """The `q` quantile (0 to 1) of values in any order; None when there are none."""
    ordered = sorted(values)
    return nearest_rank(ordered, q) if ordered else None
