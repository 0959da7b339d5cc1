"""An executable model of streams and events, and random programs for it.

A program is a list of `Step`s: calls of several threads, one after the other (a synchronise may be left
running in the background). Each stream has a cell in device memory that counts the stream's effects, and
steps look at all cells: the driver (native/ordering.cpp) tells what they saw. `check` says what of it cannot
be.

The model knows, for each thing in a stream, everything that happens before it: what precedes it in its
stream, what precedes the record that it waits for, and what the host knew to be over when it called. Whoever
looks at the cells must see every effect that happens before his look, and none that happens after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import strategies as st

STREAMS = 4
THREADS = 3
EVENTS = 5
TIMESTAMP_INVALID = 107006
COMPLETE = {"query": 1, "old_query": 0, "wait_query": 0, "stream_query": 0}

Clock = tuple[int, ...]  # how many things of each stream are over, at least
ZERO: Clock = (0,) * STREAMS


@dataclass(frozen=True)
class Step:
    thread: int
    what: str
    arguments: tuple[int, ...] = ()
    background: bool = False

    def line(self) -> str:
        words = [self.thread, self.what + ("&" if self.background else ""), *self.arguments]
        return " ".join(map(str, words))


@dataclass(frozen=True)
class Outcome:
    code: int
    status: str
    first: Clock | None
    second: Clock | None


def merge(a: Clock, b: Clock) -> Clock:
    return tuple(map(max, a, b))


def covers(a: Clock, b: Clock) -> bool:
    return all(x >= y for x, y in zip(a, b, strict=True))


# ---- programs ----


_OPS = ["add"] * 5 + ["set", "put"] + ["copy"] * 5 + ["host", "callback"] + ["record"] * 4 + ["wait"] * 5
_OPS += ["query"] * 3 + ["old_query", "wait_query", "stream_query", "elapsed", "reset", "delete"]
_OPS += ["sync_stream", "sync_event", "sync_device"]
# Several steps in a row: work behind something slow, a record behind that, and one who relies on the record.
_OPS += ["hand over"] * 5 + ["ask after"] * 2
_PAUSES_US = [0, 300, 1500]
_PER_EVENT = (
    "record",
    "wait",
    "reset",
    "query",
    "old_query",
    "wait_query",
    "sync_event",
    "delete",
    "elapsed",
)


class _Program:
    """A program in the making: every call is one that must succeed. Events are made before their use."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.made: set[int] = set()
        self.effects = [0] * STREAMS
        self.steps: list[Step] = []

    def stream(self) -> int:
        return self.draw(st.integers(0, STREAMS - 1))

    def add(self, what: str, *arguments: int, background: bool = False) -> None:
        self.steps.append(Step(self.draw(st.integers(0, THREADS - 1)), what, arguments, background))

    def event(self) -> int:
        event = self.draw(st.integers(0, EVENTS - 1))
        if event not in self.made:
            self.add("new", event, self.draw(st.integers(0, 2)))
            self.made.add(event)
        return event

    def effect(self, what: str, stream: int) -> None:
        self.effects[stream] += 1
        self.add(what, stream, *([] if what == "add" else [self.effects[stream]]))

    def op(self, what: str) -> None:
        if what in ("hand over", "ask after"):
            event, stream = self.event(), self.stream()
            if self.draw(st.booleans()):
                self.add("host", stream, self.draw(st.sampled_from(_PAUSES_US)))
            self.effect(self.draw(st.sampled_from(["add", "set"])), stream)
            self.add("record", event, stream)
            if what == "ask after":
                return self.add("query", event)
            other = self.stream()
            self.add("wait", event, other)
            return self.add("copy", other)
        if what in ("add", "set", "put"):
            return self.effect(what, self.stream())
        arguments: list[int] = []
        if what in _PER_EVENT:
            arguments.append(self.event())
            if what in ("record", "wait", "reset"):
                arguments.append(self.stream())
            elif what == "elapsed":
                arguments.append(self.draw(st.sampled_from(sorted(self.made))))
            elif what == "delete":
                self.made.discard(arguments[0])
        elif what != "sync_device":
            arguments.append(self.stream())
            if what in ("host", "callback"):
                arguments.append(self.draw(st.sampled_from(_PAUSES_US)))
            if what == "callback":
                arguments.append(self.draw(st.integers(0, 1)))
        background = what.startswith("sync") and self.draw(st.booleans())
        return self.add(what, *arguments, background=background)


