"""One request in several servers: what joins it, in any order of events, and its parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.feed.events import RequestTiming
from probes.requests.hops import KEEP_NS, MAX_KEPT, Hop, Hops, Join, find
from probes.requests.parts import PARTS, parts
from probes.steps.transfers import Transfer
from tests.collectors import scripted

MS = 1_000_000
PROXY, P, D = 1, 2, 3


def hop(pid: int, arrival: float, end: float | None = None, **more: Any) -> Hop:
    fields: dict[str, Any] = {
        "fd": 7,
        "caller": None if pid == PROXY else PROXY,
        "cut": False,
        "trace_id": "",
        "request_id": "",
        "answer_id": "",
        "prompt": b"",
        "first_ns": None,
        "kind": {P: "prefill", D: "decode"}.get(pid, "stream"),
    } | more
    return Hop(
        pid=pid, arrival_ns=round(arrival * MS), end_ns=None if end is None else round(end * MS), **fields
    )


def by(inner: Hop, *outers: Hop, inners: Iterable[Hop] = ()) -> tuple[float, str] | str:
    """To which arrival, ms, and by what it is joined; else why not."""
    found = find(inner, outers, [inner, *inners])
    return (found.outer.arrival_ns / MS, found.by) if isinstance(found, Join) else found


def test_what_both_say_joins() -> None:
    for key, name in (("trace_id", "trace"), ("request_id", "id"), ("answer_id", "answer")):
        a, b = hop(PROXY, 0, 90, **{key: "a"}), hop(PROXY, 5, 90, **{key: "b"})
        assert by(hop(D, 10, 20, **{key: "a"}), a, b) == (0, name)
        assert by(hop(D, 10, 20, **{key: "b"}), a, b) == (5, name)
        assert by(hop(D, 10, 20, **{key: "c"}), a, b) == "ambiguous"
        assert by(hop(D, 10, 20), a, b) == "ambiguous"
        # Two clients chose the same.
        both = dataclasses.replace(b, **{key: "a"})
        assert by(hop(D, 10, 20, **{key: "a"}), a, both) == "ambiguous"


def test_only_who_had_come_and_was_not_over_is_asked_for() -> None:
    inner = hop(D, 10, 20, request_id="a")
    assert by(inner, hop(PROXY, 11, 90, request_id="a")) == "unmatched"
    assert by(inner, hop(PROXY, 0, 9, request_id="a")) == "unmatched"
    assert by(inner, hop(PROXY, 0, 9, request_id="a", cut=True)) == (0, "id")
    assert by(inner, hop(PROXY, 0, None, request_id="a")) == (0, "id")
    assert by(inner, hop(9, 0, None, request_id="a")) == "unmatched"
    assert by(inner, hop(PROXY, 0, None, request_id="a", post=False)) == "unmatched"


def test_what_disagrees_joins_nothing() -> None:
    a, b = hop(PROXY, 0, 90, trace_id="a", request_id="x"), hop(PROXY, 5, 90, trace_id="b", request_id="y")
    assert by(hop(D, 10, 20, trace_id="a", request_id="y"), a, b) == "contradicting"
    assert by(hop(D, 10, 20, trace_id="a", request_id="z"), a, b) == (0, "trace")


def test_several_keys_together_may_leave_one() -> None:
    same = {"trace_id": "t"}
    a, b = hop(PROXY, 0, 90, answer_id="a", **same), hop(PROXY, 5, 90, answer_id="b", **same)
    assert by(hop(D, 10, 20, answer_id="b", **same), a, b) == (5, "answer")


def test_a_sibling_joins_who_says_nothing() -> None:
    a, b = hop(PROXY, 0, 90, answer_id="a"), hop(PROXY, 5, 90, answer_id="b")
    first, last = hop(P, 10, 20, request_id="1"), hop(D, 21, 30, request_id="1", answer_id="b")
    assert by(first, a, b, inners=[last]) == (5, "sibling")
    # Another prefill has the same id: it may be the one.
    assert by(first, a, b, inners=[last, hop(P, 11, 19, request_id="1")]) == "ambiguous"
    different = dataclasses.replace(b, prompt=b"y")
    assert by(dataclasses.replace(first, prompt=b"x"), a, different, inners=[last]) == "contradicting"


def test_the_prompt_joins_where_all_are_known_and_one_has_it() -> None:
    a, b = hop(PROXY, 0, 90, prompt=b"x"), hop(PROXY, 5, 90, prompt=b"y")
    assert by(hop(P, 10, 20, prompt=b"y"), a, b) == (5, "prompt")
    assert by(hop(P, 10, 20, prompt=b"z"), a, b) == "unmatched"
    assert by(hop(P, 10, 20, prompt=b"x"), a, dataclasses.replace(b, prompt=b"x")) == "ambiguous"
    assert by(hop(P, 10, 20, prompt=b"x"), a, dataclasses.replace(b, prompt=b"")) == "ambiguous"
    # One that was cut off may still be worked for.
    assert by(hop(P, 10, 20, prompt=b"x"), a, hop(PROXY, 0, 4, prompt=b"x", cut=True)) == "ambiguous"


# In the order of time.


@dataclasses.dataclass
class Chat:
    """A request, and what the proxy made of it. Times in ms."""

    start: int
    gaps: tuple[int, int, int, int, int]
    prompt: int
    client: int
    """Which of few ids its client sends; 0: none."""
    cut: bool
    """Its client gave up as soon as it had asked."""


CHATS = st.lists(
    st.builds(
        Chat,
        st.integers(0, 60),
        st.tuples(*[st.integers(1, 20)] * 5),
        st.integers(0, 2),
        st.integers(0, 2),
        st.booleans(),
    ),
    min_size=1,
    max_size=8,
)
PASSES = st.fixed_dictionaries({"trace": st.booleans(), "id": st.booleans(), "own": st.booleans()})


def hops_of(
    number: int, chat: Chat, passes: dict[str, bool], answers: str, known: bool
) -> tuple[Hop, Hop, Hop]:
    """Outer, P's and D's. `answers`: who makes the answers' ids."""
    a, b, c, d, e = chat.gaps
    times = [
        chat.start,
        chat.start + a,
        chat.start + a + b,
        chat.start + a + b + c,
        chat.start + a + b + c + d,
    ]
    end = times[-1] + e
    client = str(chat.client) if chat.client else ""
    own = f"own{number}" if passes["own"] else ""
    inner = {
        "trace_id": client if passes["trace"] else "",
        "request_id": client if passes["id"] else own,
        "prompt": b"%d" % chat.prompt if known else b"",
    }
    answer = {"none": "", "constant": "x", "unique": f"answer{number}", "proxy": f"proxy{number}"}[answers]
    outer = hop(
        PROXY,
        times[0],
        None if chat.cut else end,
        cut=chat.cut,
        fd=number,
        trace_id=client,
        request_id=client,
        answer_id="" if chat.cut else answer,
        prompt=b"%d" % chat.prompt,
    )
    last = hop(D, times[3], times[4], fd=number, answer_id="d" if answers == "proxy" else answer, **inner)
    return outer, hop(P, times[1], times[2], fd=number, **inner), last


