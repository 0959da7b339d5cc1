"""Sense, decide, act: the loop around a policy.

The policy is asked a few times a lease; what it decides is sent each time, which renews the lease. When it
decides to set nothing, or this process ends, the gate is made transparent; when this process dies, the lease
runs out, which comes to the same.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from controllers.policies import Decision, Policy
from controllers.state import ControllerState
from flexnpu.control.client import ControlClient, ControlError
from flexnpu.control.messages import GateStatus, SetGate
from probes.feed.events import Event

RENEWALS = 4
"""How often in a lease it is renewed: one late or failed request does not cost it."""
RETRY_S = 1.0
"""Between attempts to reach a feed that ended."""


class Feed(Protocol):
    """What is used of `probes.feed.socket.FeedClient`."""

    @property
    def ended(self) -> bool: ...

    def read(self, timeout_s: float | None = None) -> Event | None: ...

    def close(self) -> None: ...


@dataclass
class Counts:
    decisions: int = 0
    """Gate settings sent and accepted."""
    changes: int = 0
    """Of those, how many differed from the one before."""
    failures: int = 0
    """Requests that the daemon did not answer, or refused."""
    feed_losses: int = 0
    """Times that the feed ended or could not be read."""


@dataclass
class Loop:
    """`run` until `stop`. `connect` opens a feed; it raises OSError when there is none."""

    policy: Policy
    client: ControlClient
    connect: Callable[[], Feed]
    lease_s: float
    out: TextIO = field(default_factory=lambda: sys.stdout)
    clock: Callable[[], int] = time.monotonic_ns

    def __post_init__(self) -> None:
        self.state = ControllerState()
        self.counts = Counts()
        self._stopping = False
        self._feed: Feed | None = None
        self._connect_at_ns = 0
        self._held = False  # a policy of ours is set
        self._last: tuple[object, ...] | None = None
        self._trouble = ""
        self._feed_trouble = ""

    def stop(self) -> None:
        """Make `run` return, within a fraction of a lease. From any thread or signal handler."""
        self._stopping = True

    def run(self) -> None:
        self.log("started", policy=self.policy.name, lease_s=self.lease_s, daemon=str(self.client.path))
        period_ns = int(self.lease_s / RENEWALS * 1e9)
        try:
            while not self._stopping:
                self.turn()
                self.listen(self.clock() + period_ns)
        finally:
            if self._feed is not None:
                self._feed.close()
            self.withdraw()
        self.log("stopped", **vars(self.counts), steps=self.state.steps, unmapped=self.state.unmapped)

    def listen(self, until_ns: int) -> None:
        """Take in steps until `until_ns`."""
        while not self._stopping and (left_s := (until_ns - self.clock()) / 1e9) > 0:
            if self._feed is None:
                self._reconnect(left_s)
                continue
            try:
                event = self._feed.read(left_s)
            except OSError as error:
                self._lose_feed(str(error))
                continue
            if event is not None:
                self.state.take(event)
            elif self._feed.ended:
                self._lose_feed("the feed ended")

    def turn(self) -> None:
        """Decide and act."""
        try:
            self.state.update(self.client.status().lanes)
        except ControlError as error:
            self._fail(str(error))
            return
        now_ns = self.clock()
        self.state.settle(now_ns)
        self.act(self.policy.decide(self.state, now_ns))

    def act(self, decision: Decision) -> None:
        """Send what was decided, and log it when it is news."""
        gate = decision.gate
        reply: GateStatus | None = None
        if gate is not None:
            try:
                reply = self.client.set_gate(gate)
            except ControlError as error:
                # A lane may have gone since its status was read; the next round knows.
                self._fail(str(error))
                return
            self.counts.decisions += 1
            self._held = gate.policy != "transparent"
        else:
            self.withdraw()
        if self._trouble:
            self.log("daemon-answers")
            self._trouble = ""
        news: tuple[object, ...] = (decision.why,)
        if gate is not None:
            news = (gate.policy, gate.window_us, gate.decode_target_us, tuple(sorted(gate.lanes.items())))
        if news == self._last:
            return
        self._last = news
        self.counts.changes += gate is not None
        self.log(
            "decision",
            what=gate.model_dump(exclude={"type"}) if gate is not None else None,
            why=decision.why,
            decisions=self.counts.decisions,
            expired_leases=reply.expired_leases if reply is not None else None,
            **decision.evidence,
            **decision.details(),
        )

    def withdraw(self) -> None:
        """Make the gate transparent now: a lease that runs out is for when this could not be said."""
        if self._held:
            self._held = False
            with contextlib.suppress(ControlError):
                self.client.set_gate(SetGate(policy="transparent", lease_s=self.lease_s))

    def log(self, event: str, **fields: object) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        with contextlib.suppress(OSError, ValueError):
            print(json.dumps({"time": now, "event": event, **fields}, default=str), file=self.out, flush=True)

    def _fail(self, text: str) -> None:
        self.counts.failures += 1
        if text != self._trouble:
            self._trouble = text
            self.log("daemon-trouble", error=text)

    def _reconnect(self, left_s: float) -> None:
        wait_s = (self._connect_at_ns - self.clock()) / 1e9
        if wait_s > 0:
            time.sleep(min(wait_s, left_s))
            return
        try:
            self._feed = self.connect()
        except OSError as error:
            self._lose_feed(str(error))
            return
        self._feed_trouble = ""
        self.log("feed-connected")

    def _lose_feed(self, text: str) -> None:
        if self._feed is not None:
            self._feed.close()
            self._feed = None
        self.counts.feed_losses += 1
        self._connect_at_ns = self.clock() + int(RETRY_S * 1e9)
        if text != self._feed_trouble:
            self._feed_trouble = text
            self.log("feed-lost", error=text)
