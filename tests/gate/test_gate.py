"""Properties of the dispatch gate, through its Python binding."""

from __future__ import annotations

from collections import defaultdict, deque

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.gate.gates import LONG, MS, Phase, _gate, bucket, drain, pair, protecting


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 1000)), max_size=200))
def test_transparent_is_first_come_first_dispatched(items: list[tuple[int, bool, int]]) -> None:
    gate = _gate.Gate()
    for lane in range(6):
        gate.add_lane(lane)
        gate.set_phase(lane, list((Phase.Unknown, Phase.Prefill, Phase.Decode))[lane % 3])
    now, expected = 1, []
    for ticket, (lane, costed, wait) in enumerate(items):
        now += wait
        gate.enqueue(now, lane, ticket, bucket=bucket(114), costed=costed)
        expected.append((lane, ticket))
    assert [(d.lane, d.ticket) for d in drain(gate, now)] == expected
    assert gate.wake_at(now) == _gate.NEVER


@given(st.integers(1, 10 * MS))
def test_lease_expiry_makes_it_transparent(late: int) -> None:
    gate = pair(target_us=1.0, max_hold_us=1e9)
    gate.set_settings(0, _gate.Settings(enabled=True, lease_until_ns=5 * MS, max_hold_us=1e9))
    gate.enqueue(1000, 2, 0)
    assert [d.lane for d in drain(gate, 1000)] == [2]
    for ticket in range(10):
        gate.enqueue(2000, 1, ticket, bucket=bucket(108))
    assert drain(gate, 2000) == []
    assert gate.stats(1).held_now
    assert gate.wake_at(2000) <= 5 * MS
    gone = drain(gate, 5 * MS + late)
    assert [d.ticket for d in gone] == list(range(10))
    assert gone[0].held_ns == 5 * MS + late - 2000
    assert gate.counters().expired_leases == 1
    # A lease that has run out before it is set is no policy either.
    gate.set_settings(20 * MS, _gate.Settings(enabled=True, lease_until_ns=0))
    assert not gate.policy_active(20 * MS)
    assert gate.counters().expired_leases == 2


def test_a_withdrawn_policy_is_no_expired_lease() -> None:
    gate = pair(target_us=1.0)
    gate.set_settings(MS, _gate.Settings(enabled=False))
    gate.next(2 * LONG)
    assert gate.counters().expired_leases == 0


def test_without_a_decode_lane_nothing_is_held() -> None:
    gate = _gate.Gate()
    gate.add_lane(1)
    gate.set_phase(1, Phase.Prefill)
    gate.set_settings(0, protecting())
    for ticket in range(100):
        gate.enqueue(1, 1, ticket, bucket=bucket(114))
    assert len(drain(gate, 1)) == 100


def test_an_order_only_head_is_never_held() -> None:
    gate = pair(target_us=1.0)
    gate.enqueue(1000, 2, 0)
    gate.enqueue(1000, 1, 0, costed=False)
    gate.enqueue(1000, 1, 1, bucket=bucket(108))
    gate.enqueue(1000, 1, 2, costed=False)
    # The event before the operator goes, the one behind it waits for its turn in the lane.
    assert {(d.lane, d.ticket) for d in drain(gate, 1000)} == {(2, 0), (1, 0)}


def test_what_a_protected_lane_waits_for_is_not_held() -> None:
    gate = pair(target_us=1.0, max_hold_us=1e9)
    gate.enqueue(1000, 2, 0)
    drain(gate, 1000)
    for ticket in range(1, 6):
        gate.enqueue(1000, 1, ticket, bucket=bucket(114))
    assert drain(gate, 1000) == []  # the step is past its target
    assert gate.protects(2, 0)
    assert not gate.protects(1, 3)
    assert gate.inherit(1, 3)
    assert gate.protects(1, 3)
    assert not gate.protects(1, 4)
    assert [d.ticket for d in drain(gate, 2000)] == [1, 2, 3]  # 1.2 ms, whatever the window
    assert not gate.inherit(1, 3)  # said before
    assert not gate.inherit(9, 3)
    assert gate.stats(1).inherited == gate.counters().inherited == 3
    assert gate.stats(1).held_now  # what follows is held as before


def test_what_will_be_waited_for_is_protected_when_it_comes() -> None:
    gate = pair(target_us=1.0, max_hold_us=1e9)
    gate.enqueue(1000, 2, 0)
    drain(gate, 1000)
    assert gate.inherit(1, 2)
    for ticket in range(1, 4):
        gate.enqueue(1000, 1, ticket, bucket=bucket(108))
    assert [d.ticket for d in drain(gate, 1000)] == [1, 2]


