"""The loop around a policy, with a daemon and a feed that fail now and then."""

from __future__ import annotations

import io
import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.controller_turn import lane_status
from controllers.holder import RENEWALS
from controllers.loop import TROUBLE_LINES, Loop
from controllers.policies import Decision
from controllers.state import ControllerState
from flexnpu.control.client import BusyError, ControlClient, ControlError, OwnedError, RefusedError
from flexnpu.control.messages import DaemonStatus, GateOwner, GateStatus, SetGate
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
        self.busy: BusyError | None = None
        self.refusal: OwnedError | None = None
        self.answer = STATUS

    def status(self) -> DaemonStatus:
        for error in (self.trouble, self.busy):
            if error is not None:
                raise error
        return self.answer

    def set_gate(self, request: SetGate) -> GateStatus:
        for error in (self.trouble, self.refusal):
            if error is not None:
                raise error
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
        self.loop = Loop(self.policy, self.daemon, self.connect, 2.0, self.out, self.clock, self.pause)

    def pause(self, seconds: float) -> None:
        self.clock.ns += int(seconds * 1e9) + 1

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
def bench() -> Callable[..., Bench]:
    return Bench


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


def test_steps_reach_the_state_and_other_events_do_no_harm(bench: Callable[..., Bench]) -> None:
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


def known(owner: GateOwner | None = None) -> DaemonStatus:
    """Status of a daemon that knows owners."""
    gate = GateStatus.model_validate({**GATE.model_dump(), "owner": owner})
    return STATUS.model_copy(update={"gate": gate, "lanes": [lane_status(0)]})


def test_an_idle_controller_keeps_the_gate_and_gives_it_back(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.daemon.answer = known()
    b.policy.decision = Decision(None, "nothing to do")
    b.rounds(3)
    b.loop.holder.close()
    assert [(gate.policy, gate.keep) for gate in b.daemon.sent] == [("transparent", True)] * 3 + [
        ("transparent", False)
    ]
    assert len({gate.controller.instance for gate in b.daemon.sent if gate.controller}) == 1


def test_another_owner_ends_it_with_its_name(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.daemon.refusal = OwnedError("owned", "the gate is owned by x (pid 7, user 0) for another 1.2 s")
    with pytest.raises(OwnedError, match="pid 7"):
        b.loop.run()
    assert b.log()[-1]["event"] == "stopped"
    assert b.log()[-1]["owned"] == 1


def test_one_that_waits_says_so_once_and_sets_the_gate_when_it_is_free(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.loop.wait = True
    for left in range(8):
        b.daemon.refusal = OwnedError("owned", f"the gate is owned by x for another 1.{left} s")
        b.rounds(1)
    b.daemon.refusal = None
    b.rounds(2)
    assert len(b.daemon.sent) == 2
    events = [line["event"] for line in b.log()]
    assert events.count("gate-owned") == 1
    assert events.count("decision") == 1
    assert b.loop.counts.failures == 0
    assert b.loop.counts.owned == 8


def test_one_that_waits_does_not_ask_for_what_another_has(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.loop.wait = True
    b.daemon.answer = known(GateOwner(pid=7, uid=0, comm="x", instance="other", lease_left_s=1))
    b.rounds(4)
    assert b.daemon.sent == []
    assert [line["error"] for line in b.log() if line["event"] == "gate-owned"] == [
        "the gate is owned by x (pid 7): waiting for it"
    ]
    b.daemon.answer = known()
    b.rounds(1)
    assert len(b.daemon.sent) == 1
    ours = GateOwner(pid=8, uid=0, comm="x", instance=b.loop.holder.instance, lease_left_s=1)
    b.daemon.answer = known(ours)
    b.rounds(1)
    assert len(b.daemon.sent) == 2


@pytest.mark.parametrize("how", ["gone", "another's"])
def test_steps_are_forgotten_whatever_the_daemon_does(bench: Callable[..., Bench], how: str) -> None:
    b = bench()
    b.loop.wait = True
    b.daemon.answer = known()
    b.rounds(1)
    if how == "gone":
        b.daemon.trouble = ControlError("gone")
    else:
        b.daemon.answer = known(GateOwner(pid=7, uid=0, comm="x", instance="other", lease_left_s=1))
    for _ in range(200):
        now = b.clock.ns
        b.loop.state.add(step(now - 1000, now, "prefill", pid=1000, stream=16))
        b.rounds(1)
    assert len(b.loop.state._prefills) < 100
    assert len(b.loop.state.lanes[1000, 16].prefill) < 100


def test_a_busy_data_plane_costs_no_lane_and_no_lease(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.daemon.answer = known()
    b.rounds(1)
    assert len(b.loop.state.lanes) == 1
    b.daemon.busy = BusyError("busy", "busy: no answer from the data plane within 1 s", None)
    b.rounds(5)
    assert len(b.loop.state.lanes) == 1
    assert len(b.daemon.sent) == 6
    b.daemon.busy = None
    b.rounds(1)
    events = [line["event"] for line in b.log()]
    assert events.count("daemon-trouble") == events.count("daemon-answers") == 1


def test_troubles_that_come_and_go_are_told_a_bounded_number_of_times(bench: Callable[..., Bench]) -> None:
    b = bench()
    for i in range(100):
        b.daemon.trouble = ControlError(f"trouble {i}")
        b.rounds(1)
    told = [line for line in b.log() if line["event"] == "daemon-trouble"]
    assert len(told) == TROUBLE_LINES
    b.clock.ns += 61 * 10**9
    b.rounds(1)
    b.daemon.trouble = ControlError("another")
    b.rounds(1)
    assert [line["untold"] for line in b.log() if "untold" in line] == [100 - TROUBLE_LINES]


def test_a_late_turn_costs_no_steps(bench: Callable[..., Bench]) -> None:
    """What has come by the end of the time to listen is taken in, however slowly that goes."""
    b = bench(*[step(1, 2)] * 50)
    taken = b.loop.state.take

    def take(event: Any) -> None:
        b.clock.ns += 5_000_000
        taken(event)

    b.loop.state.take = take  # type: ignore[method-assign]
    b.loop.listen(b.clock.ns + 200_000_000)
    assert b.loop.state.unmapped == 50


def test_a_dry_run_decides_and_sets_nothing(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.loop.dry_run = True
    b.rounds(5)
    b.loop.holder.close()
    assert b.daemon.sent == []
    (decision,) = [line for line in b.log() if line["event"] == "decision"]
    assert decision["dry_run"] is True
    assert decision["what"]["policy"] == "protect-decode"