def timing_of(one: Hop) -> RequestTiming:
    end = one.end_ns or one.arrival_ns
    return scripted.request(
        one.arrival_ns,
        [] if one.pid == P or one.cut else [end],
        one.end_ns,
        pid=one.pid,
        fd=one.fd,
        complete=not one.cut,
        caller_pid=one.caller,
    )


@settings(max_examples=100, deadline=None)
@given(CHATS, PASSES, st.sampled_from(["none", "constant", "unique", "proxy"]), st.booleans(), st.data())
def test_joins_are_right_or_absent(
    chats: list[Chat], passes: dict[str, bool], answers: str, known: bool, data: st.DataObject
) -> None:
    """Any interleaving, few ids and prompts shared by many, clients that give up, records that are lost."""
    everything = [hops_of(number, chat, passes, answers, known) for number, chat in enumerate(chats)]
    # A server that gives all its answers one id shows that by the next answer.
    losable = [1] if answers == "constant" else [1, 2]
    lost = data.draw(st.sets(st.tuples(st.integers(0, len(chats) - 1), st.sampled_from(losable))))
    seen = [
        one
        for number, group in enumerate(everything)
        for at, one in enumerate(group)
        if (number, at) not in lost
    ]

    def over(one: Hop) -> int:
        # Who gives up has asked a moment ago.
        return one.arrival_ns + 1 if one.end_ns is None else one.end_ns

    now = 0
    done = set()

    def running() -> list[Hop]:
        # Of an answer that runs the id is not known.
        return [
            dataclasses.replace(one, end_ns=None, answer_id="", cut=False)
            for one in seen
            if one.arrival_ns <= now and one.key not in done
        ]

    got: list[RequestTiming] = []
    hops = Hops(got.append, running)
    for one in sorted(seen, key=lambda one: (over(one), one.pid == PROXY)):
        now = over(one)
        done.add(one.key)
        hops.ended(one)
        hops.request(timing_of(one))
    assert len(got) == len(seen)
    arrivals = {(one.pid, one.fd): one.arrival_ns for one in seen}
    for timing in got:
        for pid, arrival, _, _ in timing.hops or ():
            assert arrivals[pid, timing.fd] == arrival
    if passes["id"] and len({chat.client for chat in chats}) == len(chats) and not any(c.cut for c in chats):
        # Each client has an id of its own, or says nothing.
        for timing in got:
            if timing.pid == PROXY and chats[timing.fd].client:
                assert len(timing.hops or ()) == sum((timing.fd, at) not in lost for at in (1, 2))
    hops.finish()
    assert len(hops) == 0
    alone = sum(hops.counts.values())
    joined = sum(len(timing.hops or ()) for timing in got)
    inner = sum(one.pid != PROXY for one in seen)
    assert alone + joined == inner


