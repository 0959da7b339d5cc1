"""Replay real request arrivals at an OpenAI-compatible endpoint; time the answers by the client's clock.

Arrivals and token counts come from a production trace (``workloads/data``), scaled: ``rate`` stretches
time, ``prompt_scale`` and ``output_scale`` shrink token counts to what a small model is served with.
Times are CLOCK_MONOTONIC nanoseconds, the clock that the probes use, so that both sides can be laid over
each other.
"""

from __future__ import annotations

import asyncio
import csv
import hashlib
import itertools
import json
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import httpx

from flexnpu.common.quantiles import quantile
from flexnpu.console.numbers import DAY_S, YEAR_S, Duration, Number
from flexnpu.console.output import out_json
from flexnpu.console.program import SETTINGS, Program
from workloads import models

DATA = Path(__file__).resolve().parent / "data"
WORDS = ("the", "model", "reads", "one", "page", "of", "text", "and", "writes", "a", "word", "after", "it")
_FACTOR = Number(0, 1e6, above=True, unit="a factor")
TRACES = {"conv": DATA / "azure_2023_conv.csv", "code": DATA / "azure_2023_code.csv"}


@dataclass(frozen=True)
class Scaling:
    """How a trace becomes a load.

    ``rate``: how fast the trace's time passes. ``keep``: the share of its arrivals that are sent, evenly
    chosen, so that a thinner load has the trace's bursts at their distance. ``prompt_scale`` and
    ``output_scale`` multiply token counts, which are then kept inside ``prompt_limits`` and
    ``output_limits`` (tokens, both ends included).
    """

    rate: float = 1.0
    keep: float = 1.0
    prompt_scale: float = 1.0
    output_scale: float = 1.0
    prompt_limits: tuple[int, int] = (8, 4000)
    output_limits: tuple[int, int] = (1, 1024)


@dataclass(frozen=True)
class Arrival:
    """A request to send ``at_s`` seconds after the start."""

    at_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass
class Record:
    """What the client saw of one request, in CLOCK_MONOTONIC ns; ``chunk_ns`` has content chunks only.

    ``index`` is the number of the arrival in its trace slice, the same in every replay of that slice.
    """

    server: str
    sent_ns: int
    due_ns: int | None = None
    index: int = 0
    chunk_ns: list[int] = field(default_factory=list)
    end_ns: int | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    text_sha256: str | None = None
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the stream ended by itself with the server's own token counts."""
        return self.error is None and self.end_ns is not None and self.output_tokens is not None

    @property
    def ttft_ms(self) -> float | None:
        """Time to first token: from sending to the first chunk with content; None if none came."""
        return (self.chunk_ns[0] - self.sent_ns) / 1e6 if self.chunk_ns else None

    @property
    def tpot_ms(self) -> float | None:
        """Time per output token after the first; None for fewer than two."""
        if len(self.chunk_ns) < 2:
            return None
        return (self.chunk_ns[-1] - self.chunk_ns[0]) / (len(self.chunk_ns) - 1) / 1e6

    @property
    def second_token_ms(self) -> float | None:
        """From sending to the second content chunk: a wait moved behind the first token shows here."""
        return (self.chunk_ns[1] - self.sent_ns) / 1e6 if len(self.chunk_ns) > 1 else None

    @property
    def end_to_end_ms(self) -> float | None:
        """From sending to the end of the answer; None when it did not end."""
        return None if self.end_ns is None else (self.end_ns - self.sent_ns) / 1e6

    @property
    def intervals_ms(self) -> list[float]:
        """Times between successive content chunks, which are tokens for the models of `workloads.models`."""
        return [(b - a) / 1e6 for a, b in itertools.pairwise(self.chunk_ns)]


def load_arrivals(path: Path, duration_s: float, scaling: Scaling, skip_s: float = 0.0) -> list[Arrival]:
    """Read the arrivals of ``duration_s`` seconds of replay, from ``skip_s`` seconds of trace time onwards.

    Raises ValueError for a file that is not such a trace, naming the line.
    """
    arrivals: list[Arrival] = []
    start: datetime | None = None
    due = 0.0  # kept arrivals that the ones so far amount to
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                # Seven fractional digits in the file; datetime takes six.
                at = datetime.fromisoformat(row["TIMESTAMP"][:26])
                prompt, output = int(row["ContextTokens"]), int(row["GeneratedTokens"])
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{path}:{number}: not a row of TIMESTAMP,ContextTokens,GeneratedTokens"
                ) from error
            start = start or at
            at_s = ((at - start).total_seconds() - skip_s) / scaling.rate
            if at_s < 0:
                continue
            if at_s >= duration_s:
                break
            due += scaling.keep
            if due < len(arrivals) + 1:
                continue
            arrivals.append(
                Arrival(
                    at_s,
                    _clip(prompt * scaling.prompt_scale, scaling.prompt_limits),
                    _clip(output * scaling.output_scale, scaling.output_limits),
                )
            )
    return arrivals


