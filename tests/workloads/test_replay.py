"""Arrivals, prompts and the client's clock, against a server that answers by script."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from flexnpu.common.quantiles import quantile
from workloads import models
from workloads.replay import (
    TRACES,
    Arrival,
    PromptMaker,
    Record,
    Scaling,
    Target,
    load_arrivals,
    replay,
    summarise,
)

TOKEN_DELAY_S = 0.02


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.ensure(models.TinyModel("llama", layers=1), tmp_path_factory.mktemp("models"))


def _event(**delta: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.lower().splitlines() if b"content-length" in line)
    body = json.loads(await reader.readexactly(length))
    content = body["messages"][0]["content"]
    if content == "refuse":
        writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbusy")
    else:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        writer.write(_event(role="assistant"))
        for index in range(body["max_tokens"]):
            await asyncio.sleep(60 if content == "hang" else TOKEN_DELAY_S)
            writer.write(_event(content=f"t{index}"))
            await writer.drain()
        usage = {"prompt_tokens": 7, "completion_tokens": body["max_tokens"]}
        writer.write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")
    await writer.drain()
    writer.close()


@asynccontextmanager
async def _server() -> AsyncIterator[str]:
    server = await asyncio.start_server(_answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.close()


def _replay(
    prompts: list[str], at_s: list[float], max_in_flight: int | None = None, drain_s: float = 10.0
) -> list[Record]:
    async def run() -> list[Record]:
        async with _server() as url:
            arrivals = [Arrival(at, 8, 3) for at in at_s]
            return await replay([Target("s", url, arrivals, prompts, max_in_flight)], 1.0, drain_s)

    return asyncio.run(run())


def test_a_stream_is_timed_chunk_by_chunk() -> None:
    (record,) = _replay(["hello"], [0.0])
    assert record.ok
    assert record.output_tokens == len(record.chunk_ns) == 3
    assert record.prompt_tokens == 7
    assert record.ttft_ms is not None
    assert record.ttft_ms >= TOKEN_DELAY_S * 1e3
    assert all(interval >= TOKEN_DELAY_S * 1e3 * 0.5 for interval in record.intervals_ms)


def test_same_text_same_digest() -> None:
    first, second = _replay(["a", "b"], [0.0, 0.0])
    assert first.text_sha256 == second.text_sha256 is not None


def test_refusals_and_hangs_are_records_not_exceptions() -> None:
    records = _replay(["refuse", "hang"], [0.0, 0.0], drain_s=-0.5)
    errors = {record.error for record in records}
    assert "HTTP 503: busy" in errors
    assert "drain" in errors
    assert not any(record.ok for record in records)


def test_requests_in_flight_are_bounded() -> None:
    records = _replay(["a"] * 5, [0.0] * 5, max_in_flight=1)
    assert len(records) == 5
    for before, after in itertools.pairwise(records):
        assert before.end_ns is not None
        assert after.sent_ns >= before.end_ns


def test_nothing_is_sent_after_the_window() -> None:
    assert len(_replay(["a", "b"], [0.0, 1.1])) == 1


@pytest.mark.parametrize("name", sorted(TRACES))
def test_shipped_traces_load_and_scale(name: str) -> None:
    plain = load_arrivals(TRACES[name], 60.0, Scaling(), 180.0)
    half = load_arrivals(
        TRACES[name], 60.0, Scaling(rate=0.5, prompt_scale=0.1, prompt_limits=(8, 64)), 180.0
    )
    assert plain
    assert 0 < len(half) < len(plain)
    assert all(0 <= arrival.at_s < 60.0 for arrival in half)
    assert all(8 <= arrival.prompt_tokens <= 64 for arrival in half)
    assert [arrival.at_s for arrival in half] == sorted(arrival.at_s for arrival in half)


@pytest.mark.parametrize("factor", [1.5, 3.0, 8.0])
def test_a_thinner_load_has_the_same_bursts(factor: float) -> None:
    whole = load_arrivals(TRACES["code"], 600.0, Scaling())
    some = load_arrivals(TRACES["code"], 600.0, Scaling(keep=1 / factor))
    assert len(some) == pytest.approx(len(whole) / factor, abs=1)
    assert set(some) <= set(whole)
    for minute in range(10):
        in_minute = [sum(60 * minute <= a.at_s < 60 * (minute + 1) for a in load) for load in (some, whole)]
        assert in_minute[0] == pytest.approx(in_minute[1] / factor, abs=1.01)


def test_a_bad_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,many,1\n")
    with pytest.raises(ValueError, match=r"trace\.csv:2"):
        load_arrivals(path, 10.0, Scaling())


@pytest.mark.parametrize("tokens", [32, 57, 129, 500])
def test_prompts_have_the_wanted_length(model_dir: Path, tokens: int) -> None:
    maker = PromptMaker(model_dir)
    prompt = maker.make(tokens)
    assert tokens - 6 <= maker.count(prompt) <= tokens
    assert maker.make(tokens) != prompt
    assert PromptMaker(model_dir).make(tokens) == prompt


def test_every_token_is_printable(model_dir: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    for index in range(len(models.SPECIAL_TOKENS), tokenizer.get_vocab_size()):
        text = tokenizer.decode([index])
        assert text
        assert text.isascii()


def test_a_model_is_made_once(model_dir: Path) -> None:
    spec = models.TinyModel("llama", layers=1)
    before = (model_dir / "model.safetensors").stat().st_mtime_ns
    assert models.ensure(spec, model_dir.parent) == model_dir
    assert (model_dir / "model.safetensors").stat().st_mtime_ns == before


def test_quantiles() -> None:
    assert quantile([], 0.5) is None
    assert quantile([3.0], 0.99) == 3.0
    assert quantile([4.0, 1.0, 2.0, 3.0], 0.5) == 2.0, "a value that was measured"


def test_absent_quantities_are_none() -> None:
    summary = summarise([Record("s", 0, error="x")], 10.0)
    assert summary["completed"] == 0
    assert summary["ttft_ms"]["p50"] is None
    assert summary["errors"] == ["x"]
