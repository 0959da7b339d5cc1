"""The reference of events is what the code makes."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from probes.feed.events import Event
from probes.feed.reference import markdown

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "events.md"


def test_the_committed_page_is_what_the_code_makes() -> None:
    assert PAGE.read_text() == markdown(), f"make it anew: python -m probes.feed.reference > {PAGE}"


def test_it_has_every_event_and_field() -> None:
    sections = dict(part.split("\n", 1) for part in markdown().split("\n## ")[1:])
    assert set(sections) == {one.type for one in get_args(Event)}
    for one in get_args(Event):
        for name in one.__slots__:
            assert f"| `{name}` |" in sections[one.type]
