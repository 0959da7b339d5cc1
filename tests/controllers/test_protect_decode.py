"""Roles, targets and decisions from steps as the probes publish them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from controllers.alone import MOST_S
from controllers.policies import Decision
from controllers.policies.protect_decode import ProtectDecode
from controllers.state import MEMORY_S, ControllerState
from flexnpu.control.messages import SetGate
from probes.feed.events import Phase, Step, StepBegin
from tests.collectors import scripted
from tests.controllers.lanes import lane

MS = 1_000_000
CHAT, FLOOD = (100, 0x10), (200, 0x20)


def step(key: tuple[int, int], phase: Phase, start_ms: float, ms: float, tokens: int = 1) -> Step:
    pid, stream = key
    return scripted.step(
        int(start_ms * MS), int((start_ms + ms) * MS), phase, pid=pid, stream=stream, tokens=tokens
    )


def begin(key: tuple[int, int], phase: str, at_ms: float) -> StepBegin:
    return StepBegin(
        t_ns=int(at_ms * MS),
        pid=key[0],
        comm="python3",
        stream=key[1],
        phase=phase,  # type: ignore[arg-type]
        tokens=None,
        batch=None,
        evidence="test",
        confidence=1.0,
    )


def chat(
    start_ms: float, requests: int, outputs: int = 30, prefill_ms: float = 15, ms: float = 10
) -> list[Step]:
    """Short prefills, each followed by decode steps with 2 ms between them."""
    steps, now = [], start_ms
    for _ in range(requests):
        steps.append(step(CHAT, "prefill", now, prefill_ms, 40))
        now += prefill_ms + 2
        for _ in range(outputs):
            steps.append(step(CHAT, "decode", now, ms))
            now += ms + 2
    return steps


def flood(start_ms: float, requests: int, outputs: int = 0, ms: float = 80) -> Iterator[Step]:
    now = start_ms
    for _ in range(requests):
        yield step(FLOOD, "prefill", now, ms, 1000)
        now += ms + 2
        for _ in range(outputs):
            yield step(FLOOD, "decode", now, 12)
            now += 14


def state_of(*steps: Step) -> ControllerState:
    made = ControllerState()
    made.update([lane(1, CHAT), lane(2, FLOOD)])
    for one in sorted(steps, key=lambda s: s.t_end_ns):
        made.add(one)
    return made


def settled(*steps: Step, now_ms: float | None = None) -> tuple[ControllerState, int]:
    made = state_of(*steps)
    last = max((one.t_end_ns for one in steps), default=0)
    now = int(now_ms * MS) if now_ms is not None else last
    made.settle(now)
    return made, now


def roles(made: ControllerState) -> tuple[str, str]:
    return made.lanes[CHAT].role, made.lanes[FLOOD].role


def after_hold(policy: ProtectDecode, made: ControllerState, now: int) -> Decision:
    """What is decided once prefill was held, with nothing to be seen meanwhile."""
    assert policy.decide(made, now).holds
    return policy.decide(made, now + int(MOST_S * 1e9))


def test_no_steps_no_action() -> None:
    made, now = settled(now_ms=1000)
    assert ProtectDecode(lease_s=2).decide(made, now).gate is None


def test_a_flood_beside_a_chat() -> None:
    made, now = settled(*chat(0, 5), *flood(0, 20))
    assert roles(made) == ("decode", "prefill")
    decision = ProtectDecode(lease_s=2, window_us=250, target_us=20000).decide(made, now)
    assert decision.gate == SetGate(
        policy="protect-decode",
        window_us=250,
        decode_target_us=20000,
        overlap_slowdown=1.0,
        lease_s=2,
        lanes={1: "decode", 2: "prefill"},
    )
    assert decision.evidence["target_from"] == "given"


def test_the_gates_times_are_handed_on() -> None:
    made, now = settled(*chat(0, 5), *flood(0, 20))
    gate = ProtectDecode(lease_s=2, max_hold_us=40_000, decode_idle_us=80_000).decide(made, now).gate
    assert gate is not None
    assert (gate.max_hold_us, gate.decode_idle_us) == (40_000, 80_000)


@pytest.mark.parametrize("outputs", [0, 4, 16, 30])
def test_a_flood_that_also_decodes_is_still_the_flood(outputs: int) -> None:
    made, _ = settled(*chat(0, 10), *flood(0, 12, outputs))
    assert roles(made) == ("decode", "prefill")


def test_two_chats_are_both_decode() -> None:
    second = [
        step(FLOOD, s.phase, s.t_start_ns / MS + 3, s.duration_us / 1e3, s.tokens or 1) for s in chat(0, 5)
    ]
    made, now = settled(*chat(0, 5), *second)
    assert roles(made) == ("decode", "decode")
    decision = ProtectDecode(lease_s=2).decide(made, now)
    assert decision.gate is None
    assert "no prefill lane" in decision.why


def test_a_role_does_not_flip_at_the_border() -> None:
    """Odds that wander between the two thresholds leave the role as it is."""
    made = state_of(*flood(0, 10))
    made.update([lane(2, FLOOD)])
    made.settle(900 * MS)
    assert made.lanes[FLOOD].role == "prefill"
    now, flips = 1000.0, 0
    for i in range(100):
        before = made.lanes[FLOOD].role
        made.add(step(FLOOD, "prefill", now, 10))
        made.add(step(FLOOD, "decode", now + 10, 10 + i % 3))
        now += 25
        made.settle(int(now * MS))
        flips += made.lanes[FLOOD].role != before
    assert flips == 0


def test_the_target_comes_from_steps_alone() -> None:
    # Ten seconds of chat by itself, then a flood under which its steps take five times as long.
    alone = chat(0, 25, ms=10)
    start = alone[-1].t_end_ns / MS + 50
    made, now = settled(*alone, *chat(start, 2, ms=50), *flood(start, 50))
    assert roles(made)[1] == "prefill"
    decision = ProtectDecode(lease_s=2, factor=1.5).decide(made, now)
    assert decision.gate is not None
    assert decision.gate.decode_target_us == pytest.approx(15_000, rel=0.05)
    assert decision.evidence["target_from"] == "steps alone"


def test_steps_beside_a_prefill_that_still_runs_are_not_taken_for_alone() -> None:
    made = state_of(*flood(0, 3))
    for one in chat(10_000, 1, outputs=20, ms=50):
        made.add(one)
    # It began in the middle, and is longer than any before.
    made.begin(begin(FLOOD, "prefill", 10_500))
    last = made.lanes[CHAT].last_step_ns
    for later in (0, 1000, 5000):
        made.settle(last + later * MS)
    assert len(made.lanes[CHAT].solo) == 9, "only the steps before the prefill began"
    made.add(step(FLOOD, "prefill", 10_500, 7000, 1000))
    made.settle(last + 20_000 * MS)
    assert len(made.lanes[CHAT].solo) == 9


def test_a_feed_without_beginnings_settles_late() -> None:
    """Until then nothing is settled that a prefill as long as those before could touch."""
    made = state_of(*flood(0, 3, ms=200), *chat(10_000, 1, outputs=20, ms=50))
    last = made.lanes[CHAT].last_step_ns
    made.settle(last)
    early = len(made.lanes[CHAT].solo)
    assert 0 < early < 20
    made.add(step(FLOOD, "prefill", last / MS - 150, 150, 1000))
    made.settle(last + 1000 * MS)
    # The last three steps of 50 ms, 2 ms apart, lie beside it.
    assert len(made.lanes[CHAT].solo) == 17


def test_without_steps_alone_the_least_slowed_are_the_guess() -> None:
    made, now = settled(*chat(0, 5, ms=40, prefill_ms=40), *flood(0, 100))
    decision = after_hold(ProtectDecode(lease_s=2, factor=1.5), made, now)
    assert decision.gate is not None
    assert decision.evidence["target_from"] == "least slowed steps"
    assert decision.gate.decode_target_us == pytest.approx(60_000, rel=0.05)


def test_few_steps_are_no_guess() -> None:
    """The least of a handful may be a step that was cut when its process was found."""
    made, now = settled(step(CHAT, "decode", 0, 2), *chat(10, 1, outputs=8, ms=40), *flood(0, 20))
    decision = after_hold(ProtectDecode(lease_s=2), made, now)
    assert decision.gate is not None
    assert decision.evidence["target_from"] == "left to the gate"
    assert decision.gate.decode_target_us is None


def test_a_target_is_kept_while_it_hardly_changes() -> None:
    policy = ProtectDecode(lease_s=2)
    targets = set()
    for ms in (10.0, 10.3, 9.8, 10.5):
        made, now = settled(*chat(0, 10, ms=ms), *flood(20_000, 10))
        made.settle(now + 1_000 * MS)
        decision = policy.decide(made, now)
        assert decision.gate is not None
        targets.add(decision.gate.decode_target_us)
    assert len(targets) == 1


def test_silence_ends_it() -> None:
    made, now = settled(*chat(0, 5), *flood(0, 20))
    policy = ProtectDecode(lease_s=2)
    assert policy.decide(made, now).gate is not None
    later = now + int((MEMORY_S + 1) * 1e9)
    made.settle(later)
    assert policy.decide(made, later).gate is None


def test_steps_of_other_streams_are_counted_and_left_out() -> None:
    made = state_of(step((999, 1), "decode", 0, 10))
    assert made.unmapped == 1
    assert made.steps == 0


def test_a_lane_that_goes_is_forgotten() -> None:
    made, now = settled(*chat(0, 5), *flood(0, 20))
    made.update([lane(1, CHAT)])
    made.settle(now)
    assert ProtectDecode(lease_s=2).decide(made, now).gate is None


def said(*steps: Step) -> tuple[ControllerState, int]:
    """As `settled`, and the daemon hears what each step does."""
    made, now = settled(*steps)
    made.update(lane(n, key).model_copy(update={"decode_steps": 1}) for n, key in ((1, CHAT), (2, FLOOD)))
    return made, now


def two_chats() -> list[Step]:
    second = [
        step(FLOOD, s.phase, s.t_start_ns / MS + 3, s.duration_us / 1e3, s.tokens or 1) for s in chat(0, 5)
    ]
    return [*chat(0, 5), *second]


def test_where_steps_say_what_they_do_a_lane_may_do_both() -> None:
    """Each decodes, and its short prefills are beside the other's decode steps."""
    made, now = said(*two_chats())
    decision = ProtectDecode(lease_s=2, target_us=20_000).decide(made, now)
    assert decision.gate is not None
    assert decision.evidence["decode_lanes"] == [1, 2]
    assert decision.evidence["prefill_lanes"] == [1, 2]


def test_a_lane_is_not_protected_from_itself() -> None:
    made, now = settled(*chat(0, 5))
    made.update([lane(1, CHAT).model_copy(update={"decode_steps": 100, "prefill_steps": 5})])
    decision = ProtectDecode(lease_s=2, target_us=20_000).decide(made, now)
    assert decision.gate is None
    assert "no prefill lane" in decision.why


def test_lanes_whose_steps_differ_have_targets_of_their_own() -> None:
    # Both decode alone for a while, one with steps three times as long; then one prefills.
    slow = [step(FLOOD, "decode", 4_000 + i * 35, 30) for i in range(40)]
    made, now = said(*chat(0, 8), *slow, *flood(6_000, 3, ms=20))
    made.settle(now + 1_000 * MS)
    decision = ProtectDecode(lease_s=2, factor=1.5).decide(made, now)
    assert decision.gate is not None
    assert decision.gate.decode_target_us == pytest.approx(45_000, rel=0.05)
    assert decision.gate.targets_us == {
        1: pytest.approx(15_000, rel=0.05),
        2: pytest.approx(45_000, rel=0.05),
    }