def test_a_step_with_room_takes_prefill_and_one_without_does_not() -> None:
    gate = pair(target_us=5000, max_hold_us=1e9)
    gate.enqueue(1000, 2, 0)
    gate.enqueue(1000, 1, 0, bucket=bucket(108))
    assert len(drain(gate, 1000)) == 2  # 138 us fit into 5 ms
    gate.completed(MS, 1, 0)
    late = 1000 + 4950 * 1000
    gate.enqueue(late, 1, 1, bucket=bucket(108))
    assert drain(gate, late) == []  # but not into the last 50 us
    gate.step_end(late + 1000, 2)
    assert [d.ticket for d in drain(gate, late + 1000)] == [1]  # between steps its share is lent


def test_an_idle_decode_lane_lends_all() -> None:
    gate = pair(target_us=1.0, decode_idle_us=1000, max_hold_us=1e9)
    gate.enqueue(1000, 2, 0)
    drain(gate, 1000)
    gate.step_end(2000, 2)
    for ticket in range(20):
        gate.enqueue(3000, 1, ticket, bucket=bucket(108))
    at_gap = len(drain(gate, 3000))
    assert at_gap == 2  # W = 300 us
    wake = gate.wake_at(3000)
    assert wake < 3 * MS
    idle = len(drain(gate, 3 * MS))
    assert idle >= 6
    assert gate.window_used_us() <= 300 * _gate.Gate.LEND_WINDOWS + 138


def test_an_operator_larger_than_the_window_goes_alone() -> None:
    gate = pair(target_us=1e6, window_us=100)
    gate.enqueue(1000, 2, 0)
    for ticket in range(3):
        gate.enqueue(1000, 1, ticket, bucket=bucket(114))
    assert [(d.lane, d.ticket) for d in drain(gate, 1000)] == [(2, 0), (1, 0)]
    assert drain(gate, 2000) == []
    gate.completed(400_000, 1, 0)
    assert [d.ticket for d in drain(gate, 400_000)] == [1]
    assert gate.counters().oversize == 2


@pytest.mark.parametrize(("target_us", "covers"), [(100_000, True), (900, False)])
def test_where_ends_are_heard_of_late_the_next_operator_is_there_before(
    target_us: float, covers: bool
) -> None:
    gate = pair(target_us=target_us, window_us=100)
    now, lag = 1000, 250_000
    large = int(gate.estimate(0, bucket(114)) * 1000)
    for ticket in range(7):  # between steps, each told late
        gate.enqueue(now, 1, ticket, bucket=bucket(114))
        assert [d.ticket for d in drain(gate, now)] == [ticket]
        now += large + lag
        gate.completed(now, 1, ticket)
    assert gate.lag_us() == pytest.approx(lag / 1e3, rel=0.01)
    gate.enqueue(now, 2, 0)  # a step begins
    for ticket in (7, 8):
        gate.enqueue(now, 1, ticket, bucket=bucket(114))
    assert [(d.lane, d.ticket) for d in drain(gate, now)] == [(2, 0), (1, 7)]
    # What runs has twice the pipeline's 60 us to go.
    early = now + large - 2 * int(gate.PIPELINE_US * 1000)
    assert [d.ticket for d in drain(gate, early)] == ([8] if covers else [])


def test_a_step_that_its_host_makes_late_does_not_hold_prefill() -> None:
    gate = pair(target_us=0, max_hold_us=1e9, decode_idle_us=1e9)
    now, ticket = 1000, 0

    def launch(operators: int, every_us: float) -> None:
        nonlocal now, ticket
        for _ in range(operators):
            gate.enqueue(now, 2, ticket, bucket=bucket(40))
            for decision in drain(gate, now):
                if decision.lane == 2 and decision.mark:
                    gate.completed(now + 4000, 2, decision.ticket)
            ticket += 1
            now += int(every_us * 1000)

    for _ in range(10):  # alone: 20 operators of 4 us, one each 100 us
        launch(20, 100)
        gate.step_end(now, 2)
    gate.set_phase(2, Phase.Decode, 2200)
    # A busy host takes thrice as long: half of the step is launched when its target has passed.
    launch(10, 300)
    gate.enqueue(now, 1, 0, bucket=bucket(108))
    assert [d.lane for d in drain(gate, now)] == [1]
    # Its last operator is launched, and it waits for the device: now prefill would make it later.
    gate.completed(now, 1, 0)
    launch(10, 300)
    gate.enqueue(now, 2, 10**6, costed=False, step_end=True)
    gate.enqueue(now, 1, 1, bucket=bucket(108))
    assert [d.lane for d in drain(gate, now)] == [2]