def test_what_is_kept_has_bounds() -> None:
    hops = Hops(lambda timing: None, list)
    for i in range(MAX_KEPT + 50):
        hops.ended(hop(P, i, i + 1))
    assert len(hops) == MAX_KEPT
    hops.advance(round((MAX_KEPT + 100) * MS) + KEEP_NS)
    assert len(hops) == 0
    assert hops.counts["hops_unmatched"] == MAX_KEPT + 50
    assert not hops._of
    assert not hops._asked
    assert not hops._saying


# Transfers.


def with_transfer(
    *moved: Transfer, others: Iterable[Hop] = (), running: Iterable[Hop] = (), **more: Any
) -> float | None:
    """What is told of a request of D's that arrived at 45 ms and whose first step began at 75."""
    got: list[RequestTiming] = []
    hops = Hops(got.append, lambda: list(running))
    for one in moved:
        hops.transfer(one)
    for other in others:
        hops.ended(other)
    fields = {"role": "decode", "queue_us": 30e3, "first_step": 75 * MS, "first_step_pid": 30, "fd": 7} | more
    hops.ended(hop(D, 45, 119, first_ns=95 * MS))
    hops.request(scripted.request(45 * MS, [95 * MS], 119 * MS, pid=D, caller_pid=PROXY, **fields))
    return got[0].transfer_us


def moved(start: int, end: int, pid: int = 30) -> Transfer:
    return Transfer(pid, start * MS, end * MS)


def test_a_transfer_is_of_the_only_request_that_waited() -> None:
    assert with_transfer(moved(50, 60)) == 10e3
    assert with_transfer(moved(50, 55), moved(57, 61)) == 11e3
    # Before it came, after its step began, and another process's.
    assert with_transfer(moved(40, 44), moved(44, 46), moved(74, 76), moved(50, 60, pid=31)) is None
    assert with_transfer(moved(50, 60), role=None) is None
    assert with_transfer(moved(50, 60), first_step=None, queue_us=None) is None
    assert with_transfer() is None


def test_a_transfer_beside_another_that_waited_is_nobodys() -> None:
    for first in (None, 55 * MS):
        other = hop(D, 40, None, fd=8, first_ns=first)
        assert with_transfer(moved(50, 60), running=[other]) is None
        assert with_transfer(moved(50, 60), others=[hop(D, 40, 58, fd=8, first_ns=first)]) is None
    # These had their first token before, or came afterwards, or ended before.
    assert with_transfer(moved(50, 60), running=[hop(D, 10, None, fd=8, first_ns=49 * MS)]) == 10e3
    assert with_transfer(moved(50, 60), running=[hop(D, 61, None, fd=8)]) == 10e3
    assert with_transfer(moved(50, 60), others=[hop(D, 10, 49, fd=8)]) == 10e3


