"""The judge of draws in `test_sampling` by itself: it needs no engine."""

from __future__ import annotations

import numpy as np
import pytest

from tests.vllm.test_sampling import check, filtered, softmax


def test_filters_keep_what_they_should() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.1]))
    assert filtered(logits, 4, 1.0).tolist() == [True] * 4
    assert filtered(logits, 2, 1.0).tolist() == [True, True, False, False]
    # Half is not enough for 0.6; the second makes it 0.75.
    assert filtered(logits, 4, 0.6).tolist() == [True, True, False, False]
    assert filtered(logits, 4, 0.1).tolist() == [True, False, False, False]


def test_wrong_draws_are_told() -> None:
    logits = np.linspace(0, 2, 20)
    random = np.random.default_rng(1)
    settings = {"temperature": 1.0, "top_k": 10}
    kept = softmax(np.where(filtered(logits, 10, 1.0), logits, -np.inf))
    right = random.choice(20, 800, p=kept).tolist()
    check(right, settings, logits.tolist())
    with pytest.raises(AssertionError):
        check(random.choice(20, 800, p=softmax(logits)).tolist(), settings, logits.tolist())
    with pytest.raises(AssertionError):
        check((10 + random.integers(0, 10, 800)).tolist(), settings, logits.tolist())
