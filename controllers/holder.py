"""Holds the daemon's gate: sends settings, owns the gate, and renews a setting while its maker is late.

Rules, for a lease of L seconds:

- A setting is sent as it is decided, four times a lease; a request has L / 4 for its answer. So a setting is
  renewed before half of the lease is gone, and two renewals in a row may fail without costing it.
- When the loop is late, for example because the daemon's status takes long, a thread of its own renews the
  last setting, over a connection of its own, for at most `STUCK_S` after it was decided. After that the
  lease runs out and the gate is transparent.
- A setting that must not outlive a hung loop (one that holds prefill) is not renewed.
- A setting whose lease has run out is never renewed: this process may have been stopped, and what was
  decided then may be wrong by now. The loop decides anew.
- One request is under way at a time, so settings reach the daemon in the order in which they were decided.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from uuid import uuid4

from flexnpu.control.client import ControlClient, ControlError, RefusedError
from flexnpu.control.messages import ControllerInfo, GateStatus, SetGate

RENEWALS = 4
"""How often in a lease it is renewed."""
STUCK_S = 10.0
"""For so long the last decision is renewed without a new one."""


def request_timeout_s(lease_s: float) -> float:
    """How long a request that renews a lease may take, s."""
    return min(2.0, max(0.05, lease_s / RENEWALS))


class GateHolder:
    """`set` from the loop; `start` the thread that renews, and `close` it all.

    `counts` gives what the daemon is told of this controller. Time is CLOCK_MONOTONIC ns, from `clock`.
    """

    def __init__(
        self,
        client: ControlClient,
        lease_s: float,
        *,
        counts: Callable[[], Mapping[str, int]] = dict,
        take_over: bool = False,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._client = client
        self._lease_ns = int(lease_s * 1e9)
        self._counts = counts
        self._take_over = take_over
        self._clock = clock
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._gate: SetGate | None = None
        self._renewed = True
        self._decided_ns = self._tried_ns = self._accepted_ns = 0
        self.instance = uuid4().hex[:12]
        self.knows_owners = False
        """Whether the daemon is new enough to be told who sets its gate."""
        self.renewals = 0
        """Settings that the thread renewed."""

    def set(self, gate: SetGate, *, renew: bool = True) -> GateStatus:
        """Set the gate, and renew that until the next call, unless it must end with its lease. Raises
        `ControlError`."""
        with self._lock:
            self._gate = gate
            self._renewed = renew
            self._decided_ns = self._clock()
            return self._send(gate)

    def release(self) -> None:
        """Give the gate back, transparent, if it may be held."""
        with self._lock:
            gate, self._gate = self._gate, None
            # A request that was not answered may have been heard.
            if gate is not None and self._clock() - self._tried_ns < self._lease_ns:
                transparent = SetGate(policy="transparent", lease_s=gate.lease_s)
                with contextlib.suppress(ControlError):
                    self._send(transparent)
            self._accepted_ns = 0

    def renew_if_due(self) -> bool:
        """Send the last setting again when nobody has for a quarter of the lease; whether one was sent.
        Raises `ControlError`."""
        with self._lock:
            now_ns = self._clock()
            if self._gate is None or not self._renewed:
                return False
            if now_ns - self._tried_ns < self._lease_ns // RENEWALS:
                return False
            if not self._holds() or now_ns - self._decided_ns > int(STUCK_S * 1e9):
                return False
            self._send(self._gate)
            self.renewals += 1
            return True

    def start(self) -> None:
        """Renew in a thread from now on."""
        self._thread = threading.Thread(target=self._run, name="renewals", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, give the gate back, and close the connection."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        self.release()
        self._client.close()

    def _run(self) -> None:
        # Twice as often as is due, so that none is much later than a quarter of the lease.
        while not self._over.wait(self._lease_ns / 1e9 / RENEWALS / 2):
            with contextlib.suppress(ControlError):  # the loop's own requests tell of it
                self.renew_if_due()

    def _holds(self) -> bool:
        return self._accepted_ns > 0 and self._clock() - self._accepted_ns < self._lease_ns

    def _send(self, gate: SetGate) -> GateStatus:
        self._tried_ns = self._clock()
        try:
            reply = self._client.set_gate(self._signed(gate))
        except RefusedError as error:
            if error.code != "unknown-lane" or not (gate.lanes or gate.targets_us):
                raise
            # A lane has gone since its status was read. The phases of the others are known to the daemon.
            reply = self._client.set_gate(
                self._signed(gate.model_copy(update={"lanes": {}, "targets_us": None}))
            )
        self._take_over = False
        # From before it was sent: the daemon's lease ends later than we think, not earlier.
        self._accepted_ns = self._tried_ns
        return reply

    def _signed(self, gate: SetGate) -> SetGate:
        if not self.knows_owners:
            return gate
        info = ControllerInfo(instance=self.instance, counts=dict(self._counts()))
        return gate.model_copy(update={"controller": info, "take_over": self._take_over})
