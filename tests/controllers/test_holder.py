"""The lease is renewed in time, whatever the loop and the daemon do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from controllers.holder import RENEWALS, STUCK_S, GateHolder, request_timeout_s
from flexnpu.control.client import ControlClient, ControlError, OwnedError, RefusedError
from flexnpu.control.messages import ControllerInfo, GateStatus, SetGate

LEASE_S = 2.0
GATE = SetGate(policy="protect-decode", lease_s=LEASE_S, lanes={1: "decode"})
REPLY = GateStatus(
    policy="protect-decode",
    window_us=300,
    decode_target_us=None,
    overlap_slowdown=1,
    lease_left_s=2,
    expired_leases=0,
)


class Daemon(ControlClient):
    """Takes settings; `hook` may raise."""

    def __init__(self, hook: Callable[[SetGate], None] = lambda request: None) -> None:
        super().__init__(Path("npu0.ctl"))
        self.sent: list[SetGate] = []
        self.hook = hook

    def set_gate(self, request: SetGate) -> GateStatus:
        self.sent.append(request)
        self.hook(request)
        return REPLY


class Clock:
    ns = 10**12

    def __call__(self) -> int:
        return self.ns

    def pass_s(self, seconds: float) -> None:
        self.ns += int(seconds * 1e9)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


@pytest.fixture
def holder(daemon: Daemon, clock: Clock) -> GateHolder:
    return GateHolder(daemon, LEASE_S, clock=clock)


def test_the_lease_outlasts_slow_answers() -> None:
    """A renewal that is sent after a quarter of the lease and fails leaves time for another two."""
    for lease_s in (0.5, 2.0, 4.0, 60.0):
        assert lease_s / RENEWALS + request_timeout_s(lease_s) <= lease_s / 2
        assert request_timeout_s(lease_s) <= 2


def test_a_late_loop_is_stood_in_for(holder: GateHolder, daemon: Daemon, clock: Clock) -> None:
    holder.set(GATE)
    assert not holder.renew_if_due()
    clock.pass_s(LEASE_S / RENEWALS + 0.01)
    assert holder.renew_if_due()
    assert not holder.renew_if_due()
    assert daemon.sent == [GATE, GATE]
    assert holder.renewals == 1


def test_a_loop_that_hangs_loses_the_gate(holder: GateHolder, daemon: Daemon, clock: Clock) -> None:
    holder.set(GATE)
    while holder.renew_if_due() or clock.ns < 10**12 + int(100e9):
        clock.pass_s(LEASE_S / RENEWALS)
    assert STUCK_S * RENEWALS / LEASE_S - 1 <= holder.renewals <= STUCK_S * RENEWALS / LEASE_S


def test_a_lease_that_ran_out_is_not_renewed(holder: GateHolder, daemon: Daemon, clock: Clock) -> None:
    """As after SIGSTOP: what was decided then may be wrong by now."""
    holder.set(GATE)
    clock.pass_s(LEASE_S)
    assert not holder.renew_if_due()
    assert len(daemon.sent) == 1
    holder.set(GATE)
    clock.pass_s(LEASE_S / 2)
    assert holder.renew_if_due()


def test_a_renewal_that_fails_is_tried_again(holder: GateHolder, daemon: Daemon, clock: Clock) -> None:
    holder.set(GATE)

    def fail(request: SetGate) -> None:
        raise ControlError("late")

    daemon.hook = fail
    tries = 0
    for _ in range(20):
        clock.pass_s(0.1)
        try:
            assert not holder.renew_if_due()
        except ControlError:
            tries += 1
    assert tries == 3, "while the lease runs, and no more"


def test_nothing_is_renewed_before_the_first_setting_and_after_the_release(
    holder: GateHolder, daemon: Daemon, clock: Clock
) -> None:
    clock.pass_s(5)
    assert not holder.renew_if_due()
    holder.release()
    assert daemon.sent == []
    holder.set(GATE)
    holder.release()
    holder.release()
    assert [gate.policy for gate in daemon.sent] == ["protect-decode", "transparent"]
    clock.pass_s(LEASE_S / 2)
    assert not holder.renew_if_due()


def test_what_may_have_been_heard_is_given_back(holder: GateHolder, daemon: Daemon) -> None:
    def no_answer(request: SetGate) -> None:
        raise ControlError("no answer")

    daemon.hook = no_answer
    with pytest.raises(ControlError):
        holder.set(GATE)
    holder.release()
    assert [gate.policy for gate in daemon.sent] == ["protect-decode", "transparent"]


def test_a_lane_that_has_gone_does_not_cost_the_lease(holder: GateHolder, daemon: Daemon) -> None:
    def refuse(request: SetGate) -> None:
        if request.lanes:
            raise RefusedError("unknown-lane", "lane 1: no such lane")

    daemon.hook = refuse
    holder.set(GATE)
    assert [gate.lanes for gate in daemon.sent] == [{1: "decode"}, {}]


def test_it_says_who_it_is_to_a_daemon_that_asks(daemon: Daemon) -> None:
    holder = GateHolder(daemon, LEASE_S, counts=lambda: {"steps": 3}, take_over=True)
    holder.set(GATE)
    assert daemon.sent[-1] == GATE, "a daemon of an older version would refuse more"
    holder.knows_owners = True

    def owned(request: SetGate) -> None:
        raise OwnedError("owned", "another's")

    info = ControllerInfo(instance=holder.instance, counts={"steps": 3})
    holder.set(GATE)
    assert daemon.sent[-1].controller == info
    assert not daemon.sent[-1].take_over, "taken once: who takes it back is not fought"
    daemon.hook = owned
    with pytest.raises(OwnedError):
        holder.set(GATE)


def test_taking_over_is_asked_for_until_it_is_had(daemon: Daemon) -> None:
    holder = GateHolder(daemon, LEASE_S, take_over=True)
    holder.knows_owners = True

    def fail(request: SetGate) -> None:
        raise ControlError("gone")

    daemon.hook = fail
    with pytest.raises(ControlError):
        holder.set(GATE)
    daemon.hook = lambda request: None
    holder.set(GATE)
    holder.set(GATE)
    assert [gate.take_over for gate in daemon.sent] == [True, True, False]


def test_the_thread_renews_while_the_loop_waits_for_a_status() -> None:
    """A loop that does not come back for long: its lease does not run out meanwhile."""
    enough = threading.Event()

    def count(request: SetGate) -> None:
        if len(taker.sent) >= 4:
            enough.set()

    taker = Daemon(count)
    holder = GateHolder(taker, 5.0)
    holder.set(GATE)
    # Real time; as the lease is never short of it, a slow host makes this longer and not fail.
    holder._lease_ns = 10**9
    holder._accepted_ns = time.monotonic_ns() + 3600 * 10**9
    holder.start()
    assert enough.wait(60)
    holder.close()
    assert taker.sent[-1].policy == "transparent"
