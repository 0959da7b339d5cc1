"""What the probes publish: a `Step` a model step, a `RequestTiming` a streamed request, `HostDelay`, and
`Losses`.

Every event has one JSON form, a single line with ``"v"`` (the version of the form, `VERSION`) and
``"type"`` (``step``, ``begin``, ``request``, ``open``, ``process``, ``host``, ``mix``, ``engine`` or
``losses``). A reader ignores
fields that it does not know, so fields may be added without a new version. A measurement that could not be
made is ``null``, never zero.

All times are nanoseconds of CLOCK_MONOTONIC on the traced machine (Python's `time.monotonic_ns`), so
steps and requests share one axis.

>>> line = Losses(t_ns=1, source="steps", counts={"steps_lost": 0}).to_json()
>>> from_json(line).counts
{'steps_lost': 0}
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from probes.feed.limits import Limits

if TYPE_CHECKING:
    from pydantic import TypeAdapter

from flexnpu.console.text import json_text

VERSION = 1

Phase = Literal["prefill", "decode", "mixed", "other"]

# Strict: a string that merely looks like a number is a malformed line.
_NonNegative = Annotated[int, Limits(ge=0, strict=True)]
_Fraction = Annotated[float, Limits(ge=0.0, le=1.0, strict=True)]
_Microseconds = Annotated[float, Limits(ge=0.0, allow_inf_nan=False, strict=True)]
_Flag = Annotated[bool, Limits(strict=True)]


DELIVERED = frozenset({"steps_sent", "steps_received"})
"""Kinds of `Losses.counts` that count what was delivered."""

_NO_LOSS = frozenset({"feed_subscribers", "feed_refused", "windows", "restored"})


def is_loss(kind: str) -> bool:
    """Whether `kind` of `Losses.counts` counts what was lost or left undecided, or evidence that was given
    up: not what was delivered, nor what was done, such as the hits of a probe (``hits_``...)."""
    return kind not in DELIVERED and kind not in _NO_LOSS and not kind.startswith("hits_")


class EventError(ValueError):
    """A line that is not an event: not JSON, another version, an unknown type, or a wrong field."""


class _Event:
    """What all events share: the JSON form."""

    __slots__: ClassVar[tuple[str, ...]] = ()
    type: ClassVar[str]

    def to_json(self) -> str:
        """The event as one line of JSON, without the newline."""
        fields = {slot: getattr(self, slot) for slot in self.__slots__}
        return json_text({"v": VERSION, "type": self.type, **fields}, compact=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Step(_Event):
    """One forward pass of a model, or another run of launches between two boundaries, on one lane.

    A lane is a stream of a process. `phases` says how the phase and the tokens are found, and what
    `evidence` and `confidence` mean.
    """

    type: ClassVar[str] = "step"

    t_start_ns: _NonNegative
    """First call that belongs to the step (its first copy, embedding or launch), CLOCK_MONOTONIC. If the step
    before was still running, its end: the device had not begun this one."""
    t_end_ns: _NonNegative
    """When the device was through with the step's last operator, as the return of a wait for it told; for one
    that nobody waited for, its last launch."""
    pid: _NonNegative
    """The process's number."""
    comm: str
    """Name of the process, as the kernel has it (15 bytes)."""
    stream: _NonNegative
    """The stream's handle as the traced process sees it."""
    phase: Phase
    """``other``: no forward pass, or not known."""
    tokens: _NonNegative | None
    """Tokens processed over all sequences, without padding as far as it is known (`padded`); None when
    nothing showed them."""
    batch: _NonNegative | None
    """Sequences in the step, without those that are padding as far as that is known; None when nothing showed
    them."""
    launches: _NonNegative | None
    """Operator launches on the lane since its step before; None while launches are not probed."""
    graph_launches: _NonNegative
    """Launches of whole captured graphs."""
    h2d_bytes: _NonNegative
    """Bytes copied from host to device in the step."""
    d2h_bytes: _NonNegative
    """Bytes copied from device to host in the step."""
    evidence: str
    """What the phase rests on, e.g. ``embedding[1,37]``."""
    confidence: _Fraction
    """How sure the phase is."""
    gated_us: _Microseconds | None = None
    """Time for which the daemon's gate held the lane's head during the step; None without a daemon."""
    kv_len: _NonNegative | None = None
    """Longest KV length of any sequence, where an attention operator showed it."""
    ended_by: str = "sync"
    """``sync``, ``copy``, ``embedding`` (the next step began), ``graph``, ``gap``, or ``detach``."""
    launches_typical: _NonNegative | None = None
    """Median of `launches` over the last steps of the lane and phase that have it."""
    padded: _NonNegative | None = None
    """Tokens of padding that were computed beside `tokens`; None where it is not known whether there were
    any."""
    since_last_us: _Microseconds | None = None
    """From the end of the lane's step before to this one's end: the step's own time, and that of the host
    between the two. None for a lane's first."""

    @property
    def duration_us(self) -> float:
        """From its first launch to its last boundary."""
        return (self.t_end_ns - self.t_start_ns) / 1e3


