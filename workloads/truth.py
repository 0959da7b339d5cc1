"""How well the probes tell phases apart, judged by what the servers' requests must have caused.

A server that answers one request at a time computes, for a request with a prompt of p tokens and n
generated ones, one prefill step of p tokens and then n - 1 decode steps of one token each (the prefill
yields the first token). Prompt and generated tokens are the server's own ``usage`` of the finished
request. The steps that the probes reported for the server are cut at their prefills into runs ``prefill,
decode, decode, ...`` as well, and the two lists of runs are aligned in order, by dynamic programming, so
that as many steps as possible agree.

Counted is, over all runs, every expected step and every reported one without a counterpart: a step
classified wrong counts as wrong, a step missed counts as wrong, and so does a step invented. Steps called
``other`` (copies and synchronisations between forward passes) claim nothing, so they are not compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: A phase and the tokens of the step, where known.
Label = tuple[str, int | None]


@dataclass(frozen=True)
class Accuracy:
    """Steps compared (expected or invented), of the right phase, and of right phase and token count."""

    compared: int
    phase_right: int
    tokens_right: int

    @property
    def phase(self) -> float | None:
        """Fraction of steps with the right phase; None when nothing was compared."""
        return self.phase_right / self.compared if self.compared else None

    @property
    def tokens(self) -> float | None:
        """Fraction of steps with the right phase and the right number of tokens."""
        return self.tokens_right / self.compared if self.compared else None

    def __add__(self, other: Accuracy) -> Accuracy:
        return Accuracy(
            self.compared + other.compared,
            self.phase_right + other.phase_right,
            self.tokens_right + other.tokens_right,
        )


def expected_run(prompt_tokens: int, output_tokens: int) -> list[Label]:
    """The steps that one request must have caused."""
    prefill: Label = ("prefill", prompt_tokens)
    decode: Label = ("decode", 1)
    return [prefill, *[decode] * (output_tokens - 1)]


def split_runs(labels: Sequence[Label]) -> list[list[Label]]:
    """Cut a sequence of labels before every prefill; ``other`` is left out."""
    runs: list[list[Label]] = []
    for label in labels:
        if label[0] == "other":
            continue
        if label[0] == "prefill" or not runs:
            runs.append([])
        runs[-1].append(label)
    return runs


def compare_runs(expected: Sequence[Label], reported: Sequence[Label]) -> Accuracy:
    """Compare two runs step by step; what one has more than the other counts as wrong."""
    pairs = list(zip(expected, reported, strict=False))
    return Accuracy(
        max(len(expected), len(reported)),
        sum(a[0] == b[0] for a, b in pairs),
        sum(a == b for a, b in pairs),
    )


def compare(expected: Sequence[Sequence[Label]], reported: Sequence[Sequence[Label]]) -> Accuracy:
    """Align two lists of runs in order and sum the comparison of the aligned pairs."""
    nothing = Accuracy(0, 0, 0)

    def wrong(accuracy: Accuracy) -> tuple[int, int]:
        return accuracy.compared - accuracy.phase_right, accuracy.compared - accuracy.tokens_right

    # best[j]: the best alignment of the expected runs so far with the first j reported ones.
    best = [nothing]
    for run in reported:
        best.append(best[-1] + compare_runs((), run))
    for want in expected:
        row = [best[0] + compare_runs(want, ())]
        for j, got in enumerate(reported, start=1):
            row.append(
                min(
                    best[j - 1] + compare_runs(want, got),
                    best[j] + compare_runs(want, ()),
                    row[j - 1] + compare_runs((), got),
                    key=wrong,
                )
            )
        best = row
    return best[-1]
