"""Telling prefill from decode.

Method
======

The kernel side (`bpf/`) folds the calls of a lane into one record a step. This module turns a
record into a phase, a token count and a batch. It looks at shapes and copies and never at launch counts:
an eager Llama of four layers launches 218 operators for a 37-token prefill and 214 for a decode step, and
a graph launches one.

What is one step
----------------

A model's forward pass begins with its token embedding, so the second call ``aclnnEmbedding(..., stream)``
opens a step on its stream. Its first call, usually on another thread, gave the shape; the two are joined
by the executor. The launch of a captured graph that holds an embedding opens a step in the same way. Another
graph is a piece of the step that runs, unless that step's result has gone to the host and new input has come
since, or the same graph has opened the step.

A step is *known* to be over when the next one opens on the lane. Where it *ended* is another matter, for
three reasons. A forward pass may wait in its middle: transformers asks whether the attention mask is all
ones, which copies one byte to the host after about nine operators, and vLLM-Ascend synchronises before each
piece of a graph. A program waits between steps: generation looks at stop conditions, and every copy to the
device synchronises first. And it need not wait on the thread that launches: with asynchronous scheduling
another thread waits for the step before, while this one is launched.

So a step ends at a *point* of its lane. Points are where somebody waits, and where something is copied to the
host without waiting. Of all the points between two openings the step ends at the last one whose run (since
the point before) is at least a quarter of the longest run in the step. The model's body is that run; stop
conditions and masks are much shorter, and layers of a mixture-of-experts that synchronise each count as parts
of one body. A run that holds a graph is part of the body, too. A point behind the first copy to the device
that follows a copy to the host is no end: it is the next step's input that was copied.

When the device has come to that point, a wait says: the first to return that waits for it. A stream's
synchronise waits for what was launched before the call, an event's for what was before its record. So a wait
for the step before says nothing of the one that runs. A step whose launches are over, and
whose end is not, is told when it is.

A copy to the host soon after a synchronise is the result of the step that the synchronise has ended. Or the
synchronise was in the step's middle, and launches that nobody counts came since: the program is done with
them much sooner than the device. Then the wait for the copy lasts, and the step ends with it.

A stream that waits for an event of a model's lane (to copy the result back, to sample) is a *side lane*. It
has no steps; copies and launches there are the model's step's.

A step begins with its first copy to the device, embedding or launch, or when the step before ends on the
device, whichever is later. So steps of one lane do not overlap, and the duration is the device's time from
the first operator to the last one, as closely as a host can see it.

A run is measured in time, since launches are mostly not probed. Then a program that waits for its next
request would seem to have one long run; so a synchronise that hardly waited does not count when the step
had already come to half of the last one's length, and has been silent for twice that. Where every
launch is probed (the plan ``detail``), runs are measured in launches, and none of that is needed.

Without any wait, the last launch ends the step, or the next opening where launches are not seen.
Launches between a step's end and the next opening (sampling, stop conditions, preparing inputs) are counted
in the step that follows, so that the sum over steps is the sum over launches.

A last step that nothing follows is published after `IDLE_NS` without activity on its lane, or at detach.

A model whose embedding is another operator (a gather, say) has its steps opened by the first call of an
attention operator, and each ends at the next synchronise of the same thread; a pass that synchronises in its
middle is then seen as two. A lane that never showed any of these has plain steps, each ended by a
synchronise: where launches are not probed, one that waited at least 100 us.

A second embedding before any synchronise, or with a smaller table in the first quarter of a step's usual
length (positions, token types), belongs to the same step.

Phase and tokens, by evidence
-----------------------------

=========================  ================================  ===============================  ==========
evidence                   example                           phase                            confidence
=========================  ================================  ===============================  ==========
indices [B,T] of an        ``embedding[1,37]``               T > 1 prefill, T = 1 decode      1; 0.9 (a)
embedding
indices [N], cumulative    ``embedding[9] lengths[1,..,9]``  every sequence one token:        0.95
query lengths                                                decode; none: prefill; some:
                                                             mixed
indices [N], KV lengths    ``embedding[4] kv*4``             N = sequences: decode;           0.8, 0.5
                                                             more: mixed
indices [1]                ``embedding[1]``                  decode                           0.9
indices [N] alone          ``embedding[64]``                 other, tokens N                  0
captured graph, shape      ``graph of embedding[4,1]``       as its embedding                 0.95
seen at capture
graph, lengths of a task   ``graph lengths[1,..,4]*4``       as the lengths say               0.9
update
graph, one copy to the     ``graph h2d 32 B``                decode, 8 bytes a token          0.6
device before it
graph alone                ``graph``                         decode, tokens unknown           0.4
attention without an       ``attention queryBNSD[4,8,1,64]`` tokens a sequence 1: decode,     0.8, 0.6
embedding                                                    more: prefill; or as the
                                                             lengths say
embedding, shape not seen  ``embedding, shape not seen``     other                            0
graph capture              ``capture of embedding[4,1]``     other: nothing ran               1
none of these              ``no embedding, no graph``        other                            0.5
=========================  ================================  ===============================  ==========

(a) 0.9 unless the embedding's table [V,H] and result [B,T,H] fit the indices, and when the program keeps an
executor, whose first call it leaves out: the shape is that of its first use.

`confidence` orders the evidence; it is no probability. A step with confidence 0 is counted as unclassified.

What cannot be told apart
-------------------------

A prompt of one token looks like a decode step; so does the first step of a request whose prompt another
instance has computed, which computes its last token again. The verification of several drafted tokens looks
like a short prefill.

Tokens of padding are left out where that can be seen, and `Verdict.padded` counts them: query lengths that
end before the indices do, and sequences whose KV length is zero. Nothing shows it in a padded batch of [B,T],
or in a graph's replay without lengths. Then tokens are what the device computes, and `padded` is None.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from probes.feed.events import Phase

IDLE_NS = 250_000_000
"""Silence after which a step that has synchronised is taken to be over."""

INDEX_BYTES = 8
"""Bytes of one token id as programs copy it to the device (int64)."""


ROLES: dict[int, Literal["query", "kv"]] = {1: "query", 2: "kv"}
"""What an array of lengths is to an attention operator, as the kernel side numbers it."""


@dataclass(frozen=True)
class Lengths:
    """What the kernel side keeps of an array of positive integers: sequence lengths, or their running sum."""

    n: int
    seen: int
    """Values looked at; less than `n` for very long arrays, whose other fields then cover only the
    beginning."""
    ones: int
    """Differences between neighbours (of the first to 0) that are 1."""
    rising: bool
    first: int
    last: int
    max: int
    sum: int
    role: Literal["query", "kv"] | None = None
    """What an attention operator takes it for; None where it was seen at its making."""
    padded: int = 0
    """Zeros behind the values: sequences that are padding, not counted in `n`."""


@dataclass(frozen=True)
class Evidence:
    """What was seen of a step's shape."""

    embedding: bool = False
    """An embedding opened the step."""
    indices: tuple[int, ...] | None = None
    """Shape of the embedding's indices; None when it was not seen."""
    agreed: bool = False
    """Table [V,H], indices [...] and result [...,H] of the embedding fit together."""
    graph: bool = False
    """A captured graph opened the step."""
    from_capture: bool = False
    """`indices` was learned when the graph was captured."""
    capture: bool = False
    """The launches were captured into a graph and did not run."""
    h2d_bytes: int = 0
    h2d_copies: int = 0
    arrays: Sequence[Lengths] = ()
    attention: bool = False
    """An attention operator opened the step: there was no embedding that could be seen."""
    query: tuple[int, ...] | None = None
    """Shape of the query of the step's first attention operator."""
    query_layout: str = ""
    """What that operator says of it: B sequences, S their tokens, T tokens of all, N heads, D or H."""
    remembered: bool = False
    """`indices` are of an earlier call with the same executor, which the program keeps."""


