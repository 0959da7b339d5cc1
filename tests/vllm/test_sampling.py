"""Tokens that vLLM draws: as often as the model says, from those that top-k and top-p leave."""

from __future__ import annotations

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.vllm.conftest import only_with_everything
from tests.vllm.engines import WAYS, host, model, prompts, reference
from workloads.vllm_ascend import Server

pytestmark = [pytest.mark.torch_npu, pytest.mark.timeout(1800), only_with_everything]

SAMPLES = 800
SETTINGS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 1.0},
    "cold": {"temperature": 0.5},
    "top-k": {"temperature": 0.8, "top_k": 5},
    "top-p": {"temperature": 0.8, "top_p": 0.4},
    "both": {"temperature": 0.9, "top_k": 20, "top_p": 0.7},
}
HOT = {"temperature": 1.0, "top_p": 0.9}
#: The engine computes in float16. What lies this near to the edge of a filter may fall on either side.
EDGE = 0.02

Floats = npt.NDArray[np.float64]


def softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum())


def filtered(logits: Floats, top_k: int, top_p: float) -> npt.NDArray[np.bool_]:
    """Which tokens stay: the `top_k` best, and of these the fewest best that make up `top_p` together."""
    order = np.argsort(-logits, kind="stable")
    best = order[:top_k]
    before = np.cumsum(softmax(logits[best])) - softmax(logits[best])
    kept = np.zeros(len(logits), dtype=bool)
    kept[best[before < top_p]] = True
    return kept


def check(drawn: list[int], settings: dict[str, Any], logits: list[float]) -> None:
    """That draws are of the right tokens, each as often as it should be."""
    scaled = np.asarray(logits) / settings["temperature"]
    top_k, top_p = settings.get("top_k", len(scaled)), settings.get("top_p", 1.0)
    kept = filtered(scaled, top_k, top_p)
    probabilities = softmax(np.where(kept, scaled, -np.inf))
    least = scaled[kept].min() - EDGE
    assert all(scaled[token] >= least for token in drawn)
    counts = Counter(drawn)
    expected = {int(token): probabilities[token] * len(drawn) for token in np.flatnonzero(kept)}
    often = {token: value for token, value in expected.items() if value >= 5}
    assert len(often) > 1
    seen = [counts[token] for token in often]
    want = list(often.values())
    if (rest := len(drawn) - sum(want)) >= 5:
        seen.append(len(drawn) - sum(seen))
        want.append(rest)
    square = sum((a - b) ** 2 / b for a, b in zip(seen, want, strict=True))
    freedom = len(want) - 1
    # Five standard deviations. Seeds are fixed, so that the same draws are made each time.
    assert square < freedom + 5 * math.sqrt(2 * freedom)


def draws(server: Server, prompt: tuple[int, ...]) -> dict[str, list[int]]:
    """First tokens, each from a seed of its own."""
    return {
        name: [answer[0] for answer in server.choices(prompt, 1, n=SAMPLES, seed=1000 * number, **settings)]
        for number, (name, settings) in enumerate(SETTINGS.items())
    }


def test_draws_follow_the_probabilities_and_seeds_repeat_them(vllm: Path, tmp_path: Path) -> None:
    (prompt,) = prompts(33)
    logits = reference(model("qwen2"), (prompt,), 1).logits[0]
    told: list[Any] = []
    for way in WAYS:
        folder = tmp_path / way
        folder.mkdir()
        with host(way, folder) as machine:
            with machine.serve(vllm, model("qwen2"), "eager") as server:
                server.wait()
                drawn = draws(server, prompt)
                alone = server.complete(prompt, 24, seed=5, **HOT)
                with ThreadPoolExecutor(4) as pool:
                    seeds = list(pool.map(lambda n: server.complete(prompt, 24, seed=n, **HOT), (5, 6, 7, 5)))
                free = [server.complete(prompt, 24, **HOT) for _ in range(2)]
            machine.check_used()
        for name, settings in SETTINGS.items():
            check(drawn[name], settings, logits)
        assert seeds[0] == seeds[3] == alone
        assert len({tuple(one) for one in seeds}) == 3
        assert free[0] != free[1]
        told.append((drawn, seeds))
    assert told[0] == told[1]
