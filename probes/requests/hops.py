"""Joins what one request became in several servers: a proxy's request, and those that the proxy made of it.

    hops = Hops(publish, open_hops)
    hops.ended(hop)            # every request of the wire tracer, before the next
    hops.request(timing)       # the same request, once it was joined to steps (`join`)
    hops.advance(now_ns)

An inner request came over a connection whose other end is a watched process that serves HTTP itself, its
caller. It belongs to one of the caller's own requests, which had arrived before and whose answer was not over
(or was never whole: who was cut off may still be worked for). It is joined to that one of these which is the
only one with

    trace     the same trace id in ``traceparent``
    id        the same ``X-Request-Id``
    answer    the same ``id`` in its answer, where no other inner request that is known had that in its own
    sibling   an inner request of the caller that is joined by these, and has the same trace id or
              ``X-Request-Id`` as this one; none of those that have it asks for the same (prefill, decode, a
              stream, an answer in one piece)
    prompt    the same prompt, where the prompts of all of them are known and nothing of the above says more;
              two inner requests that ask for the same are not both joined by this

A join that could be wrong is none. The inner request then stays alone and is counted: several fit
(``hops_ambiguous``), two of these name different requests (``hops_contradicting``), none fits
(``hops_unmatched``), or the one that fits was told before, as it had been cut off (``hops_late``).

What these rules cannot see: a request that came to the proxy in a way that is not read (TLS, HTTP/2) while
another one with the same prompt ran there, where nothing but the prompt passes through the proxy.

From the joins follow the parts of the outer request's TTFT (`parts`).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Final, Literal, TypeVar

from probes.feed.events import RequestTiming
from probes.requests.exchange import Exchange, Role
from probes.requests.parts import parts
from probes.steps.transfers import Transfer

Key = tuple[int, int, int]
Verdict = Literal["ambiguous", "contradicting", "unmatched", "late"]
By = Literal["trace", "id", "answer", "sibling", "prompt"]

_K = TypeVar("_K")

KEEP_NS: Final = 60_000_000_000
"""How long a request is kept after its end, for those that end later."""
MAX_KEPT: Final = 8192
MAX_SAME: Final = 32
"""Inner requests with one prompt at a time; of more, none is joined by it."""
MAX_TRANSFERS: Final = 4096
"""Moves of the KV cache that are kept of a process."""
LATE_NS: Final = 2_000_000_000
"""By how much requests may become known in another order than that of their ends."""
COUNTERS: Final = ("hops_ambiguous", "hops_contradicting", "hops_unmatched", "hops_late")


@dataclass(frozen=True, slots=True)
class Hop:
    """A request of one server, by what it is joined by. `end_ns`: None while it runs."""

    pid: int
    fd: int
    arrival_ns: int
    caller: int | None
    end_ns: int | None
    cut: bool
    """It ended, and not as a whole."""
    trace_id: str
    request_id: str
    answer_id: str
    prompt: bytes
    first_ns: int | None
    """When its first content left; None: it has not."""
    kind: Literal[Role, "stream", "whole"]
    """What it asks for: its role, or else whether it wants a stream."""
    post: bool = True

    @classmethod
    def of(cls, pid: int, fd: int, caller: int | None, exchange: Exchange, *, ended: bool) -> Hop:
        """Of an exchange that runs or has `ended`."""
        return cls(
            pid,
            fd,
            exchange.t_arrival,
            caller,
            exchange.t_end,
            ended and not (exchange.complete and exchange.t_end is not None),
            exchange.traceparent[3:35],
            exchange.request_id,
            exchange.answer_id,
            exchange.prompt_digest,
            exchange.t_first,
            exchange.role or ("stream" if exchange.wants_stream else "whole"),
            exchange.method == "POST",
        )

    @property
    def key(self) -> Key:
        """By which it is known again when it ends."""
        return self.pid, self.fd, self.arrival_ns

    def may_cause(self, inner: Hop) -> bool:
        """Whether the caller may have made `inner` of this one."""
        return (
            self.pid == inner.caller
            and self.post
            and self.arrival_ns <= inner.arrival_ns
            and (self.end_ns is None or self.cut or inner.arrival_ns <= self.end_ns)
        )


_DIRECT: Final[tuple[tuple[By, Callable[[Hop], str]], ...]] = (
    ("trace", lambda hop: hop.trace_id),
    ("id", lambda hop: hop.request_id),
    ("answer", lambda hop: hop.answer_id),
)


@dataclass(frozen=True, slots=True)
class Join:
    """To which request an inner one belongs, and by what."""

    outer: Hop
    by: By


def _says(hop: Hop) -> list[tuple[str, str | bytes]]:
    """What a request says by which it may be joined."""
    said: list[tuple[str, str | bytes]] = [(name, key(hop)) for name, key in _DIRECT if key(hop)]
    return [*said, ("prompt", hop.prompt)] if hop.prompt else said


@dataclass(slots=True)
class _Known:
    """A request that has ended."""

    hop: Hop
    timing: RequestTiming | None = None
    verdict: Verdict = "unmatched"
    joined: bool = False
    twice: bool = False
    """Another one came in one piece with it: they cannot be told apart."""


def _direct(inner: Hop, outers: list[Hop], inners: list[Hop]) -> Join | Verdict:
    """By what both of them say. What they say must agree; where that leaves several, by the prompt."""
    by: By | None = None
    fit: list[Hop] = []
    for name, key in _DIRECT:
        value = key(inner)
        if name == "answer" and any(
            other.answer_id == value and other.kind == inner.kind and other.key != inner.key
            for other in inners
        ):
            continue  # this server gives all its answers the same
        same = [outer for outer in outers if value and key(outer) == value]
        if not same:
            continue
        left = [outer for outer in fit if outer in same] if by else same
        if not left:
            return "contradicting"
        if by is None or len(left) < len(fit):
            by, fit = name, left
    if by is None:
        return "unmatched"
    return Join(fit[0], by) if len(fit) == 1 else _by_prompt(inner, fit)


def _by_prompt(inner: Hop, outers: list[Hop]) -> Join | Verdict:
    if not inner.prompt or not all(outer.prompt for outer in outers):
        return "ambiguous"
    same = [outer for outer in outers if outer.prompt == inner.prompt]
    if len(same) == 1:
        return Join(same[0], "prompt")
    return "ambiguous" if same else "unmatched"


def _siblings(inner: Hop, inners: list[Hop]) -> list[Hop]:
    """The other inner requests of the caller with the same trace or request id; none where one of them asks
    for what another one does."""
    group = [
        other
        for other in inners
        if other.key != inner.key
        and other.caller == inner.caller
        and (
            (other.trace_id and other.trace_id == inner.trace_id)
            or (other.request_id and other.request_id == inner.request_id)
        )
    ]
    kinds = {hop.kind for hop in (inner, *group)}
    return group if len(kinds) == 1 + len(group) else []


def find(inner: Hop, outers: Iterable[Hop], inners: list[Hop]) -> Join | Verdict:
    """The request of `outers` to which `inner` belongs. `inners`: all inner requests that are known, also
    those that run."""
    everyone = list(outers)
    able = [outer for outer in everyone if outer.may_cause(inner)]
    verdict = _direct(inner, able, inners)
    if verdict != "unmatched" or not able:
        return verdict
    joined = [
        _direct(other, [outer for outer in everyone if outer.may_cause(other)], inners)
        for other in _siblings(inner, inners)
    ]
    named = {one.outer.key: one.outer for one in joined if isinstance(one, Join)}
    if len(named) > 1 or "contradicting" in joined:
        return "contradicting"
    for outer in named.values():
        if outer not in able or (inner.prompt and outer.prompt and inner.prompt != outer.prompt):
            return "contradicting"
        return Join(outer, "sibling")
    return _by_prompt(inner, able)


class Hops:
    """Publishes requests; an outer one with what became of it. Not thread-safe.

    `open_hops` gives the requests that run.
    """

    def __init__(
        self,
        publish: Callable[[RequestTiming], None],
        open_hops: Callable[[], Iterable[Hop]],
    ) -> None:
        self._publish = publish
        self._open_hops = open_hops
        self._known: dict[Key, _Known] = {}
        self._of: dict[int, deque[_Known]] = {}
        """By process, in the order of their ends."""
        self._asked: Counter[int] = Counter()
        """Inner requests by their caller."""
        self._saying: dict[tuple[int, str, str | bytes], deque[_Known]] = {}
        """The same by what they say."""
        self._cut: dict[int, deque[_Known]] = {}
        """Of `_of`, those that were cut off."""
        self._transfers: dict[int, deque[Transfer]] = {}
        self.counts = dict.fromkeys(COUNTERS, 0)

    def __len__(self) -> int:
        return len(self._known)

    def ended(self, hop: Hop) -> None:
        """Take note of a request that has ended."""
        known = self._known.get(hop.key)
        if known is not None:
            known.twice = True
            return
        known = self._known[hop.key] = _Known(hop)
        self._of.setdefault(hop.pid, deque()).append(known)
        if hop.cut:
            self._cut.setdefault(hop.pid, deque()).append(known)
        if hop.caller is not None:
            self._asked[hop.caller] += 1
            for what in _says(hop):
                self._saying.setdefault((hop.caller, *what), deque()).append(known)
        while len(self._known) > MAX_KEPT:
            self._drop(next(iter(self._known.values())))

    def transfer(self, transfer: Transfer) -> None:
        """Memory that a process moved: perhaps the KV cache of one of its requests."""
        self._transfers.setdefault(transfer.pid, deque(maxlen=MAX_TRANSFERS)).append(transfer)

    def _transferred(self, timing: RequestTiming) -> RequestTiming:
        """With the time in which its KV cache came, if that is certain."""
        first, pid = timing.first_step, timing.first_step_pid
        if timing.role != "decode" or timing.queue_us is None or first is None or pid is None:
            return timing
        moved = [
            one
            for one in self._transfers.get(pid, ())
            if timing.t_arrival_ns <= one.start and one.end <= first
        ]
        if not moved:
            return timing
        start, end = min(one.start for one in moved), max(one.end for one in moved)
        own = timing.pid, timing.fd, timing.t_arrival_ns
        others = (*(one.hop for one in self._of.get(timing.pid, ())), *self._open_hops())
        if any(
            hop.pid == timing.pid
            and hop.key != own
            and hop.arrival_ns < end
            and (hop.end_ns is None or hop.end_ns > start)
            and (hop.first_ns is None or hop.first_ns > start)
            for hop in others
        ):
            return timing  # it may have been for one of these, which waited then
        return replace(timing, transfer_us=(end - start) / 1e3)

    def request(self, timing: RequestTiming) -> None:
        """A request that was joined to steps, or could not be: publish it."""
        timing = self._transferred(timing)
        known = self._known.get((timing.pid, timing.fd, timing.t_arrival_ns))
        if timing.pid in self._asked and known is not None and not known.twice:
            timing = self._joined(known.hop, timing)
        if known is not None:
            known.timing = timing
        self._publish(timing)

    def _joined(self, outer: Hop, timing: RequestTiming) -> RequestTiming:
        running = list(self._open_hops())
        asked = [hop for hop in running if hop.caller == outer.pid and hop.post]
        outers = {hop.key: hop for hop in running if hop.pid == outer.pid}
        since = outer.arrival_ns - LATE_NS
        outers |= {one.hop.key: one.hop for one in self._cut.get(outer.pid, ())}
        outers |= {one.hop.key: one.hop for one in _back(self._of[outer.pid], since)}

        def related(hop: Hop, *names: str) -> list[Hop]:
            """The inner requests that say something that `hop` says."""
            says = [what for what in _says(hop) if what[0] in names]
            ended = {
                one.hop.key: one.hop
                for what in says
                for one in _back(self._saying.get((outer.pid, *what), ()), since)
            }
            return [*ended.values(), *(one for one in asked if not set(says).isdisjoint(_says(one)))]

        ids = [name for name, _ in _DIRECT]
        same = [hop for hop in related(outer, "prompt") if outer.may_cause(hop)]
        near = {hop.key: hop for hop in related(outer, *ids) if outer.may_cause(hop)}
        near |= {hop.key: hop for hop in same if len(same) <= MAX_SAME}
        near |= {
            sibling.key: sibling
            for hop in list(near.values())
            for sibling in related(hop, *ids)
            if outer.may_cause(sibling)
        }
        found = {key: find(hop, outers.values(), related(hop, *ids)) for key, hop in near.items()}
        guessed = Counter(near[key].kind for key, join in found.items() if join == Join(outer, "prompt"))
        own: list[tuple[RequestTiming, By]] = []
        for key, join in found.items():
            known = self._known.get(key)
            if known is None or known.twice or known.timing is None:
                continue  # it runs
            if join == Join(outer, "prompt") and guessed[known.hop.kind] > 1:
                # One of them is of a request that was not seen.
                join = "ambiguous"
            if not isinstance(join, Join):
                known.verdict = join
            elif join.outer.key == outer.key:
                known.joined = True
                own.append((known.timing, join.by))
            else:
                known.verdict = "late"
        if not own:
            return timing
        own.sort(key=lambda one: one[0].t_arrival_ns)
        hops: list[tuple[int, int, str, str]] = [
            (one.pid, one.t_arrival_ns, one.role or "", by) for one, by in own
        ]
        return replace(timing, hops=hops, parts_us=parts(timing, [one for one, _ in own]))

    def advance(self, now_ns: int) -> None:
        """Forget what nothing can be joined to any more."""
        for pid in [pid for pid, moved in self._transfers.items() if now_ns - moved[-1].end > 10 * KEEP_NS]:
            del self._transfers[pid]
        if not self._known:
            return
        oldest = min((hop.arrival_ns for hop in self._open_hops()), default=now_ns)
        while self._known:
            known = next(iter(self._known.values()))
            last = known.hop.end_ns or known.hop.arrival_ns
            if now_ns - last < KEEP_NS or last >= oldest:
                return
            self._drop(known)

    def finish(self) -> None:
        """Nothing more will come: count what stayed alone."""
        while self._known:
            self._drop(next(iter(self._known.values())))

    def _drop(self, known: _Known) -> None:
        """Forget the oldest."""
        hop = known.hop
        del self._known[hop.key]
        for table in (self._of, self._cut):
            _take(table, hop.pid, known)
        if hop.caller is None:
            return
        for what in _says(hop):
            _take(self._saying, (hop.caller, *what), known)
        self._asked[hop.caller] -= 1
        if not self._asked[hop.caller]:
            del self._asked[hop.caller]
        if hop.post and not known.joined:
            self.counts[f"hops_{known.verdict}"] += 1


def _take(table: dict[_K, deque[_Known]], key: _K, known: _Known) -> None:
    """Remove `known`, the first of its row."""
    if key in table and table[key][0] is known:
        table[key].popleft()
        if not table[key]:
            del table[key]


def _back(known: Sequence[_Known], since_ns: int) -> list[_Known]:
    """Those that ended at `since_ns` or later."""
    return list(takewhile(lambda one: (one.hop.end_ns or since_ns) >= since_ns, reversed(known)))