@dataclass(frozen=True)
class Verdict:
    """What a step was: phase, tokens and sequences where known, the evidence, confidence from 0 to 1."""

    phase: Phase
    tokens: int | None
    batch: int | None
    evidence: str
    confidence: float
    kv_len: int | None = None
    padded: int | None = None
    """Tokens of padding, which are not in `tokens`; None: not known whether there are any."""

    @property
    def unclassified(self) -> bool:
        """Whether nothing was known."""
        return self.confidence == 0.0


def _shape(indices: Sequence[int]) -> str:
    return "embedding[" + ",".join(map(str, indices)) + "]"


def _of_query_lengths(lengths: Lengths) -> tuple[Phase, int]:
    """Phase and tokens by the cumulative query lengths of a batch."""
    if lengths.ones == lengths.seen:
        return "decode", lengths.last
    return ("prefill" if lengths.ones == 0 else "mixed"), lengths.last


def _of_lengths(query: Lengths, kv: Lengths | None, text: str) -> tuple[Phase, str, int, int]:
    """Phase, evidence, tokens and sequences by cumulative query lengths; sequences without KV are padding."""
    phase, tokens = _of_query_lengths(query)
    batch = query.n
    if kv is not None and kv.padded and query.last % query.n == 0 and query.seen == query.n:
        each = query.last // query.n
        # Padding has as many tokens a sequence as the others. Where those differ, it cannot be told.
        if each == query.first:
            tokens, batch = each * kv.n, kv.n
    padding = f" of {query.n}" if batch < query.n else ""
    text += f" lengths[{query.first},..,{tokens}]*{batch}{padding}"
    return phase, text, tokens, batch