def test_lost_completions_do_not_close_the_window_for_ever() -> None:
    gate = pair(target_us=1e9, window_us=100)
    gate.enqueue(1000, 2, 0)
    gate.enqueue(1000, 1, 0, bucket=bucket(114))
    for ticket in (1, 2):
        gate.enqueue(1000, 1, ticket, bucket=bucket(114))
    assert len(drain(gate, 1000)) == 2
    now = 1000
    dispatched = 1
    while dispatched < 3:
        now = gate.wake_at(now)
        assert now != _gate.NEVER
        dispatched += len(drain(gate, now))
    # The second goes when the first should be nearly done, for only its end was not heard of.
    assert 2_000 * MS < now < 2_100 * MS
    assert gate.counters().lost_completions >= 1


def test_stray_completions_are_counted_and_change_nothing() -> None:
    gate = pair()
    gate.completed(1, 1, 99)
    gate.completed(1, 77, 0, 5.0)
    gate.step_end(1, 77)
    assert gate.counters().unknown_completions == 2
    assert not gate.enqueue(1, 77, 0)
    assert not gate.remove_lane(77)
    assert not gate.set_phase(77, Phase.Decode)
    assert not gate.add_lane(1)
    assert gate.stats(77) is None


def test_costs_are_learned_and_outliers_left_out() -> None:
    gate = _gate.Gate()
    gate.add_lane(1)
    guess = gate.estimate(7, bucket(40))
    now = seen = 0
    for ticket in range(2000):
        now += 1000
        gate.enqueue(now, 1, ticket, op=7, bucket=bucket(40))
        for decision in drain(gate, now):
            assert decision.mark or not decision.timed
            if decision.timed:
                # Half of the measurements contain somebody else's operators.
                seen += 1
                gate.completed(now, 1, decision.ticket, 100.0 if seen % 2 else 900.0)
    assert guess < 10
    assert gate.estimate(7, bucket(40)) == pytest.approx(100.0)
    # An unseen shape of the same operator is guessed from how its other shapes behaved.
    assert gate.estimate(7, bucket(44)) > 5 * gate.estimate(8, bucket(44))
    samples = gate.counters().cost_samples
    assert 5 <= samples <= 40, "timing must be rare"


def test_shape_buckets() -> None:
    assert _gate.shape_bucket([[1, 37, 256]]) == _gate.shape_bucket([[1, 37, 256]])
    assert _gate.shape_bucket([[1, 37, 256]]) != _gate.shape_bucket([[1, 1, 256]])
    assert _gate.shape_bucket([[1, 1000]]) == _gate.shape_bucket([[1, 1001]])
    assert _gate.shape_bucket([[2**62, 2**62, 2**62]]) != 0
    assert _gate.shape_bucket([[-5, 3]]) == _gate.shape_bucket([[0, 3]])


def test_a_decode_lane_of_unknown_target_learns_its_own() -> None:
    gate = pair(target_us=0, max_hold_us=1e9)
    now = 1000
    ticket = 0
    for _ in range(10):  # steps of 50 operators, 1 ms long
        for i in range(50):
            gate.enqueue(now + i * 20_000, 2, (ticket := ticket + 1))
            drain(gate, now + i * 20_000)
        gate.step_end(now + MS, 2)
        now += 2 * MS
    stats = gate.stats(2)
    assert stats.steps == 10
    assert stats.step_ops == 50
    assert stats.step_solo_us == pytest.approx(1000)
    # 1.5 times that is the target: at 1.4 ms there is no room for 138 us.
    for i in range(45):
        gate.enqueue(now + i * 31_000, 2, (ticket := ticket + 1))
        drain(gate, now + i * 31_000)
    late = now + 1_400_000
    gate.enqueue(late, 1, 0, bucket=bucket(108))
    assert drain(gate, late) == []


