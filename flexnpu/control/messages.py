"""Control messages: one JSON object a line, each with ``"v"`` (`VERSION`) and ``"type"``.

A request is `StatusRequest` or `SetGate`; its reply is `DaemonStatus`, `GateStatus` or `ErrorReply`, in the
order of the requests. A reply may grow fields, which older readers ignore. A request may grow optional
fields, which are sent only when they are set; a daemon refuses a field that it does not know, for it would
not do what that asks. Anything else is a new `VERSION`, which the other side refuses by name.

>>> decode_request(encode(StatusRequest()))
StatusRequest(type='status')
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, TypeAdapter, ValidationError

VERSION = 1

MAX_REQUEST_BYTES = 1 << 16
"""Longest request line, newline included."""
MAX_REPLY_BYTES = 1 << 23
"""Longest reply line that a client reads."""
MAX_LEASE_S = 60.0
MAX_HOLD_US = 1e6
"""The most that a setting may let one prefill operator wait for decode."""

Phase = Literal["unknown", "prefill", "decode"]
Doubt = Literal["launches", "contradiction", "device-time", "missing"]
"""Why a controller does not act on what the steps say (`controllers.doubts`)."""
DOUBTS: tuple[Doubt, ...] = ("launches", "contradiction", "device-time", "missing")
DOUBTING = "doubting"
"""In `GateOwner.counts`: for which of `DOUBTS`, from 1, nothing is set now; 0: for none."""
Policy = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
"""A policy's name, as its controller knows it; ``transparent``: none."""

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

    later_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields that version 1 did not have at first: left out of the line while they have their defaults, so
    that an older daemon takes it."""


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
    prefill_steps: NonNegativeInt = 0
    """Steps that said themselves that they prefill, alone or beside decode; 0 where nobody told."""
    decode_steps: NonNegativeInt = 0
    """And that they decode, and nothing else."""
    prefill_tokens: NonNegativeInt = 0
    """Tokens of those steps."""
    decode_tokens: NonNegativeInt = 0

    @property
    def does(self) -> str:
        """What the lane does, in a word: as its steps say, else as it was set."""
        told = [
            name for name, steps in (("prefill", self.prefill_steps), ("decode", self.decode_steps)) if steps
        ]
        return "+".join(told) or self.phase

    @property
    def used(self) -> bool:
        """Whether anything was ever put on it."""
        return bool(self.launched or self.completed or self.queued or self.in_flight or self.device_us)


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

    @property
    def used(self) -> bool:
        """Whether it ever called, or has anything."""
        return bool(self.calls or self.memory_bytes or self.refused)


class GateOwner(_Reply):
    """The controller whose lease on the gate runs. Nobody else may set the gate meanwhile."""

    pid: NonNegativeInt
    """This and the two below are what the kernel says of the peer."""
    uid: NonNegativeInt
    comm: str
    instance: str
    """What the controller calls itself; empty when it did not say."""
    lease_left_s: float
    """On CLOCK_MONOTONIC: a step of the wall clock changes nothing."""
    counts: dict[str, int] = Field(default_factory=dict)
    """What the controller counted since its start, as it last said; and `DOUBTING`."""

    @property
    def doubt(self) -> Doubt | None:
        """Why the controller sets nothing, though prefill and decode share the device; None: no doubt."""
        number = self.counts.get(DOUBTING, 0)
        return DOUBTS[number - 1] if 0 < number <= len(DOUBTS) else None


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
    owner: GateOwner | None = None
    """None when nobody has a lease. A daemon that knows no owners does not send the field."""


class KnownStatus(_Reply):
    """What a daemon knows of itself without asking its data plane."""

    version: str
    """Of the daemon's package."""
    pid: NonNegativeInt
    device: NonNegativeInt
    soc: str
    uptime_s: float
    gate: GateStatus


class DaemonStatus(KnownStatus):
    """Reply to `StatusRequest`."""

    type: Literal["daemon_status"] = "daemon_status"
    sessions: list[SessionStatus]
    lanes: list[LaneStatus]
    device_busy_us: float | None
    """Time for which the device ran operators since the daemon started, us; None where the vendor does not
    say.
    """
    counters: dict[str, int]
    """Everything that the data plane counts, by name; counters only grow."""
    age_s: float = 0.0
    """How old sessions, lanes and counters are; more than 0 when the data plane did not answer in time."""


class ErrorReply(_Reply):
    """The request was refused and nothing was changed."""

    type: Literal["error"] = "error"
    code: str
    """``version``, ``malformed``, ``too-long``, ``not-permitted``, ``unknown-lane``, ``owned`` (the gate is
    another controller's), ``busy`` (no answer from the data plane in time) or ``failed``."""
    message: str
    known: KnownStatus | None = None
    """With ``busy``: what the daemon knows all the same."""


class StatusRequest(_Request):
    """Asks for `DaemonStatus`."""

    type: Literal["status"] = "status"


class ControllerInfo(_Request):
    """Who sets the gate, in its own words."""

    instance: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,64}$")]
    """Tells controllers of one process apart; the same in all its requests."""
    counts: Annotated[
        dict[Annotated[str, Field(pattern=r"^[a-z0-9_]{1,32}$")], NonNegativeInt], Field(max_length=32)
    ] = Field(default_factory=dict)
    """What it counted since its start, for `GateOwner.counts`."""


class SetGate(_Request):
    """Sets the gate for `lease_s` seconds; if they pass without another one, it is transparent again.

    The sender owns the gate for that time: another process, or another `ControllerInfo.instance`, is refused
    with ``owned`` unless it takes over. A transparent setting without `keep` gives the gate back.
    """

    later_fields: ClassVar[frozenset[str]] = frozenset(
        {"controller", "take_over", "keep", "max_hold_us", "decode_idle_us", "targets_us"}
    )

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
    controller: ControllerInfo | None = None
    take_over: bool = False
    """Take the gate from its owner."""
    keep: bool = False
    """With the transparent policy: own the gate all the same, for the lease."""
    max_hold_us: Annotated[float, Field(gt=0, le=MAX_HOLD_US, allow_inf_nan=False)] | None = None
    """Longest hold of a prefill operator for a decode lane without slack; None: the gate's own, 10 ms."""
    decode_idle_us: Annotated[float, Field(gt=0, le=1e7, allow_inf_nan=False)] | None = None
    """A decode lane silent for longer lends its whole share; None: the gate's own, 20 ms."""
    targets_us: (
        Annotated[
            dict[int, Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]], Field(max_length=4096)
        ]
        | None
    ) = None
    """Step targets of lanes, in the place of `decode_target_us`."""


Request = StatusRequest | SetGate
Reply = DaemonStatus | GateStatus | ErrorReply

_REQUESTS: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="type")])
_REPLIES: TypeAdapter[Reply] = TypeAdapter(Annotated[Reply, Field(discriminator="type")])

_M = TypeVar("_M")


def encode(message: Request | Reply) -> bytes:
    """One message as a line, newline included."""
    fields = message.model_dump()
    if isinstance(message, _Request):
        for name in message.later_fields:
            if fields[name] == type(message).model_fields[name].default:
                del fields[name]
    return json.dumps({"v": VERSION, **fields}, separators=(",", ":")).encode() + b"\n"


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
