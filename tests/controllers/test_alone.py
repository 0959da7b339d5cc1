"""Prefill is held for a moment to see decode steps alone: when, for how long, and what is made of it."""

from __future__ import annotations

import pytest

from benchmarks.controller_turn import lane_status
from controllers.alone import AGAIN_S, MOST_S, STEPS
from controllers.policies import Decision
from controllers.policies.protect_decode import ProtectDecode
from controllers.state import HOLD_SETTLES_NS, MIN_STEPS, SOLO_S, ControllerState
from flexnpu.control.client import ControlError
from flexnpu.control.messages import MAX_HOLD_US, SetGate
from tests.controllers.test_loop import Bench
from tests.controllers.test_protect_decode import CHAT, FLOOD, MS, begin, chat, flood, settled, step

S = 1000 * MS


def flooded() -> tuple[ControllerState, int]:
    """A flood that was there first: no decode step ran alone, and each took 40 ms."""
    return settled(*chat(0, 5, ms=40, prefill_ms=40), *flood(0, 100))


def alone(made: ControllerState, start_ns: int, steps: int, ms: float = 12) -> int:
    """Decode steps beside a prefill step that is open, but held; the end of the last."""
    made.begin(begin(CHAT, "decode", start_ns / MS))
    for i in range(steps):
        made.add(step(CHAT, "decode", start_ns / MS + i * (ms + 1), ms))
    return made.lanes[CHAT].last_step_ns


def test_amid_a_flood_prefill_is_held_until_enough_was_seen() -> None:
    made, now = flooded()
    policy = ProtectDecode(lease_s=5, factor=1.5)
    hold = policy.decide(made, now)
    assert hold.holds
    assert hold.again_s is not None
    assert hold.gate is not None
    assert hold.gate.max_hold_us == MAX_HOLD_US
    assert hold.gate.decode_target_us == 1.0
    assert hold.gate.lease_s <= 1.0, "a controller that hangs now must not starve prefill"
    made.hold(now, hold.gate.lease_s)
    now = alone(made, now + HOLD_SETTLES_NS, STEPS - 1)
    made.settle(now)
    assert policy.decide(made, now).holds, "not yet"
    now = alone(made, now + MS, 1)
    made.settle(now)
    seen = policy.decide(made, now)
    assert not seen.holds
    assert seen.gate is not None
    assert seen.evidence["target_from"] == "steps alone"
    assert seen.gate.decode_target_us == pytest.approx(18_000, rel=0.01)
    assert seen.gate.lease_s == 5


def test_a_hold_that_shows_nothing_ends_and_is_not_tried_again_soon() -> None:
    made, now = flooded()
    policy = ProtectDecode(lease_s=5)
    assert policy.decide(made, now).holds
    held = [policy.decide(made, now + int(s * S)).holds for s in (0.2, MOST_S, MOST_S + 1, AGAIN_S - 1)]
    assert held == [True, False, False, False]
    over = policy.decide(made, now + int(MOST_S * S))
    assert over.evidence["target_from"] == "least slowed steps"
    now += int(AGAIN_S * S)
    for one in (*chat(now / MS, 2, ms=40), *flood(now / MS, 60)):
        made.add(one)
    made.settle(now := made.lanes[CHAT].last_step_ns)
    assert policy.decide(made, now).holds


def test_who_was_seen_alone_lately_is_not_held_for() -> None:
    calm = chat(0, 20)
    start = calm[-1].t_end_ns / MS
    made, now = settled(*calm, *chat(start, 2, ms=50), *flood(start, 30))
    policy = ProtectDecode(lease_s=5)
    assert not policy.decide(made, now).holds
    # The flood lasts: in the end nobody knows any more.
    now += int(AGAIN_S * S)
    for one in (*chat(now / MS, 2, ms=50), *flood(now / MS, 30)):
        made.add(one)
    made.settle(now := made.lanes[FLOOD].last_step_ns)
    assert policy.decide(made, now).holds


def test_a_given_target_needs_no_hold() -> None:
    made, now = flooded()
    assert not ProtectDecode(lease_s=5, target_us=20_000).decide(made, now).holds


def test_steps_at_a_holds_edges_do_not_count() -> None:
    made, now = flooded()
    solo = len(made.lanes[CHAT].solo)
    made.hold(now, 1.0)
    made.add(step(CHAT, "decode", now / MS, 70))  # began before prefill in flight had ended
    made.release(now + 200 * MS)
    made.add(step(CHAT, "decode", now / MS + 190, 20))  # ended after the hold
    assert len(made.lanes[CHAT].solo) == solo
    made.add(step(CHAT, "decode", now / MS + 150, 30))  # in it, though it is told late
    assert len(made.lanes[CHAT].solo) == solo + 1


def test_a_hold_ends_with_its_lease() -> None:
    made, now = flooded()
    solo = len(made.lanes[CHAT].solo)
    made.hold(now, 1.0)
    made.add(step(CHAT, "decode", now / MS + 990, 20))
    made.hold(now + 2 * S, 1.0)  # a new one, with an edge of its own
    made.add(step(CHAT, "decode", now / MS + 2010, 20))
    assert len(made.lanes[CHAT].solo) == solo
    made.hold(now + int(2.5 * S), 1.0)  # the same, renewed
    made.add(step(CHAT, "decode", now / MS + 3100, 20))
    assert len(made.lanes[CHAT].solo) == solo + 1


def test_what_steps_took_long_ago_goes_once_there_is_newer() -> None:
    made, now = settled(*chat(0, 20, ms=10), *flood(5_000, 3))
    assert made.lanes[CHAT].solo.quantile_us(0.5) == 10_000
    later = now + int(SOLO_S * S)
    made.settle(later)
    assert len(made.lanes[CHAT].solo) == MIN_STEPS, "better than nothing"
    made.hold(later, 10.0)
    alone(made, later + HOLD_SETTLES_NS, MIN_STEPS, ms=30)
    made.settle(made.lanes[CHAT].last_step_ns)
    assert made.lanes[CHAT].solo.quantile_us(0.5) == 30_000


class Holding:
    """Asks for a hold, soon again."""

    name = "holding"

    def decide(self, state: ControllerState, now_ns: int) -> Decision:
        return Decision(SetGate(policy="protect-decode", lease_s=1.0), "hold", holds=True, again_s=0.1)


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.loop.policy = Holding()
    return made


def told_alone(b: Bench) -> bool:
    """Whether a step that runs from now on counts as alone."""
    b.loop.state.update([lane_status(0)])
    key = next(iter(b.loop.state.lanes))
    before = len(b.loop.state.lanes[key].solo)
    start = b.clock.ns + HOLD_SETTLES_NS
    b.loop.state.add(step(key, "decode", start / MS, 20))
    return len(b.loop.state.lanes[key].solo) > before


def test_only_a_hold_that_the_daemon_took_counts(bench: Bench) -> None:
    bench.daemon.trouble = ControlError("gone")
    bench.rounds(1)
    assert not told_alone(bench)
    bench.daemon.trouble = None
    bench.rounds(1)
    assert told_alone(bench)
    bench.daemon.trouble = ControlError("gone again")
    bench.rounds(1)
    assert not told_alone(bench)


def test_a_hold_is_looked_at_again_soon_and_never_renewed_by_itself(bench: Bench) -> None:
    assert bench.loop.turn() == 0.1
    assert len(bench.daemon.sent) == 1
    bench.clock.ns += 10**9
    assert not bench.loop.holder.renew_if_due()
    assert len(bench.daemon.sent) == 1