@dataclasses.dataclass(frozen=True, slots=True)
class StepBegin(_Event):
    """A step has just opened on a lane; its `Step` follows when it is over. For who must act while it runs.

    Fields mean what they mean in `Step`; evidence that comes later in the step may still change the phase
    there.
    """

    type: ClassVar[str] = "begin"

    t_ns: _NonNegative
    """First call of the step."""
    pid: _NonNegative
    """The process's number."""
    comm: str
    """Name of the process, as the kernel has it (15 bytes)."""
    stream: _NonNegative
    """As in `Step`, and so are the next five."""
    phase: Phase
    tokens: _NonNegative | None
    batch: _NonNegative | None
    evidence: str
    confidence: _Fraction


@dataclasses.dataclass(frozen=True, slots=True)
class RequestTiming(_Event):
    """One streamed HTTP request as seen on the server's socket."""

    type: ClassVar[str] = "request"

    pid: _NonNegative
    """The process's number."""
    comm: str
    """Name of the process, as the kernel has it (15 bytes)."""
    fd: _NonNegative
    """The connection's descriptor in the server."""
    t_arrival_ns: _NonNegative
    """First byte of the request at the server's socket; where the kernel does not show that, read by the
    server."""
    t_first_ns: _NonNegative | None
    """First chunk with content (not the role chunk) sent; None when none was."""
    t_end_ns: _NonNegative | None
    """End of the response sent; None while it runs, or when it was cut off."""
    chunk_ns: list[_NonNegative]
    """When each content chunk was sent, the first included."""
    path: str
    """Of the request, without its query."""
    status: _NonNegative | None
    """HTTP status of the response; None when there was none."""
    prompt_chars: _NonNegative | None
    """Characters of the prompt; None when the body did not show it."""
    complete: _Flag
    """The whole exchange was seen: no byte of it was lost by the tracer and it ended as HTTP says."""
    t_read_ns: _NonNegative | None = None
    """First byte of the request read by the server. Before that it waited in the kernel for the server."""
    t_write_ns: _NonNegative | None = None
    """Start of the write that had the first content; of an answer of one token in one piece, of its first
    byte. From then to `t_first_ns` the kernel kept it back, for
    an acknowledgement (Nagle's algorithm) or room in the client's window."""
    tokens: _NonNegative | None = None
    """Tokens of the answer: what the server said in ``usage``, or by token ids; else its content chunks."""
    tokens_from: Literal["usage", "chunks"] | None = None
    """Where `tokens` comes from: ``usage`` is also for token ids."""
    prompt_tokens: _NonNegative | None = None
    """As the server said in ``usage``."""
    queue_us: _Microseconds | None = None
    """Part of the TTFT that was spent before the request's own steps, and between them. This and what
    follows is found by joining the request to steps (`join`), and None when none was seen. The four parts
    sum to the TTFT; of an answer of one token in one piece, to the time until that began to leave."""
    prefill_us: _Microseconds | None = None
    """Part of the TTFT in the request's own prefill steps, less `gated_us`. Where the prompt was computed by
    another server, the step that made the first token."""
    gated_us: _Microseconds | None = None
    """Part of the TTFT for which the daemon's gate held the lane in those steps; None without a daemon."""
    send_us: _Microseconds | None = None
    """Part of the TTFT from the end of the last own prefill step until the first content was sent."""
    tpot_gated_us: _Microseconds | None = None
    """Gate time an output token after the first; None without a daemon."""
    first_step: _NonNegative | None = None
    """`Step.t_start_ns` of the step that made the first token."""
    first_step_pid: _NonNegative | None = None
    """The process of that step."""
    prefill_steps: _NonNegative | None = None
    """Steps of the prompt; several where the prefill is chunked."""
    join_confidence: _Fraction | None = None
    """How sure the join is (`join`)."""
    error: Literal["event", "finish"] | None = None
    """The stream said that the request failed, whatever the status: by an error event, or by the reason for
    which it finished (``error``, ``abort``)."""
    t_answer_ns: _NonNegative | None = None
    """First byte of the response sent."""
    role: Literal["prefill", "decode"] | None = None
    """What the request asks an instance to do that does one phase only (vLLM's ``kv_transfer_params``)."""
    caller_pid: _NonNegative | None = None
    """The watched server, another process, from which the request came. It is then part of a request of that
    one, and no client's."""
    request_id: str | None = None
    """Header ``X-Request-Id`` of the request."""
    traceparent: str | None = None
    """Header ``traceparent`` of the request (W3C Trace Context)."""
    answer_id: str | None = None
    """``id`` in the answer."""
    hops: list[tuple[_NonNegative, _NonNegative, str, str]] | None = None
    """The requests to other servers that were made of this one (`hops`), in the order of their arrival:
    process, `t_arrival_ns`, `role` (or empty), and by what it was joined."""
    transfer_us: _Microseconds | None = None
    """Of `queue_us`, the time in which the KV cache came from another server; None where no transfer was
    seen, or it may have been another request's."""
    parts_us: dict[str, _Microseconds] | None = None
    """The parts of the TTFT, us, where other servers worked at it (`parts`). A part whose events were not all
    seen is absent."""