@st.composite
def programs(draw: st.DrawFn, most: int = 25) -> list[Step]:
    program = _Program(draw)
    for what in draw(st.lists(st.sampled_from(_OPS), min_size=1, max_size=most)):
        program.op(what)
    return program.steps


# ---- the model ----


@dataclass
class Event:
    record: Clock | None = None  # of the last record, itself included
    place: tuple[int, int] | None = None  # its stream, and which thing of the stream it is
    reset: tuple[int, int] | None = None  # of the reset called after it
    waits: list[Clock] = field(default_factory=list)


@dataclass
class Look:
    """What somebody saw, and when: after all of `after`; before whatever follows thing `before[1]` of stream
    `before[0]`."""

    step: int
    after: Clock
    before: tuple[int, int] | None
    seen: Clock


class Model:
    def __init__(self) -> None:
        self.things: list[list[Clock]] = [
            [] for _ in range(STREAMS)
        ]  # what happens before each, itself included
        self.effects: list[list[int]] = [
            [] for _ in range(STREAMS)
        ]  # which things are effects, counted from 1
        self.host = ZERO  # what the host knows to be over
        self.drained = ZERO  # as far as a synchronise or a query of the stream itself has told
        self.events: dict[int, Event] = {}
        self.looks: list[Look] = []
        self.problems: list[str] = []

    def last(self, stream: int) -> Clock:
        return self.things[stream][-1] if self.things[stream] else ZERO

    def put(self, stream: int, effect: bool = False, after: Clock = ZERO) -> Clock:
        things = self.things[stream]
        before = list(merge(merge(self.last(stream), self.host), after))
        before[stream] = len(things) + 1
        things.append(tuple(before))
        if effect:
            self.effects[stream].append(len(things))
        return tuple(before)

    def look(
        self, step: int, after: Clock, seen: Clock | None, before: tuple[int, int] | None = None
    ) -> None:
        if seen is None:
            self.problems.append(f"step {step}: nothing was seen")
        else:
            self.looks.append(Look(step, after, before, seen))

    def over(self, step: int, clock: Clock, seen: Clock | None) -> None:
        """The host has been told that all of `clock` is over."""
        self.host = merge(self.host, clock)
        self.look(step, clock, seen)

    def is_reset(self, event: Event) -> bool | None:
        """None: it may be."""
        if event.reset is None:
            return False
        stream, number = event.reset
        return True if self.host[stream] >= number else None

    def step(self, i: int, step: Step, outcome: Outcome) -> Clock | None:
        """Takes one step. What the host knows when a background step is over."""
        a = step.arguments
        what = step.what
        if outcome.code != 0 and not (what == "elapsed" and outcome.code == TIMESTAMP_INVALID):
            self.problems.append(f"step {i}: error {outcome.code}")
        match what:
            case "add" | "set" | "put":
                self.put(a[0], effect=True)
            case "copy":
                self.look(i, self.put(a[0]), outcome.first, (a[0], len(self.things[a[0]])))
            case "host" | "callback":
                clock = self.put(a[0])
                holds = what == "host" or a[2] == 1
                self.look(i, clock, outcome.first)
                self.look(i, clock, outcome.second, (a[0], len(self.things[a[0]])) if holds else None)
            case "new":
                self.events[a[0]] = Event()
            case "delete":
                del self.events[a[0]]
            case "record":
                event = self.events[a[0]]
                event.record = self.put(a[1])
                event.place = (a[1], len(self.things[a[1]]))
                event.reset = None
            case "wait":
                event = self.events[a[0]]
                if event.record is not None and self.is_reset(event) is False:
                    event.waits.append(self.put(a[1], after=event.record))
                else:
                    self.put(a[1])
            case "reset":
                event = self.events[a[0]]
                self.put(a[1])
                if event.record is not None and event.reset is None:
                    event.reset = (a[1], len(self.things[a[1]]))
            case "query" | "old_query":
                self.query(i, self.events[a[0]], outcome.status == str(COMPLETE[what]), outcome.first)
            case "wait_query":
                waits = self.events[a[0]].waits
                if outcome.status == str(COMPLETE[what]):
                    for clock in waits:
                        self.over(i, clock, outcome.first)
                elif all(covers(self.host, clock) for clock in waits) and self.certain(self.events[a[0]]):
                    self.problems.append(f"step {i}: a wait that is over is said to be outstanding")
            case "stream_query":
                clock = self.last(a[0])
                if outcome.status == str(COMPLETE[what]):
                    self.over(i, clock, outcome.first)
                    self.drained = merge(self.drained, clock)
                elif covers(self.drained, clock):
                    self.problems.append(f"step {i}: a stream that is empty is said to be busy")
            case "elapsed":
                self.elapsed(i, self.events[a[0]], self.events[a[1]], outcome)
            case "sync_stream" | "sync_device" | "sync_event":
                if what == "sync_event":
                    event = self.events[a[0]]
                    known = event.record is not None and self.is_reset(event) is False
                    clock = event.record if known and event.record is not None else ZERO
                else:
                    clock = ZERO
                    for stream in a or range(STREAMS):
                        clock = merge(clock, self.last(stream))
                if step.background:
                    self.look(i, clock, outcome.first)
                    return clock
                self.over(i, clock, outcome.first)
                if what != "sync_event":
                    self.drained = merge(self.drained, clock)
            case _:
                raise AssertionError(what)
        return None

    def certain(self, event: Event) -> bool:
        """Whether no wait of this event may have been called while it was or was not reset."""
        return event.reset is None

    def query(self, i: int, event: Event, complete: bool, seen: Clock | None) -> None:
        reset = self.is_reset(event)
        if complete:
            if event.record is None or reset is True:
                self.problems.append(f"step {i}: an event that is not recorded is said to be complete")
            else:
                self.over(i, event.record, seen)
        elif event.record is not None and reset is False and covers(self.host, event.record):
            self.problems.append(f"step {i}: an event that is complete is said not to be")

    def elapsed(self, i: int, begin: Event, end: Event, outcome: Outcome) -> None:
        both = (begin, end)
        if outcome.code == 0:
            if any(e.record is None or self.is_reset(e) is True for e in both):
                self.problems.append(f"step {i}: a time between events that are not recorded")
                return
            assert begin.place is not None
            assert end.record is not None
            stream, number = begin.place
            if end.record[stream] >= number and float(outcome.status) < 0:
                self.problems.append(f"step {i}: {outcome.status} ms from a record to one after it")
        elif all(e.record and self.is_reset(e) is False and covers(self.host, e.record) for e in both):
            self.problems.append(f"step {i}: no time between events that are complete")

    def judge(self, last: Clock) -> None:
        """What the looks prove, now that everything that follows them is known."""
        for look in self.looks:
            for stream in range(STREAMS):
                must = sum(thing <= look.after[stream] for thing in self.effects[stream])
                if look.seen[stream] < must:
                    self.problems.append(
                        f"step {look.step}: saw {look.seen[stream]} effects of stream {stream}: "
                        f"{must} happen before"
                    )
                if look.before is None:
                    continue
                owner, number = look.before
                later = [
                    at + 1
                    for at, clock in enumerate(self.things[stream])
                    if clock[owner] >= number and (stream, at + 1) != (owner, number)
                ]
                may = sum(not later or thing < later[0] for thing in self.effects[stream])
                if look.seen[stream] > may:
                    self.problems.append(
                        f"step {look.step}: saw {look.seen[stream]} effects of stream {stream}: "
                        f"only {may} may be over"
                    )
        if last != (want := tuple(map(len, self.effects))):
            self.problems.append(f"at the end {last} effects, not {want}")


def check(steps: Sequence[Step], outcomes: Sequence[Outcome], last: Clock) -> list[str]:
    """What is not admissible in what was seen of a run of `steps`; `last`: the cells at its end."""
    model = Model()
    running: dict[int, Clock] = {}  # a background synchronise is over when its thread's next step begins
    for i, (step, outcome) in enumerate(zip(steps, outcomes, strict=True)):
        if step.thread in running:
            model.host = merge(model.host, running.pop(step.thread))
        clock = model.step(i, step, outcome)
        if clock is not None:
            running[step.thread] = clock
    model.judge(last)
    return model.problems