def test_the_transfer_is_a_part_of_the_wait() -> None:
    found = parts(OUTER, [FIRST, dataclasses.replace(LAST, transfer_us=10e3)]) or {}
    assert (found["transfer"], found["decode_queue"], "decode_wait" in found) == (10e3, 20e3, False)
    assert sum(found.values()) == 100e3
    assert list(found) == [part for part in PARTS if part in found]


# The parts.


def inner(pid: int, arrival: int, first: int | None, end: int, **us: Any) -> RequestTiming:
    return scripted.request(
        arrival * MS, [] if first is None else [first * MS], end * MS, pid=pid, caller_pid=PROXY, **us
    )


OUTER = scripted.request(0, [100 * MS, 110 * MS], 120 * MS, pid=PROXY)
FIRST = inner(P, 5, None, 40, role="prefill", queue_us=3e3, prefill_us=20e3, gated_us=4e3, send_us=8e3)
LAST = inner(D, 45, 95, 119, role="decode", queue_us=30e3, prefill_us=12e3, gated_us=1e3, send_us=7e3)


def test_the_parts_of_a_request_through_two_instances() -> None:
    found = parts(OUTER, [FIRST, LAST])
    assert found == {
        "proxy": 15e3,
        "prefill_queue": 3e3,
        "prefill": 20e3,
        "decode_wait": 30e3,
        "first_step": 12e3,
        "gate": 5e3,
        "send": 15e3,
    }
    assert sum(found.values()) == 100e3
    assert list(found) == [part for part in PARTS if part in found]


NO_STEPS: dict[str, Any] = {"queue_us": None, "prefill_us": None, "gated_us": None, "send_us": None}


def test_what_was_not_seen_is_absent_and_not_zero() -> None:
    def names(*inners: RequestTiming) -> set[str]:
        return set(parts(OUTER, inners) or ())

    first, last = dataclasses.replace(FIRST, **NO_STEPS), dataclasses.replace(LAST, **NO_STEPS)
    assert names(first, LAST) == {"proxy", "decode_wait", "first_step", "gate"}
    assert names(FIRST, last) == {"proxy", "prefill_queue", "prefill", "gate"}
    assert names(first, last) == {"proxy"}
    # P was not seen at all: nor is it known how long the proxy waited for it.
    assert names(LAST) == {"decode_wait", "first_step", "gate", "send"}
    # P and D at the same time.
    assert names(dataclasses.replace(FIRST, t_end_ns=60 * MS), LAST) == {
        "decode_wait",
        "first_step",
        "gate",
        "send",
    }
    without = dataclasses.replace(FIRST, gated_us=None), dataclasses.replace(LAST, gated_us=None)
    assert "gate" not in names(*without)


def test_what_is_not_one_answer_has_no_parts() -> None:
    assert parts(OUTER, []) is None
    assert parts(OUTER, [FIRST]) is None
    assert parts(OUTER, [LAST, LAST]) is None
    assert parts(OUTER, [FIRST, FIRST, LAST]) is None
    assert parts(dataclasses.replace(OUTER, t_first_ns=None), [FIRST, LAST]) is None
    # A retry after an error is none of them.
    failed = dataclasses.replace(FIRST, status=503)
    assert (parts(OUTER, [failed, FIRST, LAST]) or {})["prefill"] == 20e3


def test_a_proxy_before_one_server_and_a_proxy_before_that() -> None:
    engine = dataclasses.replace(LAST, role=None)
    found = parts(OUTER, [engine])
    assert found == {"proxy": 50e3, "prefill_queue": 30e3, "prefill": 12e3, "gate": 1e3, "send": 7e3}
    middle = scripted.request(
        10 * MS, [90 * MS], 95 * MS, pid=9, caller_pid=PROXY, parts_us={"proxy": 1e3, "send": 2e3}
    )
    assert parts(OUTER, [middle]) == {"proxy": 21e3, "send": 2e3}
    assert parts(OUTER, [dataclasses.replace(middle, parts_us={"send": 2e3})]) == {"send": 2e3}


@pytest.mark.parametrize("gated", [None, 1e3])
def test_the_parts_never_exceed_the_ttft(gated: float | None) -> None:
    found = parts(OUTER, [dataclasses.replace(FIRST, gated_us=gated), LAST]) or {}
    assert sum(found.values()) <= 100e3
