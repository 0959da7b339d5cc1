"""The reference of metrics is what the code makes."""

from __future__ import annotations

from pathlib import Path

from collectors.metrics import METRICS
from collectors.metrics.__main__ import markdown
from collectors.metrics.metric import ATTRIBUTES, LABELS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "metrics.md"


def test_the_committed_page_is_what_the_code_makes() -> None:
    assert PAGE.read_text() == markdown(), f"make it anew: python -m collectors.metrics > {PAGE}"


def test_it_has_every_metric_and_label() -> None:
    page = markdown()
    for one in METRICS:
        assert page.count(f"| `{one.name}` |") == 1
    assert set(ATTRIBUTES) == set(LABELS) >= {label for one in METRICS for label in one.labels}
