"""What the benchmark of two servers on one device says of its figures."""

from __future__ import annotations

import pytest

from benchmarks.vllm_share import ceiling


@pytest.mark.parametrize(
    ("decode", "kept", "prefill", "most"),
    [
        (0.5, 1.0, 0.7, 0.714),  # D takes half of the device, and P had 0.7 of it
        (0.5, 1.25, 0.6, 1.0),  # a slower D leaves it all that it had
        (0.2, 1.0, 0.9, 0.889),
    ],
)
def test_what_decode_takes_prefill_cannot_have(
    decode: float, kept: float, prefill: float, most: float
) -> None:
    assert ceiling(decode, kept, prefill) == most


def test_nothing_is_said_of_what_was_not_seen() -> None:
    assert ceiling(0.0, 1.0, 0.7) is None
    assert ceiling(0.5, 1.0, 0.0) is None