def _split_arrays(arrays: Sequence[Lengths], tokens: int | None) -> tuple[Lengths | None, Lengths | None]:
    """(cumulative query lengths, KV lengths) among `arrays`.

    Cumulative lengths rise strictly and end at the step's tokens (fewer when the batch is padded). Attention
    operators take the KV lengths of the same sequences beside them: as many values, none less than the
    sequence's own query length, so the two are told apart by their sums when both rise.
    """
    named = next((array for array in arrays if array.role == "query" and array.rising), None)
    if named is not None and (tokens is None or named.last <= tokens):
        return named, next((array for array in arrays if array.role == "kv"), None)
    query: Lengths | None = None
    for array in arrays:
        if array.role == "kv":
            continue
        fits = array.last <= tokens if tokens is not None else array.last <= array.n * 4096
        if array.rising and fits and (query is None or array.last < query.last):
            query = array
    kv: Lengths | None = None
    for array in arrays:
        if (
            array is not query
            and (query is None or array.n + array.padded == query.n)
            and (kv is None or array.max > kv.max)
        ):
            kv = array
    if (
        tokens is not None
        and query is not None
        and query.last < tokens
        and query.n == query.last
        and kv is None
    ):
        # A lone short rising array that does not account for the tokens is a shape or a list of axes.
        return None, None
    return query, kv


def classify(evidence: Evidence) -> Verdict:
    """The phase of a step by what was seen of it; the table above, from the best evidence down."""
    if evidence.capture:
        seen = _shape(evidence.indices) if evidence.indices is not None else "launches"
        return Verdict("other", None, None, f"capture of {seen}", 1.0)
    if evidence.graph:
        return _classify_graph(evidence)
    if evidence.attention:
        return _classify_attention(evidence)
    if not evidence.embedding:
        return Verdict("other", None, None, "no embedding, no graph", 0.5)
    if not _is_shape(evidence.indices):
        return Verdict("other", None, None, "embedding, shape not seen", 0.0)
    assert evidence.indices is not None
    return _classify_indices(evidence, evidence.indices)


def _is_shape(indices: Sequence[int] | None) -> bool:
    return indices is not None and all(size > 0 for size in indices)


def _classify_indices(evidence: Evidence, indices: tuple[int, ...]) -> Verdict:
    text = _shape(indices)
    if len(indices) >= 2:
        batch, tokens = indices[0], 1
        for size in indices:
            tokens *= size
        phase: Phase = "decode" if tokens == batch else "prefill"
        sure = 1.0 if evidence.agreed and not evidence.remembered else 0.9
        return Verdict(phase, tokens, batch, text, sure, _kv_len(evidence.arrays))
    tokens = indices[0] if indices else 1
    query, kv = _split_arrays(evidence.arrays, tokens)
    of_query = _sequences(evidence)
    # In a layout with a dimension of sequences, lengths are of each and do not sum up.
    if query is not None and (of_query is None or of_query[0] * of_query[1] != tokens):
        phase, text, real, batch = _of_lengths(query, kv, text)
        kv_len = kv.max if kv else None
        if query.role is None:  # it may be something else that rises
            return Verdict(phase, tokens, batch, text, 0.95, kv_len)
        return Verdict(phase, real, batch, text, 0.95, kv_len, tokens - real)
    if of_query is not None:
        batch, length = of_query
        real = batch * length
        # A graph is replayed for fewer tokens than it was captured for.
        if real == tokens or (evidence.graph and real < tokens and kv is not None and kv.n == batch):
            text += f" {_query(evidence)}"
            phase = "decode" if length == 1 else "prefill"
            padding = tokens - real
            if kv is not None and kv.padded and kv.n + kv.padded == batch:
                batch, real, padding = kv.n, kv.n * length, tokens - kv.n * length
            known = padding if kv is not None else None
            return Verdict(phase, real, batch, text, 0.9, _kv_len(evidence.arrays), known)
    if tokens == 1:
        return Verdict("decode", 1, 1, text, 0.9, kv.max if kv else None)
    if kv is not None and kv.n <= tokens and len(evidence.arrays) == 1:
        text += f" kv*{kv.n}"
        if kv.n + kv.padded == tokens:
            return Verdict("decode", kv.n, kv.n, text, 0.8, kv.max, kv.padded)
        return Verdict("prefill" if kv.n == 1 else "mixed", tokens, kv.n, text, 0.5, kv.max)
    return Verdict("other", tokens, None, text + " without sequence lengths", 0.0)


