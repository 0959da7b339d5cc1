"""What the simulated engines are asked: traces in their public formats, backlogs, and random arrivals.

| format | one request is |
|---|---|
| Azure's | a row of `TIMESTAMP,ContextTokens,GeneratedTokens` (Azure Public Dataset, 2023) |
| BurstGPT's | a row with `Timestamp` (s), `Request tokens`, `Response tokens` (arXiv 2401.17644) |
| Mooncake's | a line of JSON with `timestamp` (ms), `input_length`, `output_length` (Qin et al., FAST 2025) |
"""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from workloads.replay import TRACES, Arrival


@dataclass(frozen=True)
class Load:
    """Requests in the order of their times, and how many rows were left out."""

    arrivals: list[Arrival]
    left_out: int = 0
    """Rows without a token in or out, as BurstGPT's failed requests."""


def trace_path(name: str) -> Path:
    """A trace of the package by its name, or a file. Raises ValueError."""
    path = TRACES.get(name, Path(name))
    if not path.is_file():
        raise ValueError(f"{name}: no such trace: give a file, or one of {', '.join(sorted(TRACES))}")
    return path


def read(path: Path) -> Load:
    """A whole trace, from its first arrival at 0 s. Raises ValueError that names the line."""
    with path.open(newline="", encoding="utf-8") as file:
        try:
            first = file.readline()
        except UnicodeDecodeError:
            raise ValueError(f"{path}: not a text file") from None
        file.seek(0)
        rows = _mooncake(path, file) if first.lstrip().startswith("{") else _table(path, file)
        found: list[Arrival] = []
        left_out = 0
        for arrival in rows:
            if arrival.prompt_tokens < 1 or arrival.output_tokens < 1:
                left_out += 1
            else:
                found.append(arrival)
    if not found:
        raise ValueError(f"{path}: no requests in it")
    found.sort(key=lambda arrival: arrival.at_s)
    start = found[0].at_s
    return Load([replace(arrival, at_s=arrival.at_s - start) for arrival in found], left_out)


def _table(path: Path, lines: Iterator[str]) -> Iterator[Arrival]:
    reader = csv.DictReader(lines)
    names = set(reader.fieldnames or ())
    azure = {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} <= names
    if not azure and not {"Timestamp", "Request tokens", "Response tokens"} <= names:
        raise ValueError(f"{path}: not a trace: its first line names neither Azure's columns nor BurstGPT's")
    for number, row in enumerate(reader, start=2):
        try:
            if azure:
                # Seven fractional digits in the file; datetime takes six.
                at_s = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
                tokens = int(row["ContextTokens"]), int(row["GeneratedTokens"])
            else:
                at_s = float(row["Timestamp"])
                tokens = int(row["Request tokens"]), int(row["Response tokens"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{path}:{number}: not a row of the trace's columns") from None
        yield _arrival(path, number, at_s, *tokens)


def _mooncake(path: Path, lines: Iterator[str]) -> Iterator[Arrival]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            told = json.loads(line)
            fields = float(told["timestamp"]) / 1e3, int(told["input_length"]), int(told["output_length"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"{path}:{number}: no JSON object with timestamp, input_length and output_length"
            ) from None
        yield _arrival(path, number, *fields)


def _arrival(path: Path, number: int, at_s: float, prompt: int, output: int) -> Arrival:
    if not math.isfinite(at_s) or prompt < 0 or output < 0:
        raise ValueError(f"{path}:{number}: a time or a number of tokens that cannot be")
    return Arrival(at_s, prompt, output)


def scaled(load: Load, *, rate: float, duration_s: float) -> Load:
    """The trace's time passes `rate` times as fast; the arrivals of its first `duration_s` seconds then."""
    moved = (replace(arrival, at_s=arrival.at_s / rate) for arrival in load.arrivals)
    return Load([arrival for arrival in moved if arrival.at_s < duration_s], load.left_out)


def backlog(requests: int, prompt: int, output: int) -> Load:
    """All at once."""
    return Load([Arrival(0.0, prompt, output)] * requests)


def poisson(rate: float, prompt: int, output: int, *, duration_s: float, seed: int) -> Load:
    """Random arrivals, `rate` a second; exponential lengths of these means, at most eight times them."""
    draw = random.Random(seed)

    def length(mean: int) -> int:
        return min(8 * mean, 1 + math.floor(draw.expovariate(1) * (mean - 1)))

    found: list[Arrival] = []
    at_s = draw.expovariate(rate)
    while at_s < duration_s:
        found.append(Arrival(at_s, length(prompt), length(output)))
        at_s += draw.expovariate(rate)
    return Load(found)
