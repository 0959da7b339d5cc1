"""What a controller knows of the lanes: their recent steps, folded into roles and step times.

A lane is a stream of a process, ``(pid, stream handle)``; steps come as they end, lanes as the daemon names
them.

A step costs the same whatever the number of lanes, and a turn (`ControllerState.settle`) costs a bounded
amount a lane and a step that has come since the last one. Steps are forgotten after `MEMORY_S`, and a lane
with the first status in which the daemon does not name it. Steps that could not be used are counted.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from flexnpu.common.quantiles import rank
from flexnpu.control.messages import LaneStatus
from probes.feed.events import Event, Losses, Step, StepBegin

Key = tuple[int, int]
Role = Literal["unknown", "prefill", "decode"]

MEMORY_S = 30.0
"""Steps older than this are forgotten."""
MAX_STEPS = 4096
"""Steps of one kind that a lane remembers at most; of a faster lane, the latest."""
MIN_STEPS = 5
"""Fewer steps than this say nothing about a role."""
PREFILL_ODDS = 1.5
"""From this ratio of prefill time to decode time a lane is a prefill lane, whatever the others do."""
DECODE_ODDS = 0.67
"""Up to this ratio a lane may be a decode lane. Between the two it keeps the role it has."""
RELATIVE_ODDS = 3.0
"""A server that does both is a prefill lane if two things hold. Its ratio is this many times that of the most
decode-like other lane; half of it is enough to remain one. And its prefills are long: `BURST` of its decode
steps."""
BURST = 3.0
SOLO_STEPS = 256
PAUSE_NS = 10**9
"""A lane silent for so long had nothing to decode."""
SOLO_S = 120.0
"""What steps alone took this long ago says little about now."""
STALE_S = 120.0
"""A prefill that began this long ago, without any news of it, is taken to have ended."""
ACCOUNTS = 16
"""Answers of the daemon over which a lane's sums are compared."""
HOLD_SETTLES_NS = 50 * 10**6
"""Prefill that was launched before a hold ends within this."""
_SLACK_NS = 10**9
"""How much later than its end a step may arrive, after steps that ended later."""


class Window:
    """The latest durations, ns, with their sum and in order. Adding one costs a binary search."""

    __slots__ = ("_most", "_ordered", "arrived", "total_ns")

    def __init__(self, most: int = MAX_STEPS) -> None:
        self._most = most
        self.arrived: deque[tuple[int, int]] = deque()
        """(when, duration) in the order in which they came, ns."""
        self._ordered: list[int] = []
        self.total_ns = 0

    def __len__(self) -> int:
        return len(self._ordered)

    def __iter__(self) -> Iterator[int]:
        """Ascending."""
        return iter(self._ordered)

    def add(self, at_ns: int, duration_ns: int) -> None:
        """Take a duration that ended at `at_ns`, CLOCK_MONOTONIC; the oldest goes when there is no room."""
        if len(self._ordered) == self._most:
            self._remove_oldest()
        self.arrived.append((at_ns, duration_ns))
        insort(self._ordered, duration_ns)
        self.total_ns += duration_ns

    def forget(self, before_ns: int, keep: int = 0) -> None:
        """Drop what was added with a time before `before_ns`, but not the latest `keep`."""
        while len(self.arrived) > keep and self.arrived[0][0] < before_ns:
            self._remove_oldest()

    def longest_ns(self) -> int:
        """0 when there is none."""
        return self._ordered[-1] if self._ordered else 0

    def quantile(self, q: float) -> int | None:
        """The `q` quantile; None when there is nothing."""
        return self._ordered[rank(len(self._ordered), q)] if self._ordered else None

    def quantile_us(self, q: float) -> float | None:
        """The `q` quantile of the durations, us; None when there are none."""
        found = self.quantile(q)
        return None if found is None else found / 1e3

    def _remove_oldest(self) -> None:
        _, duration_ns = self.arrived.popleft()
        del self._ordered[bisect_left(self._ordered, duration_ns)]
        self.total_ns -= duration_ns


@dataclass(frozen=True, slots=True)
class Account:
    """What the daemon and the steps say of a lane, summed up since each began."""

    device_us: float
    launched: int
    stepped_ns: int
    counted: int
    uncounted: int
    last_step_ns: int


