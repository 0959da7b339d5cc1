"""Distributions of what was measured: exact quantiles and power-of-two histograms.

`Distributions.take` is given events, live or from a recording, and keeps every value (8 bytes each). The same
events give the same numbers.

Quantiles are by nearest rank (`flexnpu.common.quantiles`).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from flexnpu.common.quantiles import nearest_rank
from probes.feed.events import Event, RequestTiming, Step
from probes.requests.parts import PARTS

MEASURES = {
    "step": "step time: from a step's first call to the return of the synchronise that ended it",
    "gap": "launch gap: from the end of a step to the first call of the next on its lane",
    "ttft": "time to first token: from a request's arrival to its first chunk with content",
    "queue": "part of the TTFT: before and between the request's own prefill steps",
    "prefill": "part of the TTFT: the request's own prefill steps, less the gate's time",
    "gated": "part of the TTFT: held by FlexNPU's gate in the request's own steps",
    "send": "part of the TTFT: from the end of those steps to the first chunk",
    "tpot": "time per output token after the first, one value a request",
    **{
        part: f"part of the TTFT of a request that several servers worked at: {meaning}"
        for part, meaning in {
            "proxy": "in the proxy",
            "prefill_queue": "before and between the prefill's steps",
            "transfer": "the KV cache moves",
            "decode_queue": "from then to the step that makes the first token",
            "decode_wait": "both of these, where they cannot be told apart",
            "first_step": "that step",
        }.items()
    },
}
"""What is measured, all in us. Requests that were not seen whole have no TPOT."""

QUANTILES = (0.5, 0.9, 0.99, 0.999)


@dataclass(frozen=True, order=True)
class Key:
    """Of what a distribution is. `stream` and `phase` are those of steps; requests have none."""

    measure: str
    comm: str
    pid: int
    stream: int | None = None
    phase: str | None = None


@dataclass
class Distribution:
    """Values, us."""

    values: array[float] = field(default_factory=lambda: array("d"))

    def add(self, value: float) -> None:
        """Add a value, us."""
        self.values.append(value)

    def __len__(self) -> int:
        return len(self.values)

    def quantile(self, q: float) -> float:
        """By nearest rank, us."""
        return nearest_rank(sorted(self.values), q)

    def quantiles(self) -> dict[str, float]:
        """p50 and so on, the least and the greatest, us."""
        ordered = sorted(self.values)
        named = {f"p{q * 100:g}": nearest_rank(ordered, q) for q in QUANTILES}
        return {"min": ordered[0], **named, "max": ordered[-1]}

    def buckets(self) -> list[tuple[int, int]]:
        """(k, how many values v have 2^k <= v < 2^(k+1) us), for each k from the least to the greatest.
        Values below 1 us count in k = 0."""
        counts: dict[int, int] = {}
        for value in self.values:
            k = max(0, math.frexp(value)[1] - 1)
            counts[k] = counts.get(k, 0) + 1
        return [(k, counts.get(k, 0)) for k in range(min(counts), max(counts) + 1)] if counts else []


class Distributions:
    """All that `MEASURES` names, of the events taken."""

    def __init__(self) -> None:
        self._of: dict[Key, Distribution] = {}
        self._ended: dict[tuple[int, int], int] = {}
        self.overlapping = 0
        """Steps that began before the step before them on their lane had ended: no gap."""
        self.unfinished = 0
        """Requests that were not seen whole: no TPOT."""

    def take(self, event: Event) -> None:
        """Measure one event."""
        if isinstance(event, Step):
            self._step(event)
        elif isinstance(event, RequestTiming):
            self._request(event)

    def _step(self, step: Step) -> None:
        if step.ended_by == "detach":
            self._ended.pop((step.pid, step.stream), None)
            return  # cut short by us
        of = (step.comm, step.pid, step.stream, step.phase)
        self._add(Key("step", *of), step.duration_us)
        before = self._ended.get((step.pid, step.stream))
        self._ended[step.pid, step.stream] = step.t_end_ns
        if before is None:
            return
        gap = step.t_start_ns - before
        if gap < 0:
            self.overlapping += 1
        else:
            self._add(Key("gap", *of), gap / 1e3)

    def _request(self, request: RequestTiming) -> None:
        of = (request.comm, request.pid)
        if request.t_first_ns is not None:
            self._add(Key("ttft", *of), max(0, request.t_first_ns - request.t_arrival_ns) / 1e3)
        for part, value in ttft_parts(request):
            self._add(Key(measure_of(part), *of), value)
        if not request.complete:
            self.unfinished += 1
            return
        tpot = tpot_us(request)
        if tpot is not None:
            self._add(Key("tpot", *of), tpot)

    def _add(self, key: Key, value: float) -> None:
        self._of.setdefault(key, Distribution()).add(value)

    def __iter__(self) -> Iterator[tuple[Key, Distribution]]:
        order = list(MEASURES)
        yield from sorted(self._of.items(), key=lambda item: (order.index(item[0].measure), item[0]))

    def to_json(self) -> list[dict[str, object]]:
        """One object a distribution: its key, how many values, quantiles (us) and power-of-two counts."""
        return [
            {
                "measure": key.measure,
                "comm": key.comm,
                "pid": key.pid,
                "stream": key.stream,
                "phase": key.phase,
                "count": len(values),
                "us": values.quantiles(),
                "log2_us": {str(k): count for k, count in values.buckets()},
            }
            for key, values in self
        ]


def ttft_parts(request: RequestTiming) -> list[tuple[str, float]]:
    """(part of the TTFT, us), in the order of a request's way; those that are known."""
    if request.parts_us is not None:
        return [(part, request.parts_us[part]) for part in PARTS if part in request.parts_us]
    parts = (
        ("queue", request.queue_us),
        ("prefill", request.prefill_us),
        ("gate", request.gated_us),
        ("send", request.send_us),
    )
    return [(part, us) for part, us in parts if us is not None]


