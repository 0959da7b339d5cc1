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
class Requester:
    """The process that made a request, as the kernel says."""

    pid: int
    uid: int
    comm: str


@dataclass(frozen=True)
class Lease:
    """`gate` holds until `until_ns`, and is `requester`'s."""

    requester: Requester
    gate: SetGate
    until_ns: int

    @property
    def instance(self) -> str:
        """Which of its process's controllers the owner is; empty if it does not say."""
        return self.gate.controller.instance if self.gate.controller is not None else ""

    def is_of(self, requester: Requester, gate: SetGate) -> bool:
        """Whether `requester`'s request `gate` comes from the owner."""
        instance = gate.controller.instance if gate.controller is not None else ""
        return (requester.pid, instance) == (self.requester.pid, self.instance)

    def left_s(self, now_ns: int) -> float:
        """Seconds until it ends; 0 when it has."""
        return max(0.0, (self.until_ns - now_ns) / 1e9)

    def owner(self, now_ns: int) -> GateOwner:
        """As the status tells it."""
        return GateOwner(
            pid=self.requester.pid,
            uid=self.requester.uid,
            comm=self.requester.comm,
            instance=self.instance,
            lease_left_s=self.left_s(now_ns),
            counts=self.gate.controller.counts if self.gate.controller is not None else {},
        )

    def refusal(self, device: int, now_ns: int) -> str:
        """What another controller is told."""
        return (
            f"the gate of device {device} is owned by {self.requester.comm} (pid {self.requester.pid}, "
            f"user {self.requester.uid}) for another {self.left_s(now_ns):.1f} s unless it renews: stop that "
            "controller, wait for it with --wait, or take the gate with --take-over"
        )
