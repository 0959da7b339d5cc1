"""How iterations, steps and the device's log are laid beside each other. No engine is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.vllm_iterations import (
    Iteration,
    Score,
    compare,
    device_log,
    device_windows,
    durations,
    iterations,
)
from probes.feed.events import Phase, Step

pytestmark = pytest.mark.unit

LOG = """
(EngineCore pid=1) INFO core.py:358] Iteration(0): 1 context requests, 37 context tokens, 0 generation requests, 0 generation tokens, iteration elapsed time: 9.00 ms
(EngineCore pid=1) INFO core.py:358] Iteration(1): 0 context requests, 0 context tokens, 0 generation requests, 0 generation tokens, iteration elapsed time: 0.10 ms
(EngineCore pid=1) INFO core.py:358] Iteration(2): 1 context requests, 9 context tokens, 2 generation requests, 2 generation tokens, iteration elapsed time: 9.00 ms
(EngineCore pid=1) INFO core.py:358] Iteration(3): 1 context requests, 1 context tokens, 2 generation requests, 2 generation tokens, iteration elapsed time: 9.00 ms
"""  # noqa: E501 (as the engine writes them)


def step(at: int, phase: Phase, tokens: int, batch: int, milliseconds: float = 1.0) -> Step:
    begin = at * 100_000_000
    end = begin + int(milliseconds * 1e6)
    return Step(begin, end, 1, "engine", 7, phase, tokens, batch, 80, 0, 0, 0, "embedding", 1.0)


WANT = [Iteration("prefill", 37, 1), Iteration("mixed", 11, 3), Iteration("decode", 3, 3)]
TOLD = [step(0, "prefill", 37, 1), step(1, "mixed", 11, 3), step(2, "decode", 3, 3)]


def test_iterations_without_tokens_are_none_and_one_token_of_a_prompt_is_a_decode_step() -> None:
    assert iterations(LOG) == WANT


def test_steps_that_are_the_iterations_are_right_whatever_their_order() -> None:
    score = compare(WANT, TOLD[::-1])
    assert (score.right, score.wrong, score.missing, score.spurious) == (3, 0, 0, 0)
    assert not score.examples


@pytest.mark.parametrize(
    ("told", "counts"),
    [
        ([TOLD[0], step(1, "mixed", 12, 3), TOLD[2]], (2, 1, 0, 0)),
        ([TOLD[0], TOLD[2]], (2, 0, 1, 0)),
        ([*TOLD, step(3, "decode", 3, 3)], (3, 0, 0, 1)),
        ([*TOLD, step(3, "other", 3, 3)], (3, 0, 0, 1)),
        ([], (0, 0, 3, 0)),
    ],
)
def test_what_is_not_right_is_counted_and_named(told: list[Step], counts: tuple[int, ...]) -> None:
    score = compare(WANT, told)
    assert (score.right, score.wrong, score.missing, score.spurious) == counts
    assert sum(score.examples.values()) >= 1


#: Two iterations on stream 1, whose tokens stream 4 copies back while the second one's inputs come.
DEVICE = """100 110 0 1 copy-to-device
110 120 0 1 copy-to-device
120 200 0 1 aclnnEmbedding
200 250 0 1 aclnnArgMax
250 260 0 1 aclnnCast
300 310 0 1 copy-to-device
310 400 0 1 aclnnEmbedding
400 430 0 1 aclnnArgMax
"""


def test_an_iteration_of_the_device_s_log_is_from_its_inputs_to_its_tokens(tmp_path: Path) -> None:
    (tmp_path / "12.log").write_text(DEVICE)
    (tmp_path / "13.log").write_text("260 305 0 4 copy-to-host\n")
    (tmp_path / "vllm.log").write_text("not of the device\n")
    assert device_windows(device_log(tmp_path)) == [(100, 260), (300, 430)]


def test_durations_are_compared_where_all_is_right() -> None:
    windows = [(0, 1_000_000)] * 3
    told = [step(0, "prefill", 37, 1, 1.1), step(1, "mixed", 11, 3, 1.1), step(2, "decode", 3, 3, 1.1)]
    found = durations(compare(WANT, told), windows)
    assert found.pop("each") == {"p1": 1.1, "p50": 1.1, "p99": 1.1}
    assert found == {f"p{q}": {"device": 1.0, "told": 1.1, "ratio": 1.1} for q in (50, 99)}
    assert durations(compare(WANT, told), windows[1:]) is None
    assert durations(compare(WANT, told[1:]), windows) is None
    assert durations(Score(0, 0), []) is None
