"""What a daemon did between two of its statuses.

Its clock is its own uptime, so a late answer does not bend a rate. A figure that two statuses do not give,
such as that of a session which is new in the second, is None, and left out of `as_json`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from flexnpu.control.messages import DaemonStatus, GateStatus, LaneStatus, SessionStatus

_S = TypeVar("_S", LaneStatus, SessionStatus)


@dataclass(frozen=True)
class LaneRates:
    """One lane. Shares are of the time between the statuses: 1.0 is all of it."""

    lane: int
    session: int
    pid: int
    comm: str
    stream: int
    phase: str
    queued: int
    in_flight: int
    in_flight_us: float
    held_now: bool
    launches_per_s: float | None
    device_share: float | None
    """Device time of what was launched in between; above 1 while it launches faster than the device works."""
    held_share: float | None
    """For how much of the time the gate held the lane's head."""


@dataclass(frozen=True)
class SessionRates:
    """One session, its lanes summed."""

    session: int
    pid: int
    comm: str
    uid: int
    memory_bytes: int
    memory_quota_bytes: int | None
    lanes: int
    queued: int
    in_flight_us: float
    refused: int
    calls_per_s: float | None
    refused_per_s: float | None
    ring_full_per_s: float | None
    launches_per_s: float | None
    device_share: float | None
    held_share: float | None
    """Of its lane that was held most."""


@dataclass(frozen=True)
class Rates:
    """One daemon."""

    device: int
    soc: str
    pid: int
    uptime_s: float
    interval_s: float | None
    """Between the statuses; None for the first."""
    device_busy: float | None
    gate: GateStatus
    sessions: list[SessionRates]
    lanes: list[LaneRates]

    def as_json(self) -> dict[str, Any]:
        """JSON forms, without what is unknown."""
        plain = asdict(self) | {"gate": self.gate.model_dump()}
        return {key: _known(value) for key, value in plain.items() if value is not None}


def _known(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _known(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_known(one) for one in value]
    return value


def between(before: DaemonStatus | None, now: DaemonStatus) -> Rates:
    """The rates from `before` to `now`; those of another daemon, or none, give none."""
    seconds = None
    if before is not None and before.pid == now.pid and now.uptime_s > before.uptime_s:
        seconds = now.uptime_s - before.uptime_s
    old_lanes = {one.lane: one for one in before.lanes} if before is not None and seconds else {}
    old_sessions = {one.session: one for one in before.sessions} if before is not None and seconds else {}

    def rate(old: _S | None, new: _S, value: Callable[[_S], float], scale: float = 1.0) -> float | None:
        if old is None or not seconds:
            return None
        return max(0.0, value(new) - value(old)) / (seconds * scale)

    lanes = []
    for lane in filter(lambda one: one.used, now.lanes):
        old = old_lanes.get(lane.lane)
        lanes.append(
            LaneRates(
                lane=lane.lane,
                session=lane.session,
                pid=lane.pid,
                comm=lane.comm,
                stream=lane.stream,
                phase=lane.does,
                queued=lane.queued,
                in_flight=lane.in_flight,
                in_flight_us=lane.in_flight_us,
                held_now=lane.held_now,
                launches_per_s=rate(old, lane, lambda one: one.launched),
                device_share=rate(old, lane, lambda one: one.device_us, 1e6),
                held_share=rate(old, lane, lambda one: one.gated_us, 1e6),
            )
        )
    sessions = []
    for session in filter(lambda one: one.used, now.sessions):
        past = old_sessions.get(session.session)
        own = [lane for lane in lanes if lane.session == session.session]
        sessions.append(
            SessionRates(
                session=session.session,
                pid=session.pid,
                comm=session.comm,
                uid=session.uid,
                memory_bytes=session.memory_bytes,
                memory_quota_bytes=session.memory_quota_bytes,
                lanes=len(own),
                queued=sum(lane.queued for lane in own),
                in_flight_us=sum(lane.in_flight_us for lane in own),
                refused=session.refused,
                calls_per_s=rate(past, session, lambda one: one.calls),
                refused_per_s=rate(past, session, lambda one: one.refused),
                ring_full_per_s=rate(past, session, lambda one: one.ring_full),
                launches_per_s=_sum(lane.launches_per_s for lane in own),
                device_share=_sum(lane.device_share for lane in own),
                held_share=max(
                    (lane.held_share for lane in own if lane.held_share is not None), default=None
                ),
            )
        )
    busy = None
    if (
        before is not None
        and seconds
        and before.device_busy_us is not None
        and now.device_busy_us is not None
    ):
        busy = max(0.0, now.device_busy_us - before.device_busy_us) / (seconds * 1e6)
    return Rates(
        device=now.device,
        soc=now.soc,
        pid=now.pid,
        uptime_s=now.uptime_s,
        interval_s=seconds,
        device_busy=busy,
        gate=now.gate,
        sessions=sessions,
        lanes=lanes,
    )


def _sum(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
