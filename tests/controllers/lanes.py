"""Lanes as a daemon reports them."""

from __future__ import annotations

from flexnpu.control.messages import LaneStatus


def lane(number: int, key: tuple[int, int], device_us: float = 0, launched: int = 0) -> LaneStatus:
    """The lane of the stream that `key` names by process and handle. What it launched is complete."""
    return LaneStatus(
        lane=number,
        session=number,
        pid=key[0],
        comm="python3",
        stream=key[1],
        phase="unknown",
        queued=0,
        in_flight=0,
        in_flight_us=0,
        launched=launched,
        completed=launched,
        device_us=device_us,
        gated_us=0,
        held_now=False,
    )