def _kv_len(arrays: Sequence[Lengths]) -> int | None:
    """The longest KV length that an attention operator was given as such."""
    return max((array.max for array in arrays if array.role == "kv"), default=None)


def _query(evidence: Evidence) -> str:
    layout = evidence.query_layout.split("_")[0]
    return f"query{layout}[" + ",".join(map(str, evidence.query or ())) + "]"


_BATCH_AND_LENGTH = {"BSH": (0, 1), "BSND": (0, 1), "BNSD": (0, 2), "SBH": (1, 0)}
"""Where a query's layout has the sequences, and the tokens of each."""


def _sequences(evidence: Evidence) -> tuple[int, int] | None:
    """(sequences, tokens of each) by the shape of an attention operator's query, if its layout is known."""
    where = _BATCH_AND_LENGTH.get(evidence.query_layout.split("_")[0])
    if where is None or not _is_shape(evidence.query):
        return None
    assert evidence.query is not None
    if len(evidence.query) <= max(where):
        return None
    return evidence.query[where[0]], evidence.query[where[1]]


def _classify_attention(evidence: Evidence) -> Verdict:
    """A step without an embedding, by its first attention operator."""
    text = f"attention {_query(evidence)}"
    kv_len = _kv_len(evidence.arrays)
    sequences = _sequences(evidence)
    if sequences is not None:
        batch, length = sequences
        return Verdict("decode" if length == 1 else "prefill", batch * length, batch, text, 0.8, kv_len)
    tokens = evidence.query[0] if _is_shape(evidence.query) and evidence.query else None
    query, kv = _split_arrays(evidence.arrays, tokens)
    if query is not None:
        phase, text, real, batch = _of_lengths(query, kv, text)
        padding = tokens - real if tokens is not None else None
        return Verdict(phase, real, batch, text, 0.8, kv.max if kv else kv_len, padding)
    if tokens is not None and kv is not None and kv.n == tokens:
        return Verdict("decode", tokens, kv.n, f"{text} kv*{kv.n}", 0.6, kv.max)
    return Verdict("other", tokens, None, text, 0.0, kv_len)


def _classify_graph(evidence: Evidence) -> Verdict:
    if evidence.from_capture and evidence.indices and _is_shape(evidence.indices):
        learned = _classify_indices(evidence, evidence.indices)
        return Verdict(
            learned.phase,
            learned.tokens,
            learned.batch,
            f"graph of {learned.evidence}",
            min(learned.confidence, 0.95),
            learned.kv_len,
            learned.padded,
        )
    query, kv = _split_arrays(evidence.arrays, None)
    if query is not None:
        phase, text, tokens, batch = _of_lengths(query, kv, "graph")
        # How many tokens the graph was captured for is not known.
        padding = query.last - tokens if kv is not None and kv.padded else None
        return Verdict(phase, tokens, batch, text, 0.9, kv.max if kv else None, padding)
    if evidence.h2d_copies == 1 and evidence.h2d_bytes and evidence.h2d_bytes % INDEX_BYTES == 0:
        tokens = evidence.h2d_bytes // INDEX_BYTES
        return Verdict("decode", tokens, tokens, f"graph h2d {evidence.h2d_bytes} B", 0.6)
    return Verdict("decode", None, None, "graph", 0.4)
