from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from probes.steps.phases import Evidence, Lengths, classify

CASES = yaml.safe_load((Path(__file__).parent / "phase_cases.yaml").read_text())


def reduce(values: list[int]) -> Lengths:
    """What the kernel side keeps of an integer array, without zeros behind it."""
    padded = len(values) - len([value for value in values if value])
    values = values[: len(values) - padded]
    differences = [b - a for a, b in pairwise([0, *values])]
    return Lengths(
        n=len(values),
        seen=len(values),
        ones=differences.count(1),
        rising=all(difference > 0 for difference in differences),
        first=values[0],
        last=values[-1],
        max=max(values),
        sum=sum(values),
        padded=padded,
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_case(case: dict[str, Any]) -> None:
    raw = dict(case["evidence"])
    if "indices" in raw:
        raw["indices"] = tuple(raw["indices"])
    raw["arrays"] = [reduce(values) for values in raw.get("arrays", [])]
    # As an attention operator names them.
    roles: tuple[tuple[str, Literal["query", "kv"]], ...] = (("queries", "query"), ("keys", "kv"))
    for name, role in roles:
        if name in raw:
            raw["arrays"].append(replace(reduce(raw.pop(name)), role=role))
    verdict = classify(Evidence(**raw))
    assert {name: getattr(verdict, name) for name in case["want"]} == case["want"]


lengths = st.builds(
    Lengths,
    n=st.integers(0, 2**32 - 1),
    seen=st.integers(0, 128),
    ones=st.integers(0, 128),
    rising=st.booleans(),
    first=st.integers(1, 2**63 - 1),
    last=st.integers(1, 2**63 - 1),
    max=st.integers(1, 2**63 - 1),
    sum=st.integers(-(2**63), 2**63 - 1),
)


@given(
    st.builds(
        Evidence,
        embedding=st.booleans(),
        indices=st.none() | st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4).map(tuple),
        agreed=st.booleans(),
        graph=st.booleans(),
        from_capture=st.booleans(),
        capture=st.booleans(),
        h2d_bytes=st.integers(0, 2**64 - 1),
        h2d_copies=st.integers(0, 2**64 - 1),
        arrays=st.lists(lengths, max_size=3),
    )
)
@example(Evidence(graph=True, from_capture=True, indices=(-1, 4)))
def test_any_evidence_gets_a_verdict_that_says_how_sure_it_is(evidence: Evidence) -> None:
    verdict = classify(evidence)
    assert 0 <= verdict.confidence <= 1
    assert verdict.evidence
    assert verdict.unclassified == (verdict.confidence == 0)
    assert verdict.tokens is None or verdict.tokens >= 0
    assert verdict.batch is None or verdict.batch >= 0
    if verdict.unclassified:
        assert verdict.phase == "other"


@given(st.integers(1, 64), st.integers(1, 4096))
def test_padded_batches_of_any_size(batch: int, length: int) -> None:
    verdict = classify(Evidence(embedding=True, indices=(batch, length), agreed=True))
    assert verdict.phase == ("decode" if length == 1 else "prefill")
    assert (verdict.tokens, verdict.batch) == (batch * length, batch)


@given(st.lists(st.tuples(st.integers(1, 600), st.integers(0, 5000)), min_size=1, max_size=64))
def test_flattened_batches_of_any_make_up(sequences: list[tuple[int, int]]) -> None:
    queries = [query for query, _ in sequences]
    cumulative = [sum(queries[: i + 1]) for i in range(len(queries))]
    keys = [query + past for query, past in sequences]
    arrays = list({tuple(values): reduce(values) for values in (keys, cumulative)}.values())
    verdict = classify(Evidence(embedding=True, indices=(sum(queries),), arrays=arrays))
    want = "decode" if set(queries) == {1} else "mixed" if 1 in queries else "prefill"
    assert verdict.tokens == sum(queries)
    if (verdict.phase, verdict.batch) != (want, len(queries)):
        # Keys may happen to look like running sums that end no later; never more than that.
        assert reduce(keys).rising
        assert keys[-1] <= cumulative[-1]