def measure_of(part: str) -> str:
    """The name of a part in `MEASURES`."""
    return "gated" if part == "gate" else part


def tpot_us(request: RequestTiming) -> float | None:
    """Time per output token after the first, us: (last chunk - first chunk) / (tokens - 1), with chunks for
    tokens where the server does not tell. None with fewer than two."""
    chunks = request.chunk_ns
    tokens = request.tokens or len(chunks)
    if len(chunks) < 2 or tokens < 2:
        return None
    return (chunks[-1] - chunks[0]) / (tokens - 1) / 1e3


def describe(key: Key) -> str:
    """A line that names a distribution."""
    where = "" if key.stream is None else f" stream {key.stream:#x}"
    phase = "" if key.phase is None else f" {key.phase}"
    return f"{key.measure}{phase}  {key.comm}:{key.pid}{where}"


def human_us(value: float) -> str:
    """A time in us, ms or s, three digits."""
    for unit, size in (("us", 1.0), ("ms", 1e3), ("s", 1e6)):
        if value < 999.5 * size or unit == "s":
            return f"{value / size:.3g} {unit}"
    raise AssertionError


def lines(key: Key, values: Distribution, width: int) -> Iterator[str]:
    """A distribution as text: its name, quantiles, and a bar a power of two."""
    yield f"{describe(key)}   n={len(values)}"
    quantiles = "  ".join(f"{name} {human_us(value)}" for name, value in values.quantiles().items())
    yield f"  {quantiles}"
    buckets = values.buckets()
    most = max(count for _, count in buckets)
    digits = len(str(most))
    for k, count in buckets:
        low = human_us(2.0**k) if k else "0 us"
        label = f"  {low:>8} .. {human_us(2.0 ** (k + 1)):>8} {count:>{digits}} "
        room = max(8, width - len(label) - 2)
        filled = max(1, round(count / most * room)) if count else 0
        yield f"{label}|{'@' * filled:<{room}}|"
    yield ""