@dataclass(slots=True)
class LaneState:
    """One lane's recent steps, by phase."""

    key: Key
    prefill: Window = field(default_factory=Window)
    decode: Window = field(default_factory=Window)
    mixed: Window = field(default_factory=Window)
    role: Role = "unknown"
    says: bool = False
    """Whether the daemon hears the phase of the lane's steps with their operators. Then the gate acts on each
    step, and the role only on what is launched before that is known."""
    solo: Window = field(default_factory=lambda: Window(SOLO_STEPS))
    """Decode steps beside which no other lane's prefill ran. They outlive `MEMORY_S`: under a lasting flood
    there are no new ones but those of a hold. What is older than `SOLO_S` goes once there is enough newer.
    """
    alone_ns: int = 0
    """End of the latest of them; 0 before the first."""
    held_steps: int = 0
    """Of them, those since prefill was last held (`hold`)."""
    beside: Window = field(default_factory=lambda: Window(SOLO_STEPS))
    """The latest decode steps beside which another lane's prefill ran."""
    token_times: Window = field(default_factory=lambda: Window(SOLO_STEPS))
    """From the end of a step to that of the next one that makes tokens: decode or mixed. None of pauses that
    are longer than `PAUSE_NS`."""
    eager: Window = field(default_factory=lambda: Window(SOLO_STEPS))
    """Launches of the latest decode steps without graphs, where they were counted."""
    replayed: Window = field(default_factory=lambda: Window(SOLO_STEPS))
    """And of those with graphs, their launches among them."""
    accounts: deque[Account] = field(default_factory=lambda: deque(maxlen=ACCOUNTS))
    """The lane's sums at the daemon's last answers, oldest first."""
    stepped_ns: int = 0
    """Durations of all steps so far, ns."""
    counted: int = 0
    """Launches of all steps so far, graphs among them."""
    uncounted: int = 0
    """Steps whose launches were not counted."""
    least_slowed_us: float | None = None
    """The least 0.1 quantile of decode steps that the lane ever had (kept by the policy)."""
    prefill_since_ns: int | None = None
    """Start of the prefill that now runs on the lane."""
    last_step_ns: int = 0
    """End of the last step; 0 before the first."""
    unsettled: deque[tuple[int, int]] = field(default_factory=deque)
    """(start, end) of decode steps of which it is not settled whether they were alone, ns."""

    def add(self, step: Step, alone: bool = False) -> None:
        """Take a step of this lane; `alone`: prefill was held while it ran."""
        gap_ns = step.t_start_ns - self.last_step_ns
        if step.phase in ("decode", "mixed") and self.last_step_ns and gap_ns < PAUSE_NS:
            self.token_times.add(step.t_end_ns, step.t_end_ns - self.last_step_ns)
        self.last_step_ns = step.t_end_ns
        self.prefill_since_ns = None
        self.stepped_ns += step.t_end_ns - step.t_start_ns
        if step.launches is None:
            self.uncounted += 1
        else:
            self.counted += step.launches + step.graph_launches
        window = {"prefill": self.prefill, "decode": self.decode, "mixed": self.mixed}.get(step.phase)
        if window is not None:
            window.add(step.t_end_ns, step.t_end_ns - step.t_start_ns)
        if step.phase == "decode":
            if alone:
                self.held_steps += 1
                self.ran_alone(step.t_start_ns, step.t_end_ns)
            else:
                self.unsettled.append((step.t_start_ns, step.t_end_ns))
            if step.launches is not None:
                window = self.replayed if step.graph_launches else self.eager
                window.add(step.t_end_ns, step.launches + step.graph_launches)

    def ran_alone(self, start_ns: int, end_ns: int) -> None:
        """Take the duration of a decode step beside which no prefill ran."""
        self.solo.add(end_ns, end_ns - start_ns)
        self.alone_ns = max(self.alone_ns, end_ns)

    def forget(self, before_ns: int) -> None:
        """Drop the steps that ended before `before_ns`."""
        forgotten = (self.prefill, self.decode, self.mixed, self.beside, self.token_times)
        for window in (*forgotten, self.eager, self.replayed):
            window.forget(before_ns)

    def longest_prefill_ns(self) -> int:
        """Of the prefill and mixed steps that are remembered; 0 when there are none."""
        return max(self.prefill.longest_ns(), self.mixed.longest_ns())

    def odds(self) -> float | None:
        """Prefill time to decode time; infinite without decode, None when there are too few steps to say."""
        if len(self.prefill) + len(self.decode) + len(self.mixed) < MIN_STEPS:
            return None
        decode_ns = self.decode.total_ns + self.mixed.total_ns
        return self.prefill.total_ns / decode_ns if decode_ns > 0 else math.inf

    def decodes(self) -> bool:
        """Whether it is a decode lane, or has decode steps that say so."""
        return self.role == "decode" or (self.says and len(self.decode) >= MIN_STEPS)

    def prefills(self) -> bool:
        """Whether it is a prefill lane, or has prefill steps that say so."""
        return self.role == "prefill" or (self.says and len(self.prefill) + len(self.mixed) > 0)

    def bursty(self) -> bool:
        """Whether a prefill takes several times as long as a decode step."""
        prefill, decode = self.prefill.quantile_us(0.5), self.decode.quantile_us(0.5)
        return prefill is not None and (decode is None or prefill >= BURST * decode)

    def vote(self, odds: float, others: float | None) -> None:
        """Settle the role from the lane's odds and the least of the other lanes'."""
        was = self.role == "prefill"
        relative = odds / max(others, 0.01) if others is not None else 0.0
        mostly = odds >= (DECODE_ODDS if was else PREFILL_ODDS)
        beside = relative >= (RELATIVE_ODDS / 2 if was else RELATIVE_ODDS) and self.bursty()
        if mostly or beside:
            self.role = "prefill"
        elif odds <= DECODE_ODDS:
            self.role = "decode"