def _clip(value: float, limits: tuple[int, int]) -> int:
    return min(max(round(value), limits[0]), limits[1])


class PromptMaker:
    """Makes prompts of a wanted length in tokens, different from each other, the same for the same seed.

    Raises ValueError for a `model_dir` without a tokenizer.json that can be read.
    """

    def __init__(self, model_dir: Path, seed: int = 0) -> None:
        from tokenizers import Tokenizer

        file = model_dir / "tokenizer.json"
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises nothing more special
            raise ValueError(f"{file}: {error}") from error
        self._random = random.Random(seed)
        self._words = list(WORDS)

    def count(self, text: str) -> int:
        """Tokens of ``text`` as the only user message of a chat, chat template included."""
        return len(self._tokenizer.encode(models.render(text), add_special_tokens=False).ids)

    def make(self, tokens: int) -> str:
        """A text whose chat is about ``tokens`` tokens long (at most one word short)."""
        words: list[str] = []
        # One word is one to four tokens: guess, then correct by measuring.
        while self.count(" ".join(words)) < tokens:
            missing = tokens - self.count(" ".join(words))
            words.extend(self._random.choices(self._words, k=max(1, missing // 4)))
        while len(words) > 1 and self.count(" ".join(words)) > tokens:
            words.pop()
        return " ".join(words)


async def stream(
    client: httpx.AsyncClient, record: Record, url: str, prompt: str, output_tokens: int
) -> None:
    """Stream one chat completion into ``record``. Errors of the exchange are recorded, not raised."""
    body = {"messages": [{"role": "user", "content": prompt}], "stream": True, "max_tokens": output_tokens}
    digest = hashlib.sha256()
    try:
        async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                detail = (await response.aread()).decode(errors="replace")[:200]
                record.error = f"HTTP {response.status_code}: {detail}"
                return
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    _take_chunk(record, digest, line.removeprefix("data:").strip())
        record.end_ns = time.monotonic_ns()
        record.text_sha256 = digest.hexdigest()
    except (httpx.HTTPError, OSError) as error:
        record.error = f"{type(error).__name__}: {error}"


def _take_chunk(record: Record, digest: Any, data: str) -> None:
    now = time.monotonic_ns()
    if data == "[DONE]":
        return
    try:
        chunk = json.loads(data)
    except ValueError:
        record.error = f"not a JSON chunk: {data[:80]}"
        return
    if "error" in chunk:
        record.error = str(chunk["error"])
        return
    for choice in chunk.get("choices", ()):
        content = choice.get("delta", {}).get("content")
        if content:
            record.chunk_ns.append(now)
            digest.update(content.encode())
    usage = chunk.get("usage")
    if usage:
        record.prompt_tokens = usage["prompt_tokens"]
        record.output_tokens = usage["completion_tokens"]


@dataclass(frozen=True)
class Target:
    """A server and the load it gets.

    With ``max_in_flight``, arrivals wait here while that many requests are unanswered, as behind a
    balancer that knows the server's capacity; without, each is sent at its time.
    """

    name: str
    url: str
    arrivals: Sequence[Arrival]
    prompts: Sequence[str]
    max_in_flight: int | None = None


async def replay(
    targets: Iterable[Target],
    window_s: float,
    drain_s: float = 30.0,
    on_record: Callable[[Record], None] | None = None,
) -> list[Record]:
    """Send the arrivals of every target at their times, without waiting for earlier answers.

    Nothing is sent after ``window_s`` seconds: arrivals that still wait for their turn then are left out.
    Answers missing ``drain_s`` seconds later are cancelled and come back with the error ``drain``.
    Records are in the order of sending.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    records: list[Record] = []
    async with httpx.AsyncClient(timeout=httpx.Timeout(None, connect=10.0), limits=limits) as client:
        start = time.monotonic()

        async def one(target: Target, turn: asyncio.Semaphore, index: int) -> None:
            arrival = target.arrivals[index]
            due = start + arrival.at_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            async with turn:
                if time.monotonic() - start >= window_s:
                    return
                record = Record(target.name, time.monotonic_ns(), due_ns=round(due * 1e9), index=index)
                records.append(record)
                try:
                    await stream(client, record, target.url, target.prompts[index], arrival.output_tokens)
                except asyncio.CancelledError:
                    record.error = "drain"
                if on_record is not None:
                    on_record(record)

        tasks: list[asyncio.Task[None]] = []
        for target in targets:
            turn = asyncio.Semaphore(target.max_in_flight or len(target.arrivals) + 1)
            tasks += [asyncio.create_task(one(target, turn, index)) for index in range(len(target.arrivals))]
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=window_s + drain_s)
            for task in pending:
                task.cancel()
            await asyncio.gather(*tasks)
    return sorted(records, key=lambda record: record.sent_ns)


def summarise(records: Sequence[Record], window_s: float) -> dict[str, Any]:
    """Client-side figures of one server over ``window_s`` seconds; absent quantities are None."""
    done = [record for record in records if record.ok]

    def spread(values: Iterable[float | None]) -> dict[str, float | None]:
        known = [value for value in values if value is not None]
        return {"p50": quantile(known, 0.5), "p99": quantile(known, 0.99)}

    return {
        "requests": len(records),
        "completed": len(done),
        "errors": sorted({record.error for record in records if record.error}),
        "wait_before_sending_ms": spread(
            (record.sent_ns - record.due_ns) / 1e6 for record in records if record.due_ns is not None
        ),
        "ttft_ms": spread(record.ttft_ms for record in done),
        "second_token_ms": spread(record.second_token_ms for record in done),
        "tpot_ms": spread(record.tpot_ms for record in done),
        "token_interval_ms": spread(value for record in done for value in record.intervals_ms),
        "end_to_end_ms": spread(record.end_to_end_ms for record in done),
        "output_tokens_per_s": sum(record.output_tokens or 0 for record in done) / window_s,
        "prompt_tokens_per_s": sum(record.prompt_tokens or 0 for record in done) / window_s,
        "requests_per_s": len(done) / window_s,
    }


@click.command("replay", cls=Program, context_settings=SETTINGS)
@click.argument("url")
@click.option(
    "--model-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Where the server's tokenizer.json is.",
)
@click.option("--trace", type=click.Choice(sorted(TRACES)), default="conv", show_default=True)
@click.option(
    "--duration",
    type=Duration(0, DAY_S, above=True),
    default=30.0,
    show_default=True,
    help="How long requests are sent, s.",
)
@click.option("--rate", type=_FACTOR, default=1.0, help="Arrival rate relative to the trace's.  [default: 1]")
@click.option("--prompt-scale", type=_FACTOR, default=1.0, help="A factor on prompt lengths.  [default: 1]")
@click.option("--output-scale", type=_FACTOR, default=1.0, help="A factor on output lengths.  [default: 1]")
@click.option("--skip", type=Duration(0, YEAR_S), default=0.0, help="Seconds of the trace to skip.")
@click.option("--records", "with_records", is_flag=True, help="Add every request's times.")
def main(
    url: str,
    model_dir: Path,
    trace: str,
    duration: float,
    rate: float,
    prompt_scale: float,
    output_scale: float,
    skip: float,
    with_records: bool,
) -> None:
    """Replay a request trace at the server of URL, as http://127.0.0.1:8000, and print one JSON object."""
    scaling = Scaling(rate, prompt_scale=prompt_scale, output_scale=output_scale)
    arrivals = load_arrivals(TRACES[trace], duration, scaling, skip)
    try:
        maker = PromptMaker(model_dir)
    except ValueError as error:
        raise click.ClickException(
            f"{error}: give the folder of the model that the server has with --model-dir"
        ) from None
    prompts = [maker.make(arrival.prompt_tokens) for arrival in arrivals]
    records = asyncio.run(replay([Target("server", url, arrivals, prompts)], duration))
    result = summarise(records, duration)
    if with_records:
        result["records"] = [asdict(record) for record in records]
    out_json(result, indent=2)
    if result["completed"] < result["requests"]:
        raise click.ClickException(f"{result['requests'] - result['completed']} requests were not completed")


if __name__ == "__main__":
    main()
