"""The parts of the TTFT of a request that several servers worked at.

With P an instance that does the prefill, D one that goes on by its KV cache, and a proxy before them:

    proxy          the request's arrival at the proxy -> P's request arrives; P's answer has left -> D's
                   request arrives; D's first content has left -> the proxy's has
    prefill_queue  P's request arrives -> its first own step begins, and between its own steps
    prefill        P's own steps, less the gate's time
    transfer       the KV cache moves: D's engine calls for it -> the last such call returns
    decode_queue   the rest of: D's request arrives -> the step begins that makes D's first content
    decode_wait    the whole of that, where `transfer` is not known
    first_step     that step, less the gate's time
    gate           FlexNPU's gate held those steps
    send           the last own step ends -> P's answer has left; that step ends -> D's first content has left

Where one server does both, P is absent and D's prefill counts: `proxy`, `prefill_queue`, `prefill`, `gate`,
`send`. A part whose events were not all seen is absent; the others are told. Those that are there never
overlap, and if none is absent they sum to the TTFT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from probes.feed.events import RequestTiming

PARTS: Final = (
    "proxy",
    "prefill_queue",
    "prefill",
    "transfer",
    "decode_queue",
    "decode_wait",
    "first_step",
    "gate",
    "send",
)
"""In the order of a request's way."""


def parts(outer: RequestTiming, inner: Sequence[RequestTiming]) -> dict[str, float] | None:
    """The parts of `outer`'s TTFT, us, by the requests that were made of it; None when it had no first token,
    or when what answered it is not one request."""
    served = [one for one in inner if one.status is not None and one.status < 400 and one.error is None]
    streams = [one for one in served if one.t_first_ns is not None]
    prefills = [one for one in served if one.t_first_ns is None and one.role != "decode"]
    if outer.t_first_ns is None or len(streams) != 1 or len(prefills) > 1:
        return None
    last = streams[0]
    assert last.t_first_ns is not None
    if last.t_first_ns > outer.t_first_ns:
        return None
    behind = outer.t_first_ns - last.t_first_ns
    if prefills:
        found = _two(outer, prefills[0], last, behind)
    elif last.role == "decode":
        # Whoever did the prefill was not seen: nor is it known how long the proxy waited for it.
        found = _decode(last)
    else:
        found = _one(outer, last, behind)
    return {part: found[part] for part in PARTS if part in found}


def _one(outer: RequestTiming, engine: RequestTiming, behind: int) -> dict[str, float]:
    found = {"proxy": (engine.t_arrival_ns - outer.t_arrival_ns + behind) / 1e3}
    if engine.parts_us is not None:
        # Another proxy.
        if "proxy" not in engine.parts_us:
            return engine.parts_us
        return engine.parts_us | {"proxy": found["proxy"] + engine.parts_us["proxy"]}
    for part, us in (
        ("prefill_queue", engine.queue_us),
        ("prefill", engine.prefill_us),
        ("gate", engine.gated_us),
        ("send", engine.send_us),
    ):
        if us is not None:
            found[part] = us
    return found


def _decode(last: RequestTiming) -> dict[str, float]:
    found = {}
    wait = last.queue_us
    if wait is not None and last.transfer_us is not None:
        found = {"transfer": last.transfer_us, "decode_queue": wait - last.transfer_us}
        wait = None
    for part, us in (
        ("decode_wait", wait),
        ("first_step", last.prefill_us),
        ("gate", last.gated_us),
        ("send", last.send_us),
    ):
        if us is not None:
            found[part] = us
    return found


def _two(outer: RequestTiming, first: RequestTiming, last: RequestTiming, behind: int) -> dict[str, float]:
    found = _decode(last)
    if first.t_end_ns is None or first.t_end_ns > last.t_arrival_ns:
        # They ran at the same time: what D waited for was P, too.
        return found
    send = found.pop("send", None)
    between = last.t_arrival_ns - first.t_end_ns
    found["proxy"] = (first.t_arrival_ns - outer.t_arrival_ns + between + behind) / 1e3
    if first.queue_us is None or first.prefill_us is None:
        return found
    found["prefill_queue"], found["prefill"] = first.queue_us, first.prefill_us
    if first.gated_us is not None:
        found["gate"] = found.get("gate", 0.0) + first.gated_us
    if send is not None:
        whole = (first.t_end_ns - first.t_arrival_ns) / 1e3
        found["send"] = send + whole - first.queue_us - first.prefill_us - (first.gated_us or 0.0)
    return found