@dataclasses.dataclass(frozen=True, slots=True)
class OpenRequests(_Event):
    """The requests of a server that have arrived and were not answered in full, once a second while there
    are any, and once when there are none any more."""

    type: ClassVar[str] = "open"

    t_ns: _NonNegative
    """When it was so: all that the server had written by then is taken into account."""
    pid: _NonNegative
    """The process's number."""
    comm: str
    """Name of the process, as the kernel has it (15 bytes)."""
    in_flight: _NonNegative
    """How many."""
    oldest_ns: _NonNegative | None
    """Arrival of the oldest; None when there are none."""
    waiting: list[tuple[_NonNegative, _NonNegative]]
    """(descriptor, arrival) of those that asked for a stream and have no content yet, the oldest first. By
    `RequestTiming.t_arrival_ns` it is known again when it ends; a connection may be handed to another process
    meanwhile. Left out are
    requests whose body did not show what they ask for, and streams that cannot be read."""
    unlisted: _NonNegative = 0
    """As `waiting`, beyond the number that is listed."""
    inner: list[_NonNegative] = dataclasses.field(default_factory=list)
    """Which of `waiting`, by their numbers from 0, came from another watched server."""


@dataclasses.dataclass(frozen=True, slots=True)
class ProcessState(_Event):
    """A process that is traced, should be, or serves HTTP for one that is. Published when it is found, when
    something of it changes, when it ends, and for each new reader of a feed."""

    type: ClassVar[str] = "process"

    t_ns: _NonNegative
    """When it was so."""
    pid: _NonNegative
    """The process's number."""
    comm: str
    """Its present name, as the kernel has it (15 bytes)."""
    service: str | None
    """The name that outlives the process; None when nothing told one (`probes.host.services`)."""
    service_from: Literal["environment", "pod", "container", "unit", "port"] | None
    """What told it."""
    probes: _NonNegative | None
    """Probes on it; 0 for one that uses an NPU and could not be attached to; None for one that need not
    have any."""
    wire: _Flag
    """Whether its sockets are watched."""
    listening: _NonNegative | None = None
    """TCP sockets on which it listens; None when that could not be read."""
    connections: _NonNegative | None = None
    """Connections of clients to them."""
    unread: _NonNegative | None = None
    """Of those, how many it has not accepted, or have sent what it has not read."""
    ended: _Flag = False
    """It has ended, or is not watched any more."""


@dataclasses.dataclass(frozen=True, slots=True)
class HostDelay(_Event):
    """What the host made a process, or one of its launching threads, wait for during an interval.

    All threads of a process together may wait longer than the interval. See `taskstats`.
    """

    type: ClassVar[str] = "host"

    t_ns: _NonNegative
    """End of the interval."""
    pid: _NonNegative
    """The process's number."""
    comm: str
    """Name of the process, or of the thread."""
    tid: _NonNegative | None
    """The thread, one that launches; None for the whole process, its other threads included."""
    interval_us: _Microseconds
    """Length of the interval."""
    cpu_us: _Microseconds
    """Time on a CPU."""
    runqueue_us: _Microseconds
    """Time runnable without a CPU."""
    blkio_us: _Microseconds | None = None
    """Time waiting for block devices; None where the kernel does not count it."""
    swapin_us: _Microseconds | None = None
    """Time waiting for pages from swap; None where the kernel does not count it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Losses(_Event):
    """What a tracer could not deliver or decide, counted since it started.

    It is published once a second at least, also when nothing was lost: readers take silence for death.
    Counters only grow; an absent key was not counted. Keys of ``source="steps"`` are listed in
    `tracer.COUNTERS`, those of ``source="wire"`` in `wire`; ``source="feed"`` has ``feed_dropped``, the
    lines that this subscriber of a feed was too slow for.
    """

    type: ClassVar[str] = "losses"

    t_ns: _NonNegative
    """When it was counted."""
    source: str
    """Which part counts: ``steps``, ``wire`` or ``feed``."""
    counts: dict[str, _NonNegative]
    """By kind."""
    cpus: dict[str, list[_NonNegative]] | None = None
    """Counters of the kernel side by CPU; `counts` has their sums."""


@dataclasses.dataclass(frozen=True, slots=True)
class OperatorMix(_Event):
    """The operators that a stream was given in a window of detail."""

    type: ClassVar[str] = "mix"

    t_ns: _NonNegative
    """End of the window."""
    pid: _NonNegative
    """The process's number."""
    comm: str
    """Name of the process, as the kernel has it (15 bytes)."""
    stream: _NonNegative
    """The stream's handle as the traced process sees it."""
    window_us: _Microseconds
    """Length of the window."""
    operators: dict[str, _NonNegative]
    """Second calls by operator (``aclnnMatmul``), the most frequent first."""


