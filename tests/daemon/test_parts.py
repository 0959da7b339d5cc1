"""The daemon's parts call only what the table in docs/architecture.md says: parts above them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
DAEMON = ROOT / "flexnpu" / "daemon"


class Part(NamedTuple):
    name: str
    header: Path
    calls: set[str]


def parse_parts(text: str) -> list[Part]:
    """The rows of the table whose head is "part, header, ..., calls", from the top."""
    parts: list[Part] = []
    in_table = False
    for line in text.splitlines():
        columns = [column.strip() for column in line.strip("|").split("|")] if line.startswith("|") else []
        if not columns:
            in_table = False
        elif columns[0] == "part" and columns[-1] == "calls":
            in_table = True
        elif in_table and set(columns[0]) != {"-"}:
            parts.append(
                Part(
                    columns[0].strip("`"),
                    ROOT / columns[1].strip("`"),
                    set(re.findall(r"`(\w+)`", columns[-1])),
                )
            )
    return parts


PARTS = parse_parts((ROOT / "docs" / "architecture.md").read_text())
NAMES = [part.name for part in PARTS]


def class_body(text: str, name: str) -> str:
    """What stands between the braces of ``name``'s definition."""
    found = re.search(rf"^class {name}\b[^;{{]*{{(.*?)^}};", text, re.MULTILINE | re.DOTALL)
    assert found, f"no class {name}"
    return found[1]


def test_every_member_of_the_dispatcher_that_works_for_it_is_in_the_table() -> None:
    body = class_body((DAEMON / "dispatcher.hpp").read_text(), "Dispatcher")
    members = set(re.findall(r"^    (?:const )?([A-Z]\w+) \w+_;", body, re.MULTILINE))
    assert members - {"Limits", "Polling", "Turn"} <= set(NAMES)
    assert len(members) > 20


@pytest.mark.parametrize("part", PARTS, ids=NAMES)
def test_a_part_names_the_parts_that_the_table_says(part: Part) -> None:
    body = class_body(part.header.read_text(), part.name)
    named = set(re.findall(r"^    (?:const )?(\w+)& \w+_;", body, re.MULTILINE)) & set(NAMES)
    assert named == part.calls


@pytest.mark.parametrize("part", PARTS, ids=NAMES)
def test_a_part_calls_only_parts_above_it(part: Part) -> None:
    assert part.calls <= set(NAMES[: NAMES.index(part.name)])


@pytest.mark.parametrize("part", PARTS, ids=NAMES)
def test_a_part_shows_none_of_its_fields(part: Part) -> None:
    body = class_body(part.header.read_text(), part.name)
    public = re.split(r"^(?:private|protected):$", body, flags=re.MULTILINE)[0]
    assert re.findall(r"^    (?! )[^()\n]*\w+_(?: = [^;]*)?;", public, re.MULTILINE) == []
