"""The loop around a policy, with a daemon and a feed that fail now and then."""

from __future__ import annotations

import io
import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from controllers.loop import RENEWALS, Loop
from controllers.policies import Decision
from controllers.state import ControllerState
from flexnpu.control.client import ControlClient, ControlError, RefusedError
from flexnpu.control.messages import DaemonStatus, GateStatus, SetGate
from probes.feed.events import Losses
from probes.feed.socket import FeedError
from tests.collectors.scripted import step

GATE = GateStatus(
    policy="protect-decode",
    window_us=300,
    decode_target_us=None,
    overlap_slowdown=1,
    lease_left_s=2,
    expired_leases=0,
)
STATUS = DaemonStatus(
    version="0",
    pid=1,
    device=0,
    soc="x",
    uptime_s=1,
    sessions=[],
    lanes=[],
    gate=GATE,
    device_busy_us=None,
    counters={},
)


class Daemon(ControlClient):
    def __init__(self) -> None:
        super().__init__(Path("npu0.ctl"))
        self.sent: list[SetGate] = []
        self.trouble: ControlError | None = None

    def status(self) -> DaemonStatus:
        if self.trouble is not None:
            raise self.trouble
        return STATUS

    def set_gate(self, request: SetGate) -> GateStatus:
        if self.trouble is not None:
            raise self.trouble
        self.sent.append(request)
        return GATE


class Clock:
    """Time passes only when somebody waits."""

    def __init__(self) -> None:
        self.ns = 10**12

    def __call__(self) -> int:
        return self.ns


class Feed:
    def __init__(self, clock: Clock, events: list[Any]) -> None:
        self.clock = clock
        self.events = deque(events)
        self.ended = False
        self.closed = False

    def read(self, timeout_s: float | None = None) -> Any:
        assert timeout_s is not None
        assert timeout_s > 0
        if not self.events:
            self.clock.ns += int(timeout_s * 1e9) + 1
            return None
        event = self.events.popleft()
        if isinstance(event, Exception):
            raise event
        if event == "end":
            self.ended = True
            return None
        return event

    def close(self) -> None:
        self.closed = True


class Fixed:
    """Decides what it is told to, and remembers what it saw."""

    name = "fixed"

    def __init__(self) -> None:
        self.decision = Decision(SetGate(policy="protect-decode", lease_s=2), "told so")
        self.steps = 0

    def decide(self, state: ControllerState, now_ns: int) -> Decision:
        self.steps = state.steps + state.unmapped
        return self.decision


class Bench:
    def __init__(self, *events: Any) -> None:
        self.clock = Clock()
        self.feeds = [Feed(self.clock, list(events))]
        self.connects = 0
        self.policy = Fixed()
        self.daemon = Daemon()
        self.out = io.StringIO()
        self.loop = Loop(self.policy, self.daemon, self.connect, 2.0, self.out, self.clock)

    def connect(self) -> Feed:
        self.connects += 1
        if not self.feeds:
            raise FeedError("no tracer")
        return self.feeds.pop(0)

    def rounds(self, n: int) -> None:
        for _ in range(n):
            self.loop.turn()
            self.loop.listen(self.clock.ns + int(2e9 / RENEWALS))

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.getvalue().splitlines()]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bench]:
    def make(*events: Any) -> Bench:
        made = Bench(*events)

        def sleep(seconds: float) -> None:
            made.clock.ns += int(seconds * 1e9) + 1

        monkeypatch.setattr("controllers.loop.time.sleep", sleep)
        return made

    return make


def test_it_renews_within_the_lease_and_logs_only_news(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.rounds(9)
    assert len(b.daemon.sent) == 9
    assert b.loop.counts.decisions == 9
    assert b.loop.counts.changes == 1
    decisions = [line for line in b.log() if line["event"] == "decision"]
    assert len(decisions) == 1
    assert decisions[0]["why"] == "told so"
    assert decisions[0]["what"]["lease_s"] == 2
    b.policy.decision = Decision(None, "enough")
    b.rounds(3)
    assert [gate.policy for gate in b.daemon.sent[9:]] == ["transparent"], "withdrawn once, and no renewal"
    assert [line["what"] for line in b.log() if line["event"] == "decision"][1:] == [None]


def test_it_withdraws_its_policy_when_it_stops(bench: Callable[..., Bench]) -> None:
    b = bench()
    read = b.feeds[0].read

    def stop_after_a_while(timeout_s: float | None = None) -> Any:
        if b.loop.counts.decisions == 3:
            b.loop.stop()
        return read(timeout_s)

    b.feeds[0].read = stop_after_a_while  # type: ignore[method-assign]
    b.loop.run()
    assert [gate.policy for gate in b.daemon.sent] == ["protect-decode"] * 3 + ["transparent"]
    assert b.log()[-1]["event"] == "stopped"
    assert b.log()[-1]["decisions"] == 3


def test_steps_reach_the_picture_and_other_events_do_no_harm(bench: Callable[..., Bench]) -> None:
    b = bench(step(1, 2), Losses(t_ns=1, source="steps", counts={}), step(1, 2))
    b.rounds(2)
    assert b.policy.steps == 2


def test_a_daemon_in_trouble_is_logged_once_and_survived(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.daemon.trouble = ControlError("gone")
    b.rounds(5)
    assert b.loop.counts.failures == 5
    assert b.loop.counts.decisions == 0
    b.daemon.trouble = None
    b.rounds(1)
    assert b.loop.counts.decisions == 1
    events = [line["event"] for line in b.log()]
    assert events.count("daemon-trouble") == 1
    assert events.count("daemon-answers") == 1


def test_a_refusal_is_not_the_end(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.daemon.trouble = RefusedError("unknown-lane", "lane 3: no such lane")
    b.loop.act(b.policy.decision)
    assert b.loop.counts.failures == 1


@pytest.mark.parametrize("end", ["end", FeedError("sent a line that is no event")])
def test_a_feed_that_ends_is_sought_again(bench: Callable[..., Bench], end: Any) -> None:
    b = bench(step(1, 2), end)
    b.feeds.append(Feed(b.clock, [step(1, 2)]))
    first = b.feeds[0]
    b.rounds(8)
    assert first.closed
    assert b.connects == 2
    assert b.loop.counts.feed_losses == 1
    assert b.policy.steps == 2
    assert len(b.daemon.sent) == 8


def test_a_feed_that_stays_away_costs_a_try_a_second(bench: Callable[..., Bench]) -> None:
    b = bench("end")
    b.rounds(20)  # ten seconds
    assert 9 <= b.connects <= 13
    assert [line["event"] for line in b.log()].count("feed-lost") == 2  # it ended; there is none