@given(
    costs=st.lists(st.integers(40, 116), min_size=1, max_size=60),
    durations=st.lists(st.floats(0.2, 3.0), min_size=1, max_size=20),
    window=st.sampled_from([50.0, 200.0, 300.0, 500.0]),
    target=st.sampled_from([1.0, 5000.0, 1e6]),
    max_hold=st.sampled_from([1000.0, 10000.0]),
)
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_window_and_starvation_bound_amid_a_step(
    costs: list[int], durations: list[float], window: float, target: float, max_hold: float
) -> None:
    """Decode is amid an endless step; prefill work in flight never exceeds W, and every head goes within
    the bound.
    """
    gate = pair(target_us=target, window_us=window, max_hold_us=max_hold)
    for ticket, cost in enumerate(costs):
        gate.enqueue(1000, 1, ticket, op=1, bucket=bucket(cost, salt=ticket))
    now, decode_ticket = 1000, 0
    flight: deque[tuple[int, float, int]] = deque()  # ticket, estimate, when it ends
    front_since = device_free = now
    head_since = now
    dispatched: list[int] = []
    while len(dispatched) < len(costs):
        # Decode launches something every 100 us, so that it is amid its step all the time.
        gate.enqueue(now, 2, (decode_ticket := decode_ticket + 1))
        while flight and flight[0][2] <= now:
            gate.completed(now, 1, flight.popleft()[0])
            front_since = now
        while (decision := gate.next(now)) is not None:
            if decision.lane == 2:
                gate.completed(now, 2, decision.ticket) if decision.mark else None
                continue
            assert decision.mark
            running = min(flight[0][1], (now - front_since) / 1e3) if flight else 0
            ahead = max(0.0, sum(est for _, est, _ in flight) - running)
            room = window - decision.est_us
            if room < 0:
                room = min(_gate.Gate.PIPELINE_US, window)
            covered = min(gate.lag_us(), target * _gate.Gate.LAG_SHARE)
            assert ahead <= max(room, covered) + 1e-6
            # It waits for the bound, and then for what is in flight to drain.
            slowest = 3.0 * 500 * 2 + 200
            bound = max(max_hold, _gate.Gate.HOLD_COSTS * decision.est_us)
            assert (now - head_since) / 1e3 <= bound + slowest + 100
            head_since = now
            if not flight:
                front_since = now
            takes = decision.est_us * durations[decision.ticket % len(durations)]
            device_free = max(device_free, now) + int(takes * 1e3)
            flight.append((decision.ticket, decision.est_us, device_free))
            dispatched.append(decision.ticket)
        now += 100_000
    assert dispatched == list(range(len(costs)))


