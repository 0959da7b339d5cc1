"""Sense, decide, act: the loop around a policy.

The policy is asked a few times a lease; what it decides is sent each time, which renews the lease
(`holder`). When it decides to set nothing, the gate is transparent and stays this controller's. When this
process ends, the gate is given back; when it dies, the lease runs out, which comes to the same.

What the daemon may do, and what follows:

- It answers late, or only to a part: what is known of the lanes is kept, and the lease is renewed meanwhile.
- It is not there, or goes: it is asked again a few times a lease. One that comes back has forgotten lanes and
  owners; the next turn reads the lanes and sets the gate anew.
- It answers with an error: the turn is over, and the next one tries again.
- It says that the gate is another controller's: `run` raises `OwnedError`; with `wait`, it goes on sensing
  and asks again each turn.

Each trouble is told once, until it changes or was over in between, and at most `TROUBLE_LINES` times a
minute.
"""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

from controllers.holder import RENEWALS, GateHolder
from controllers.policies import Decision, Policy
from controllers.state import ControllerState
from flexnpu.console import output
from flexnpu.console.text import json_text
from flexnpu.control.client import BusyError, ControlClient, ControlError, OwnedError
from flexnpu.control.messages import DOUBTING, DOUBTS, Doubt, GateStatus, SetGate
from probes.feed.follow import Feed, FeedFollower

TROUBLE_LINES = 20
"""Lines a minute about troubles; those left out are counted in the next one."""


@dataclass
class Counts:
    """What the loop has done and lost since its start."""

    decisions: int = 0
    """Gate settings sent and accepted."""
    changes: int = 0
    """Of those, how many differed from the one before."""
    failures: int = 0
    """Requests that the daemon did not answer, or refused."""
    feed_losses: int = 0
    """Times that the feed ended or could not be read."""
    doubtful: int = 0
    """Turns in which nothing was set, since what the steps say does not add up (`controllers.doubts`)."""
    owned: int = 0
    """Turns in which the gate was another controller's."""