_Amount = Annotated[float, Limits(ge=0.0, allow_inf_nan=False)]


@dataclasses.dataclass(frozen=True, slots=True)
class EngineMetrics(_Event):
    """What a serving engine says of itself on its own metrics page (`engine`). Counts are since its start;
    of several instances on one page they are sums."""

    type: ClassVar[str] = "engine"

    t_ns: _NonNegative
    """When the page was read."""
    url: str
    """Of the page."""
    engine: str
    """``vllm``, ``sglang``, or empty when the page has nothing that is known."""
    running: _Amount | None = None
    """Requests in the running batch."""
    waiting: _Amount | None = None
    """Requests that wait to be scheduled."""
    kv_usage: _Amount | None = None
    """Share of the KV cache in use, 0 to 1, of the fullest instance."""
    prompt_tokens: _Amount | None = None
    """Prompt tokens processed."""
    generation_tokens: _Amount | None = None
    """Tokens generated."""
    preemptions: _Amount | None = None
    """Requests preempted for want of KV cache."""
    ttft_s: _Amount | None = None
    """Sum of the times to first token, s."""
    ttft_count: _Amount | None = None
    """Number of the times in `ttft_s`."""
    queue_s: _Amount | None = None
    """Sum of the times in the engine's queue, s."""
    queue_count: _Amount | None = None
    """Number of the times in `queue_s`."""
    interval_s: _Amount | None = None
    """Sum of the times between output tokens, s."""
    interval_count: _Amount | None = None
    """Number of the times in `interval_s`."""
    error: str | None = None
    """Why the page could not be read."""


Event = (
    EngineMetrics
    | Step
    | StepBegin
    | RequestTiming
    | OpenRequests
    | ProcessState
    | HostDelay
    | Losses
    | OperatorMix
)

_TYPES: dict[str, type[Event]] = {
    "step": Step,
    "begin": StepBegin,
    "request": RequestTiming,
    "open": OpenRequests,
    "process": ProcessState,
    "host": HostDelay,
    "losses": Losses,
    "mix": OperatorMix,
    "engine": EngineMetrics,
}


@cache
def _adapter(kind: str) -> TypeAdapter[Event]:
    from pydantic import TypeAdapter

    return TypeAdapter(_TYPES[kind])


_OURS = re.compile(rf'\{{"v":{VERSION},"type":"([a-z]+)",')
_OURS_BYTES = re.compile(_OURS.pattern.encode())


def from_json(line: str | bytes) -> Event:
    """Read one event. Raises `EventError`, which says what is wrong with the line."""
    # As `to_json` writes it, it is read in half the time; what that does not take is looked at below.
    match = _OURS.match(line) if isinstance(line, str) else _OURS_BYTES.match(line)
    if match is not None:
        name = match[1] if isinstance(match[1], str) else match[1].decode()
        if name in _TYPES:
            with contextlib.suppress(ValueError):  # of which pydantic's error is one
                return _adapter(name).validate_json(line)
    try:
        raw: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise EventError(f"not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise EventError(f"not a JSON object: {type(raw).__name__}")
    version, kind = raw.pop("v", None), raw.pop("type", None)
    if version != VERSION:
        raise EventError(f"version {version!r}, this program reads version {VERSION}")
    if not isinstance(kind, str) or kind not in _TYPES:
        raise EventError(f"unknown type {kind!r}")
    adapter = _adapter(kind)
    from pydantic import ValidationError

    try:
        return adapter.validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise EventError(f"{kind}: {where}: {first['msg']}") from None
