"""Control messages: one JSON object a line, each with ``"v"`` (`VERSION`) and ``"type"``.

A request is `StatusRequest` or `SetGate`; its reply is `DaemonStatus`, `GateStatus` or `ErrorReply`, in the
order of the requests. A reply may grow fields, which older readers ignore; a request may not carry fields
that the daemon does not know, for it would not do what they ask. Anything else is a new `VERSION`, which
the other side refuses by name.

>>> decode_request(encode(StatusRequest()))
StatusRequest(type='status')
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, TypeAdapter, ValidationError

VERSION = 1

MAX_REQUEST_BYTES = 1 << 16
"""Longest request line, newline included."""
MAX_REPLY_BYTES = 1 << 23
"""Longest reply line that a client reads."""
MAX_LEASE_S = 60.0

Phase = Literal["unknown", "prefill", "decode"]
Policy = Literal["transparent", "protect-decode"]

_Microseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class MessageError(ValueError):
    """A line that is not a message of this version. `code` is what an `ErrorReply` for it carries."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class _Reply(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LaneStatus(_Reply):
    """One client stream."""

    lane: NonNegativeInt
    session: NonNegativeInt
    pid: NonNegativeInt
    comm: str
    stream: NonNegativeInt
    """The stream's handle as the client sees it."""
    phase: Phase
    queued: NonNegativeInt
    """Operators that the daemon has not dispatched yet."""
    in_flight: NonNegativeInt
    in_flight_us: float
    """Estimated device time of what was dispatched and is not known to be complete."""
    launched: NonNegativeInt
    completed: NonNegativeInt
    device_us: float
    """Device time of all that was launched, us: measured where it was, else estimated."""
    gated_us: float
    """Sum of the times for which the gate held the lane's head, us."""
    held_now: bool


class SessionStatus(_Reply):
    """One client process's connection."""

    session: NonNegativeInt
    pid: NonNegativeInt
    comm: str
    uid: NonNegativeInt
    memory_bytes: NonNegativeInt
    """Device memory that the session is charged for."""
    memory_quota_bytes: NonNegativeInt | None = None
    """The most that it may have; None: as much as the device has."""
    rings: NonNegativeInt
    lanes: NonNegativeInt
    calls: NonNegativeInt
    refused: NonNegativeInt
    """Calls refused because of a stale or forged handle, a foreign address or a malformed message."""
    ring_full: NonNegativeInt
    """Times a thread of the client had to wait for room in its ring."""


class GateStatus(_Reply):
    """What the gate is doing."""

    type: Literal["gate_status"] = "gate_status"
    policy: Policy
    window_us: float
    decode_target_us: float | None
    """Step target given to decode lanes; None: the gate's own, from steps without prefill work beside them.
    """
    overlap_slowdown: float
    """k: decode slowdown a microsecond of prefill work beside it; as set, or as learned."""
    lease_left_s: float
    """0 when transparent."""
    expired_leases: NonNegativeInt
    """Leases that ran out without renewal or withdrawal."""


class DaemonStatus(_Reply):
    """Reply to `StatusRequest`."""

    type: Literal["daemon_status"] = "daemon_status"
    version: str
    """Of the daemon's package."""
    pid: NonNegativeInt
    device: NonNegativeInt
    soc: str
    uptime_s: float
    sessions: list[SessionStatus]
    lanes: list[LaneStatus]
    gate: GateStatus
    device_busy_us: float | None
    """Time for which the device ran operators since the daemon started, us; None where the vendor does not
    say.
    """
    counters: dict[str, int]
    """Everything that the data plane counts, by name; counters only grow."""


class ErrorReply(_Reply):
    """The request was refused and nothing was changed."""

    type: Literal["error"] = "error"
    code: str
    """``version``, ``malformed``, ``too-long``, ``not-permitted``, ``unknown-lane`` or ``failed``."""
    message: str


class StatusRequest(_Request):
    """Asks for `DaemonStatus`."""

    type: Literal["status"] = "status"


class SetGate(_Request):
    """Sets the gate for `lease_s` seconds; if they pass without another one, it is transparent again."""

    type: Literal["set_gate"] = "set_gate"
    policy: Policy
    window_us: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = 300.0
    """Prefill work in flight while decode is amid a step, us."""
    decode_target_us: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] | None = None
    """Step target of decode lanes; None: the gate's own."""
    overlap_slowdown: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = None
    """k; None: learned."""
    lease_s: Annotated[float, Field(gt=0, le=MAX_LEASE_S, allow_inf_nan=False)]
    lanes: Annotated[dict[int, Phase], Field(max_length=4096)] = Field(default_factory=dict)
    """Phases of lanes; a lane not named keeps its phase."""


Request = StatusRequest | SetGate
Reply = DaemonStatus | GateStatus | ErrorReply

_REQUESTS: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="type")])
_REPLIES: TypeAdapter[Reply] = TypeAdapter(Annotated[Reply, Field(discriminator="type")])

_M = TypeVar("_M")


def encode(message: Request | Reply) -> bytes:
    """One message as a line, newline included."""
    return json.dumps({"v": VERSION, **message.model_dump()}, separators=(",", ":")).encode() + b"\n"


def decode_request(line: bytes) -> Request:
    """Read one request line. Raises `MessageError`."""
    return _decode(line, _REQUESTS, MAX_REQUEST_BYTES)


def decode_reply(line: bytes) -> Reply:
    """Read one reply line. Raises `MessageError`."""
    return _decode(line, _REPLIES, MAX_REPLY_BYTES)


def _decode(line: bytes, adapter: TypeAdapter[_M], limit: int) -> _M:
    if len(line) > limit:
        raise MessageError("too-long", f"a line of {len(line)} bytes: at most {limit} are read")
    try:
        raw: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MessageError("malformed", f"not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise MessageError("malformed", f"not a JSON object but {type(raw).__name__}")
    version = raw.pop("v", None)
    if type(version) is not int or version != VERSION:
        raise MessageError(
            "version",
            f"control version {_short(version)}: this side speaks {VERSION}; "
            "use the same FlexNPU version for both",
        )
    try:
        return adapter.validate_python(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise MessageError("malformed", f"{where}: {first['msg']}" if where else first["msg"]) from None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