@dataclass
class Loop:
    """`run` until `stop`. `connect` opens a feed; it raises OSError when there is none.

    `gate_client` is a connection for settings alone, so that none waits behind a status; without it settings
    go over `client`, and only the loop renews them. With `dry_run` decisions are logged, and nothing is set.
    `say` hears of troubles in plain words.
    """

    policy: Policy
    client: ControlClient
    connect: Callable[[], Feed]
    lease_s: float
    out: TextIO = field(default_factory=lambda: sys.stdout)
    clock: Callable[[], int] = time.monotonic_ns
    pause: Callable[[float], None] = time.sleep
    gate_client: ControlClient | None = None
    wait: bool = False
    take_over: bool = False
    dry_run: bool = False
    say: Callable[[str], None] = lambda text: None

    def __post_init__(self) -> None:
        self.log_failed = False
        self.state = ControllerState()
        self.counts = Counts()
        self.doubts = dict.fromkeys(DOUBTS, 0)
        self.doubting: Doubt | None = None
        self._stopping = False
        self.holder = GateHolder(
            self.gate_client or self.client,
            self.lease_s,
            counts=self.exported,
            take_over=self.take_over,
            clock=self.clock,
        )
        self.feed = FeedFollower(
            self.connect,
            on_trouble=self._on_feed_trouble,
            on_connected=lambda: self.log("feed-connected"),
            stopping=lambda: self._stopping,
            clock=self.clock,
            pause=self.pause,
        )
        self._last: tuple[object, ...] | None = None
        self._trouble = ""
        self._busy = False
        self._trouble_lines: list[int] = []
        self._untold = 0

    def stop(self) -> None:
        """Make `run` return, within a fraction of a second or of a request's time-out. From any thread or
        signal handler."""
        self._stopping = True

    def run(self) -> None:
        """Raises `OwnedError` when the gate is another controller's and `wait` was not asked for."""
        self.log("started", policy=self.policy.name, lease_s=self.lease_s, daemon=str(self.client.path))
        period_ns = int(self.lease_s / RENEWALS * 1e9)
        if self.gate_client is not None:
            self.holder.start()
        try:
            while not self._stopping:
                again_s = self.turn()
                soon_ns = period_ns if again_s is None else min(period_ns, int(again_s * 1e9))
                self.listen(self.clock() + soon_ns)
        finally:
            self.feed.close()
            self.holder.close()
            self.log("stopped", **self.exported())

    def exported(self) -> dict[str, int]:
        """What is counted, by name: for the log, and for the daemon, whose status tells it."""
        return {
            **vars(self.counts),
            **{f"doubt_{kind.replace('-', '_')}": turns for kind, turns in self.doubts.items()},
            DOUBTING: DOUBTS.index(self.doubting) + 1 if self.doubting is not None else 0,
            "renewals": self.holder.renewals,
            "steps": self.state.steps,
            "unmapped": self.state.unmapped,
            "unjudged": self.state.unjudged,
            "feed_dropped": self.state.feed_dropped,
        }

    def listen(self, until_ns: int) -> None:
        """Take in events until `until_ns`, and what has come by then: a late turn must not cost steps. For
        at most half as long again: renewals have their time, too."""
        start_ns = self.clock()
        latest_ns = until_ns + max(0, until_ns - start_ns) // 2
        while not self._stopping and (now_ns := self.clock()) < latest_ns:
            event = self.feed.read(max(0.0, (until_ns - now_ns) / 1e9))
            self.counts.feed_losses = self.feed.losses
            if event is not None:
                self.state.take(event)
            elif self.clock() >= until_ns:
                return

    def turn(self) -> float | None:
        """Decide and act. Returns when to do so again, s, where that is soon. Raises `OwnedError` as `run`
        does.
        """
        self._busy = False
        self.state.settle(self.clock())  # whatever the daemon does: it forgets, too
        try:
            status = self.client.status()
        except BusyError as error:  # no reason to give up what is known of the lanes
            self._busy = True
            self._fail(str(error))
        except ControlError as error:
            self._fail(str(error))
            self.state.release(self.clock())
            return None
        else:
            self.holder.knows_owners = "owner" in status.gate.model_fields_set
            self.state.update(status.lanes)
            owner = status.gate.owner
            if (
                self.wait
                and not self.take_over
                and not self.dry_run
                and owner
                and owner.instance != self.holder.instance
            ):
                # Asking for it all the same would count as a refusal each time.
                self.counts.owned += 1
                self._tell(
                    "gate-owned", f"the gate is owned by {owner.comm} (pid {owner.pid}): waiting for it"
                )
                return None
        decided_ns = self.clock()
        decision = self.policy.decide(self.state, decided_ns)
        if not decision.holds:
            self.state.release(self.clock())  # before it is sent: what comes after is not alone
        # Only what the daemon has accepted holds anything.
        if self.act(decision) and decision.holds:
            assert decision.gate is not None
            self.state.hold(decided_ns, decision.gate.lease_s)
        else:
            self.state.release(self.clock())
        return decision.again_s

    def act(self, decision: Decision) -> bool:
        """Send what was decided, and log it when it is news. Whether the daemon took it."""
        gate = decision.gate
        self.doubting = decision.doubt
        if decision.doubt is not None:
            self.counts.doubtful += 1
            self.doubts[decision.doubt] += 1
        reply: GateStatus | None = None
        try:
            if self.dry_run:
                pass
            elif gate is not None:
                reply = self.holder.set(gate, renew=not decision.holds)
                self.counts.decisions += 1
            elif self.holder.knows_owners:
                self.holder.set(SetGate(policy="transparent", lease_s=self.lease_s, keep=True))
            else:
                self.holder.release()
        except OwnedError as error:
            self.counts.owned += 1
            self._last = None
            if not self.wait:
                raise
            self._tell("gate-owned", str(error))
            return False
        except ControlError as error:
            self._fail(str(error))
            return False
        if self._trouble and not self._busy:
            self._trouble = ""
            self.log("daemon-answers")
        news: tuple[object, ...] = (decision.doubt or decision.why,)
        if gate is not None:
            lanes, targets = (
                tuple(sorted((by_lane or {}).items())) for by_lane in (gate.lanes, gate.targets_us)
            )
            news = (gate.policy, gate.window_us, gate.decode_target_us, lanes, targets)
        if news == self._last:
            return not self.dry_run
        self._last = news
        self.counts.changes += gate is not None
        told = {"type", *SetGate.later_fields}
        self.log(
            "decision",
            what=gate.model_dump(exclude=told) if gate is not None else None,
            why=decision.why,
            **({"dry_run": True} if self.dry_run else {}),
            decisions=self.counts.decisions,
            expired_leases=reply.expired_leases if reply is not None else None,
            **decision.evidence,
            **decision.details(),
        )
        return not self.dry_run

    def log(self, event: str, **fields: object) -> None:
        """Write one JSON object a line; an output that takes nothing does not end the controller."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json_text({"time": now, "event": event, **fields}, default=str)
        try:
            print(line, file=self.out, flush=True)
        except (OSError, ValueError) as error:
            # Decode is protected all the same. Our own output stream fails once, then takes nothing more.
            self.log_failed = True
            output.say(f"{error}; the controller goes on without it")

    def _fail(self, text: str) -> None:
        self.counts.failures += 1
        self._tell("daemon-trouble", text)

    def _tell(self, event: str, text: str) -> None:
        """Log a trouble with the daemon, once."""
        # How long is left, and the like, makes no new trouble.
        if event == "gate-owned" and self._trouble.startswith(event):
            return
        if self._trouble != (known := f"{event} {text}"):
            self._trouble = known
            self._log_trouble(event, text)

    def _on_feed_trouble(self, text: str) -> None:
        self._log_trouble("feed-lost", text)

    def _log_trouble(self, event: str, text: str) -> None:
        now_ns = self.clock()
        self._trouble_lines = [at for at in self._trouble_lines if now_ns - at < 60 * 10**9]
        if len(self._trouble_lines) >= TROUBLE_LINES:
            self._untold += 1
            return
        self._trouble_lines.append(now_ns)
        untold = {"untold": self._untold} if self._untold else {}
        self._untold = 0
        self.log(event, error=text, **untold)
        self.say(text)
