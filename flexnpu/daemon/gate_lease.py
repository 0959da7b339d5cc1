"""Whose the gate is, and until when.

A controller that sets the gate owns it for its lease. Until the lease ends, is given back or is taken over,
settings of others are refused. Time is CLOCK_MONOTONIC: a step of the wall clock changes nothing, and while
the machine is suspended no lease runs. Owners are kept in memory: after a restart the daemon's gate is
transparent and nobody's, and the first who sets it owns it. An owner that was stopped (SIGSTOP) for longer
than its lease is treated as any other when it goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

from flexnpu.control.messages import GateOwner, SetGate


@dataclass(frozen=True)
class Peer:
    """The process at the other end of a control connection, as the kernel says."""

    pid: int
    uid: int
    comm: str


@dataclass(frozen=True)
class Lease:
    """`gate` holds until `until_ns`, and is `peer`'s."""

    peer: Peer
    gate: SetGate
    until_ns: int

    @property
    def instance(self) -> str:
        return self.gate.controller.instance if self.gate.controller is not None else ""

    def is_of(self, peer: Peer, gate: SetGate) -> bool:
        """Whether `peer`'s request `gate` comes from the owner."""
        instance = gate.controller.instance if gate.controller is not None else ""
        return (peer.pid, instance) == (self.peer.pid, self.instance)

    def left_s(self, now_ns: int) -> float:
        return max(0.0, (self.until_ns - now_ns) / 1e9)

    def owner(self, now_ns: int) -> GateOwner:
        """As the status tells it."""
        return GateOwner(
            pid=self.peer.pid,
            uid=self.peer.uid,
            comm=self.peer.comm,
            instance=self.instance,
            lease_left_s=self.left_s(now_ns),
            counts=self.gate.controller.counts if self.gate.controller is not None else {},
        )

    def refusal(self, device: int, now_ns: int) -> str:
        """What another controller is told."""
        return (
            f"the gate of device {device} is owned by {self.peer.comm} (pid {self.peer.pid}, "
            f"user {self.peer.uid}) for another {self.left_s(now_ns):.1f} s unless it renews: stop that "
            "controller, wait for it with --wait, or take the gate with --take-over"
        )
