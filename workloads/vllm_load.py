"""What is asked of vLLM-Ascend servers: some streams that decode, and a flood of long prompts beside them.

TPOT and TTFT are by the client's clock, ms: TPOT of each answer is from its first to its last token, over the
tokens between.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from flexnpu.common.quantiles import quantile
from workloads import vllm_ascend
from workloads.models import TinyModel
from workloads.replay import Record

SEVEN_B = TinyModel("qwen2", hidden=3584, layers=28, heads=28, kv_heads=4, intermediate=18944, weights=False)
SETTLE_S = 6.0
"""At the start of a phase, not measured: batches fill, and the controller learns."""


def prompt(tokens: int, turn: int, number: int) -> list[int]:
    """Token ids of a client's prompt, different each time: a prompt's cache must not be found."""
    return [(7 * i + 31 * turn + 101 * number) % 500 + 5 for i in range(tokens)]


async def ask(client: httpx.AsyncClient, port: int, asked: Sequence[int], tokens: int) -> Record:
    """Stream one completion; a time for each token. Raises VllmError for an answer that is none."""
    body = vllm_ascend.completion(asked, tokens, stream=True)
    record = Record(str(port), time.monotonic_ns())
    async with client.stream("POST", f"http://127.0.0.1:{port}/v1/completions", json=body) as response:
        if response.status_code != 200:
            detail = (await response.aread()).decode(errors="replace")[:300]
            raise vllm_ascend.VllmError(f"HTTP {response.status_code}: {detail}")
        async for line in response.aiter_lines():
            now = time.monotonic_ns()
            data = line.removeprefix("data:").strip()
            if not data or data == "[DONE]":
                continue
            for choice in json.loads(data).get("choices", ()):
                record.chunk_ns += [now] * len(choice.get("token_ids") or ())
    record.end_ns = time.monotonic_ns()
    return record


@dataclass(frozen=True)
class Load:
    """What one phase asks of the servers."""

    streams: int
    decode_tokens: int
    flood: int
    prompt_tokens: int


async def phase(
    ports: tuple[int, int], load: Load, flooded: bool, seconds: float, settle: float = SETTLE_S
) -> dict[str, Any]:
    """Closed loops at both servers for `seconds` after the settling; the figures of what ended in them."""
    decode_port, prefill_port = ports
    begin = time.monotonic() + settle
    end = begin + seconds
    answers: dict[int, list[Record]] = {decode_port: [], prefill_port: []}
    async with httpx.AsyncClient(timeout=httpx.Timeout(None, connect=10.0)) as client:

        async def loop(number: int, port: int, prompt_tokens: int, tokens: int) -> None:
            turn = 0
            while time.monotonic() < end:
                turn += 1
                answer = await ask(client, port, prompt(prompt_tokens, turn, number), tokens)
                if answer.end_ns is not None and answer.end_ns > begin * 1e9:
                    answers[port].append(answer)

        loops = [loop(n, decode_port, 40 + n, load.decode_tokens) for n in range(load.streams)]
        if flooded:
            loops += [loop(n, prefill_port, load.prompt_tokens, 1) for n in range(load.flood)]
        await asyncio.gather(*loops)
    decoded = [answer for answer in answers[decode_port] if len(answer.chunk_ns) > 1]
    tokens = [t for answer in decoded for t in answer.chunk_ns if begin * 1e9 <= t < end * 1e9]
    prompts = [answer for answer in answers[prefill_port] if (answer.end_ns or 0) < end * 1e9]
    return {
        "answers": len(decoded),
        "tpot_ms": spread([answer.tpot_ms for answer in decoded]),
        "ttft_ms": spread([answer.ttft_ms for answer in decoded]),
        "tokens_per_s": round(len(tokens) / seconds, 2),
        "flood_ttft_ms": spread([answer.ttft_ms for answer in prompts]),
        "flood_prompts_per_s": round(len(prompts) / seconds, 3),
    }


def spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """p50, p90 and p99 of those that are known."""
    known = [value for value in values if value is not None]
    found = {q: quantile(known, q / 100) for q in (50, 90, 99)}
    return {f"p{q}": None if value is None else round(value, 2) for q, value in found.items()}


def decisions(log: Path) -> dict[str, Any]:
    """What a controller has decided: how often, its last target in ms, and why it did nothing."""
    targets: list[float] = []
    doubts: dict[str, int] = {}
    for line in log.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if row.get("event") != "decision":
                continue
            if row["what"] is None:
                doubts[row["why"]] = doubts.get(row["why"], 0) + 1
            elif row["what"]["decode_target_us"]:
                targets.append(row["what"]["decode_target_us"] / 1e3)
    return {"targets_ms": [round(target, 1) for target in targets[-5:]], "doubts": doubts}
