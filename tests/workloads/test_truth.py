"""The accuracy that the demo prints: what must count as wrong does."""

from __future__ import annotations

from workloads.truth import Accuracy, compare, compare_runs, expected_run, split_runs

EXPECTED = [expected_run(37, 4), expected_run(12, 3), expected_run(300, 1)]


def _reported() -> list[tuple[str, int | None]]:
    return [label for run in EXPECTED for label in run]


def test_a_request_is_one_prefill_and_decodes() -> None:
    assert expected_run(37, 3) == [("prefill", 37), ("decode", 1), ("decode", 1)]
    assert expected_run(5, 1) == [("prefill", 5)]


def test_perfect_report_with_other_steps_between() -> None:
    labels = _reported()
    labels.insert(1, ("other", None))
    labels.append(("other", 5))
    accuracy = compare(EXPECTED, split_runs(labels))
    assert accuracy == Accuracy(8, 8, 8)
    assert accuracy.phase == 1.0


def test_wrong_tokens_are_not_a_wrong_phase() -> None:
    labels = _reported()
    labels[0] = ("prefill", 36)
    labels[1] = ("decode", None)
    assert compare(EXPECTED, split_runs(labels)) == Accuracy(8, 8, 6)


def test_decode_called_prefill_is_wrong() -> None:
    labels = _reported()
    labels[2] = ("prefill", 1)
    accuracy = compare(EXPECTED, split_runs(labels))
    assert accuracy.phase is not None
    assert accuracy.phase < 1.0
    assert accuracy.compared - accuracy.phase_right >= 1


def test_prefill_called_decode_is_wrong_once_or_more() -> None:
    labels = _reported()
    labels[4] = ("decode", 12)
    accuracy = compare(EXPECTED, split_runs(labels))
    assert accuracy.compared > accuracy.phase_right


def test_missed_and_invented_steps_are_wrong() -> None:
    labels = _reported()
    del labels[1]
    assert compare(EXPECTED, split_runs(labels)) == Accuracy(8, 7, 7)
    labels = [*_reported(), ("decode", 1)]
    assert compare(EXPECTED, split_runs(labels)) == Accuracy(9, 8, 8)


def test_a_missed_request_costs_its_own_steps_only() -> None:
    labels = [label for run in EXPECTED[1:] for label in run]
    assert compare(EXPECTED, split_runs(labels)) == Accuracy(8, 4, 4)


def test_nothing_reported() -> None:
    accuracy = compare(EXPECTED, [])
    assert accuracy == Accuracy(8, 0, 0)
    assert compare([], []).phase is None
    assert compare_runs((), ()).compared == 0