class GateMachine(RuleBasedStateMachine):
    """Whatever happens: order within a lane is kept, nothing is lost or invented, and none waits for ever."""

    @initialize()
    def start(self) -> None:
        self.gate = _gate.Gate()
        self.now = 1000
        self.tickets = 0
        self.queued: dict[int, deque[tuple[int, bool, object]]] = {}
        self.said: dict[int, set[object]] = defaultdict(set)
        self.marked: dict[int, deque[int]] = defaultdict(deque)
        self.phase: dict[int, object] = {}
        self.inherits: dict[int, int] = {}
        self.enabled = False

    def lanes(self) -> list[int]:
        return sorted(self.queued)

    @rule(lane=st.integers(0, 4))
    def add(self, lane: int) -> None:
        assert self.gate.add_lane(lane) == (lane not in self.queued)
        self.queued.setdefault(lane, deque())
        self.phase.setdefault(lane, Phase.Unknown)

    @rule(lane=st.integers(0, 4))
    def remove(self, lane: int) -> None:
        assert self.gate.remove_lane(lane) == (lane in self.queued)
        for known in (self.queued, self.phase, self.marked, self.inherits, self.said):
            known.pop(lane, None)  # type: ignore[attr-defined]

    @rule(
        lane=st.integers(0, 4),
        phase=st.sampled_from([Phase.Unknown, Phase.Prefill, Phase.Decode]),
        target_us=st.sampled_from([0.0, 1.0, 1000.0, 1e6]),
    )
    def set_phase(self, lane: int, phase: object, target_us: float) -> None:
        if self.gate.set_phase(lane, phase, target_us):
            self.phase[lane] = phase

    @rule(
        enabled=st.booleans(),
        window=st.sampled_from([0.0, 50.0, 300.0]),
        k=st.sampled_from([0.0, 1.0, 2.5]),
        lease=st.integers(0, 30 * MS),
    )
    def set_policy(self, enabled: bool, window: float, k: float, lease: int) -> None:
        made = _gate.Settings(
            enabled=enabled, window_us=window, overlap_slowdown=k, lease_until_ns=self.now + lease
        )
        self.gate.set_settings(self.now, made)

    @rule(
        lane=st.integers(0, 4),
        q=st.integers(0, 120),
        costed=st.booleans(),
        edge=st.booleans(),
        phase=st.sampled_from([Phase.Unknown, Phase.Unknown, Phase.Prefill, Phase.Decode]),
    )
    def enqueue(self, lane: int, q: int, costed: bool, edge: bool, phase: object) -> None:
        """`edge`: an operator begins a step, or a synchronise ends one. It may say its step's phase."""
        known = self.gate.enqueue(
            *(self.now, lane, self.tickets, lane, bucket(q), costed),
            step_end=edge and not costed,
            step_begin=edge and costed,
            phase=phase,
        )
        assert known == (lane in self.queued)
        if known:
            self.queued[lane].append((self.tickets, costed, phase))
            self.said[lane].add(phase)
        self.tickets += 1

    @rule(lane=st.integers(0, 4), ahead=st.integers(-5, 5))
    def inherit(self, lane: int, ahead: int) -> None:
        """A protected lane waits for what came lately, or is yet to come."""
        ticket = max(self.tickets + ahead, 0)
        fresh = lane in self.queued and ticket > self.inherits.get(lane, -1)
        assert self.gate.inherit(lane, ticket) == fresh
        if fresh:
            self.inherits[lane] = ticket
        if lane in self.queued:
            assert self.gate.protects(lane, ticket)

    @rule(microseconds=st.integers(0, 30_000))
    def advance(self, microseconds: int) -> None:
        self.now += microseconds * 1000

    def take(self, decision: object) -> None:
        lane, ticket = decision.lane, decision.ticket  # type: ignore[attr-defined]
        assert self.queued[lane].popleft()[0] == ticket
        if decision.mark:  # type: ignore[attr-defined]
            self.marked[lane].append(ticket)

    @rule()
    def pump(self) -> None:
        while (decision := self.gate.next(self.now)) is not None:
            self.take(decision)
        # What is left is held by the policy, and only costed heads of prefill lanes are.
        for lane, queue in self.queued.items():
            if queue:
                assert self.gate.policy_active(self.now)
                ticket, costed, phase = queue[0]
                assert phase != Phase.Decode
                assert Phase.Prefill in {phase, self.phase[lane], *self.said[lane]}
                assert costed
                assert ticket > self.inherits.get(lane, -1)
                assert Phase.Decode in {*self.phase.values(), *set().union(*self.said.values())}

    @precondition(lambda self: any(self.marked.values()))
    @rule(data=st.data(), measured=st.sampled_from([-1.0, 0.0, 3.0, 400.0]))
    def complete(self, data: st.DataObject, measured: float) -> None:
        lane = data.draw(st.sampled_from(sorted(lane for lane, marks in self.marked.items() if marks)))
        self.gate.completed(self.now, lane, self.marked[lane].popleft(), measured)

    @rule(lane=st.integers(0, 4))
    def step_end(self, lane: int) -> None:
        self.gate.step_end(self.now, lane)

    @rule(fraction=st.floats(0, 1))
    def asleep_until_wake_at(self, fraction: float) -> None:
        """Between now and wake_at, nothing becomes dispatchable by itself."""
        self.pump()
        wake = self.gate.wake_at(self.now)
        assert wake > self.now
        if wake != _gate.NEVER and wake - self.now > 41_000:
            then = self.now + int((wake - 21_000 - self.now) * fraction)
            assert self.gate.next(then) is None
            self.now = then

    @invariant()
    def counts_agree(self) -> None:
        for lane, queue in getattr(self, "queued", {}).items():
            stats = self.gate.stats(lane)
            assert stats.queued == len(queue)
            assert stats.enqueued == stats.dispatched + stats.queued
            assert stats.in_flight_us >= -1e-6
            assert not stats.held_now or queue

    def teardown(self) -> None:
        if not hasattr(self, "gate"):
            return
        # Complete what is in flight and wait as told: everything goes.
        for _ in range(2000):
            self.pump()
            if not any(self.queued.values()):
                break
            for lane, marks in self.marked.items():
                while marks:
                    self.gate.completed(self.now, lane, marks.popleft())
            self.pump()
            if any(self.queued.values()):
                wake = self.gate.wake_at(self.now)
                assert wake != _gate.NEVER
                self.now = wake
        assert not any(self.queued.values())


TestGateMachine = GateMachine.TestCase
TestGateMachine.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
