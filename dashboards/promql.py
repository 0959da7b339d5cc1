"""Small parts of PromQL."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """A Prometheus duration, in the largest unit that holds it whole; at least a millisecond."""
    milliseconds = max(1, round(seconds * 1000))
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"
