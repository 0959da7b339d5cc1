"""The one definition of a quantile."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexnpu.common.quantiles import nearest_rank, quantile, rank


@given(st.lists(st.floats(-1e9, 1e9), min_size=1), st.floats(0, 1))
def test_it_is_the_smallest_value_that_enough_do_not_exceed(values: list[float], q: float) -> None:
    found = quantile(values, q)
    assert found in values
    enough = [v for v in values if sum(other <= v for other in values) >= q * len(values) * (1 - 1e-12)]
    assert found == min(enough)
    assert nearest_rank(sorted(values), q) == found


def test_it_is_exact_where_floats_are_not() -> None:
    assert 0.07 * 100 > 7
    assert rank(100, 0.07) == 6
    assert [quantile(range(1, 101), q) for q in (0.0, 0.01, 0.5, 0.99, 1.0)] == [1, 1, 50, 99, 100]


def test_of_nothing_there_is_none() -> None:
    assert quantile([], 0.5) is None
    with pytest.raises(IndexError):
        nearest_rank([], 0.5)