class _Prefills:
    """Spans of prefill work, to ask whether one of another lane overlaps a step."""

    def __init__(self, spans: list[tuple[int, int, Key]]) -> None:
        """`spans`: (start, end, lane), ns."""
        spans.sort()
        self._starts = [start for start, _, _ in spans]
        # For the first i spans: the latest end, whose it is, and the latest end of all other lanes.
        self._latest: list[tuple[int, Key | None, int]] = []
        end, lane, second = 0, None, 0
        for _, other_end, other in spans:
            if other == lane:
                end = max(end, other_end)
            elif other_end > end:
                end, lane, second = other_end, other, end
            else:
                second = max(second, other_end)
            self._latest.append((end, lane, second))

    def beside(self, key: Key, start_ns: int, end_ns: int) -> bool:
        """Whether a span of another lane than `key` overlaps."""
        before = bisect_left(self._starts, end_ns)
        if not before:
            return False
        end, lane, second = self._latest[before - 1]
        return (second if lane == key else end) > start_ns


class _ExtremeOfOthers:
    """For each lane, the greatest value among the other lanes."""

    def __init__(self, values: Iterable[tuple[Key, float]]) -> None:
        self._best: tuple[Key | None, float | None] = (None, None)
        self._second: float | None = None
        for key, value in values:
            if self._best[1] is None or value > self._best[1]:
                self._best, self._second = (key, value), self._best[1]
            elif self._second is None or value > self._second:
                self._second = value

    def of(self, key: Key) -> float | None:
        return self._second if key == self._best[0] else self._best[1]


