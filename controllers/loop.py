"""Sense, decide, act: the loop around a policy.

The policy is asked a few times a lease; what it decides is sent each time, which renews the lease. When it
decides to set nothing, or this process dies, the lease runs out and the gate is transparent again.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TextIO

from controllers.picture import Picture
from controllers.policies import Decision, Policy
from flexnpu.control.client import ControlClient, ControlError
from flexnpu.control.messages import GateStatus
from probes.events import Event, Step

RENEWALS = 4
"""How often in a lease it is renewed: one late or failed request does not cost it."""
RETRY_S = 1.0
MAX_WAITING = 65536

Source = Callable[[], Iterator[Event]]
"""Connects to a feed and yields its events; ends or raises OSError when the feed does."""


@dataclass
class Counts:
    decisions: int = 0
    """Gate settings sent and accepted."""
    changes: int = 0
    """Of those, how many differed from the one before."""
    failures: int = 0
    """Requests that the daemon did not answer, or refused."""
    feed_losses: int = 0
    """Times the feed ended."""
    dropped: int = 0
    """Steps that came faster than they were read."""


@dataclass
class Loop:
    """`run` until `stop`. `source` is read in a thread of its own, for it blocks."""

    policy: Policy
    client: ControlClient
    source: Source
    lease_s: float
    out: TextIO = field(default_factory=lambda: sys.stdout)
    clock: Callable[[], int] = time.monotonic_ns

    def __post_init__(self) -> None:
        self.picture = Picture()
        self.counts = Counts()
        self._events: queue.Queue[Event] = queue.Queue(MAX_WAITING)
        self._stop = threading.Event()
        self._last: tuple[object, ...] | None = None
        self._trouble = ""

    def stop(self) -> None:
        """Make `run` return. From any thread or signal handler."""
        self._stop.set()

    def run(self) -> None:
        threading.Thread(target=self._read, name="feed", daemon=True).start()
        period = self.lease_s / RENEWALS
        self.log("started", policy=self.policy.name, lease_s=self.lease_s, daemon=str(self.client.path))
        while not self._stop.wait(period):
            self.turn()
        self.log("stopped", **vars(self.counts), steps=self.picture.steps, unmapped=self.picture.unmapped)

    def turn(self) -> None:
        """One round: take in what came, decide, act."""
        try:
            self.picture.update(self.client.status().lanes)
        except ControlError as error:
            self._fail(str(error))
            return
        with contextlib.suppress(queue.Empty):
            while True:
                event = self._events.get_nowait()
                if isinstance(event, Step):
                    self.picture.add(event)
        now_ns = self.clock()
        self.picture.settle(now_ns)
        self.act(self.policy.decide(self.picture, now_ns))

    def act(self, decision: Decision) -> None:
        """Send what was decided, and log it when it is news."""
        reply: GateStatus | None = None
        if decision.gate is not None:
            try:
                reply = self.client.set_gate(decision.gate)
            except ControlError as error:
                # A lane may have gone since its status was read; the next round knows.
                self._fail(str(error))
                return
            self.counts.decisions += 1
        if self._trouble:
            self.log("daemon-answers")
            self._trouble = ""
        gate = decision.gate
        news = (
            (gate.policy, gate.window_us, gate.decode_target_us, tuple(sorted(gate.lanes.items())))
            if gate is not None
            else (decision.why,)
        )
        if news != self._last:
            self._last = news
            self.counts.changes += gate is not None
            self.log(
                "decision",
                what=gate.model_dump(exclude={"type"}) if gate is not None else None,
                why=decision.why,
                decisions=self.counts.decisions,
                expired_leases=reply.expired_leases if reply is not None else None,
                **decision.evidence,
            )

    def log(self, event: str, **fields: object) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        with contextlib.suppress(OSError, ValueError):
            print(json.dumps({"time": now, "event": event, **fields}, default=str), file=self.out, flush=True)

    def _fail(self, text: str) -> None:
        self.counts.failures += 1
        if text != self._trouble:
            self._trouble = text
            self.log("daemon-trouble", error=text)

    def _read(self) -> None:
        while not self._stop.is_set():
            try:
                for event in self.source():
                    try:
                        self._events.put_nowait(event)
                    except queue.Full:
                        self.counts.dropped += 1
                    if self._stop.is_set():
                        return
                reason = "the feed ended"
            except OSError as error:
                reason = str(error)
            self.counts.feed_losses += 1
            self.log("feed-lost", error=reason)
            self._stop.wait(RETRY_S)
