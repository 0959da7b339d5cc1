"""Typed, versioned control messages of the daemon, the paths of its sockets, and the client."""

from flexnpu.control.client import ControlClient, ControlError, NoDaemonError, RefusedError, connect_all
from flexnpu.control.messages import (
    VERSION,
    DaemonStatus,
    ErrorReply,
    GateStatus,
    LaneStatus,
    SessionStatus,
    SetGate,
    StatusRequest,
)

__all__ = [
    "VERSION",
    "ControlClient",
    "ControlError",
    "DaemonStatus",
    "ErrorReply",
    "GateStatus",
    "LaneStatus",
    "NoDaemonError",
    "RefusedError",
    "SessionStatus",
    "SetGate",
    "StatusRequest",
    "connect_all",
]