class ControllerState:
    """All lanes of one daemon. `update` with the daemon's lanes first: steps of others are counted and left
    out.
    """

    def __init__(self) -> None:
        self.lanes: dict[Key, LaneState] = {}
        self.numbers: dict[Key, int] = {}
        self.steps = 0
        self.unmapped = 0
        """Steps of streams that are no lanes of this daemon, or not yet."""
        self.unjudged = 0
        """Decode steps too old, or too many, before it was settled whether they were alone."""
        self.feed_dropped = 0
        """Lines of the feed that came while this process was too slow for them."""
        self._dropped_before = 0
        self._prefills: deque[tuple[int, int, Key]] = deque()
        self._hold_from_ns = self._hold_until_ns = 0

    def update(self, lanes: Iterable[LaneStatus]) -> None:
        """Take over which lanes there are."""
        told = {(lane.pid, lane.stream): lane for lane in lanes}
        self.numbers = {key: lane.lane for key, lane in told.items()}
        self.lanes = {key: self.lanes.get(key) or LaneState(key) for key in told}
        for key, lane in self.lanes.items():
            lane.says = bool(told[key].prefill_steps or told[key].decode_steps)
            lane.accounts.append(
                Account(
                    told[key].device_us,
                    told[key].launched,
                    lane.stepped_ns,
                    lane.counted,
                    lane.uncounted,
                    lane.last_step_ns,
                )
            )

    def take(self, event: Event) -> None:
        """Fold an event of the feed in; one of no use here changes nothing."""
        if isinstance(event, Step):
            self.add(event)
        elif isinstance(event, StepBegin):
            self.begin(event)
        elif isinstance(event, Losses) and event.source == "feed":
            # The server counts for each connection from zero.
            dropped = event.counts.get("feed_dropped", 0)
            self.feed_dropped += dropped - (self._dropped_before if dropped >= self._dropped_before else 0)
            self._dropped_before = dropped

    def add(self, step: Step) -> None:
        """A step has ended."""
        key = (step.pid, step.stream)
        lane = self.lanes.get(key)
        if lane is None:
            self.unmapped += 1
            return
        self.steps += 1
        lane.add(step, self._held(step))
        if step.phase in ("prefill", "mixed"):
            self._prefills.append((step.t_start_ns, step.t_end_ns, key))
        if len(lane.unsettled) > MAX_STEPS:
            lane.unsettled.popleft()
            self.unjudged += 1

    def begin(self, event: StepBegin) -> None:
        """A step has begun."""
        lane = self.lanes.get((event.pid, event.stream))
        if lane is not None:
            lane.prefill_since_ns = event.t_ns if event.phase in ("prefill", "mixed") else None

    def hold(self, now_ns: int, lease_s: float) -> None:
        """Prefill is held from now on, for a lease: decode steps run as if alone, though a prefill step may
        be open. Again before the lease's end: the hold goes on."""
        if self._hold_until_ns < now_ns:
            self._hold_from_ns = now_ns + HOLD_SETTLES_NS
            for lane in self.lanes.values():
                lane.held_steps = 0
        self._hold_until_ns = now_ns + int(lease_s * 1e9)

    def release(self, now_ns: int) -> None:
        """The hold, if there is one, ends."""
        self._hold_until_ns = min(self._hold_until_ns, now_ns)

    def _held(self, step: Step) -> bool:
        """Whether prefill was held while `step` ran. It may be told after the hold's end."""
        return self._hold_from_ns <= step.t_start_ns and step.t_end_ns <= self._hold_until_ns

    def settle(self, now_ns: int) -> None:
        """Forget old steps, vote on roles, and find the decode steps that ran alone."""
        horizon = now_ns - int(MEMORY_S * 1e9)
        while self._prefills and self._prefills[0][1] < horizon:
            self._prefills.popleft()
        odds: dict[Key, float] = {}
        for key, lane in self.lanes.items():
            lane.forget(horizon)
            lane.solo.forget(now_ns - int(SOLO_S * 1e9), keep=MIN_STEPS)
            while lane.unsettled and lane.unsettled[0][1] < horizon:
                lane.unsettled.popleft()
                self.unjudged += 1
            if lane.prefill_since_ns is not None and lane.prefill_since_ns < now_ns - int(STALE_S * 1e9):
                lane.prefill_since_ns = None
            if (own := lane.odds()) is not None:
                odds[key] = own
        least = _ExtremeOfOthers((key, -value) for key, value in odds.items())
        for key, own in odds.items():
            others = least.of(key)
            self.lanes[key].vote(own, -others if others is not None else None)
        self._find_solo(now_ns)

    def _find_solo(self, now_ns: int) -> None:
        """A prefill is reported when it ends, and a feed may leave out that it has begun: a decode step is
        settled once no prefill that began before its end can still be running, taking the longest seen for
        the longest there is.
        """
        waiting = [lane for lane in self.lanes.values() if lane.unsettled]
        if not waiting:
            return
        longest = _ExtremeOfOthers((key, lane.longest_prefill_ns()) for key, lane in self.lanes.items())
        prefills = self._prefills_after(min(lane.unsettled[0][0] for lane in waiting), now_ns)
        for lane in waiting:
            settled_until = now_ns - int(1.5 * (longest.of(lane.key) or 0))
            while lane.unsettled and lane.unsettled[0][1] <= settled_until:
                start, end = lane.unsettled.popleft()
                if prefills.beside(lane.key, start, end):
                    lane.beside.add(end, end - start)
                else:
                    lane.ran_alone(start, end)

    def _prefills_after(self, start_ns: int, now_ns: int) -> _Prefills:
        """Those that ended after `start_ns`, or run."""
        spans: list[tuple[int, int, Key]] = []
        for span in reversed(self._prefills):
            if span[1] + _SLACK_NS < start_ns:
                break
            spans.append(span)
        for key, lane in self.lanes.items():
            if lane.prefill_since_ns is not None:
                spans.append((lane.prefill_since_ns, now_ns, key))
        return _Prefills(spans)

    def decoding(self) -> list[LaneState]:
        """The lanes whose decode steps can be protected, in the order in which they appeared."""
        return [lane for lane in self.lanes.values() if lane.decodes()]

    def prefilling(self) -> list[LaneState]:
        """The lanes whose prefill the gate can hold, in the order in which they appeared."""
        return [lane for lane in self.lanes.values() if lane.prefills()]
