"""Rooms import only what the tables in docs/architecture.md allow, and no file is too long to read."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {".py", ".cpp", ".hpp", ".h", ".c"}
LONGEST = 500

# Tables, generated files and data: one entry after another, nothing to understand as a whole.
TABLES: set[str] = {
    "tests/emulator/ops/cases.py",
}


# Kept for programs outside of FlexNPU: former public names, and the room that has what they pass on.
FORMER = {
    "probes.events": "probes.feed.events",
    "probes.http_stream": "probes.requests",
    "probes.wire": "probes.requests.wire",
}


def parse_rooms(text: str) -> dict[str, set[str]]:
    """Room to the rooms that it may use, itself aside, from the tables whose head is "place ... may use"."""
    cells: list[tuple[str, str]] = []
    in_table = False
    for line in text.splitlines():
        columns = [column.strip() for column in line.strip("|").split("|")] if line.startswith("|") else []
        if not columns:
            in_table = False
        elif columns[0] == "place" and columns[-1] == "may use":
            in_table = True
        elif in_table and set(columns[0]) != {"-"}:
            name = re.fullmatch(r"`([\w/]+)`", columns[0])
            assert name, (
                f"a row of the table of rooms begins with a folder in backticks, not with {columns[0]}"
            )
            cells.append((name[1], columns[-1]))
    names = [name for name, _ in cells]
    assert len(names) == len(set(names)), "a room has one row"
    rooms: dict[str, set[str]] = {}
    for i, (name, cell) in enumerate(cells):
        listed = set(re.findall(r"`([\w/]+)`", cell))
        assert listed <= set(names), f"{name} may use {listed - set(names)}, which the table does not have"
        if re.fullmatch(r"all|all but (`[\w/]+`(, )?)+", cell):
            rooms[name] = set(names) - listed
        elif cell == "those above":
            parent = name.rpartition("/")[0]
            rooms[name] = {above for above in names[:i] if above.rpartition("/")[0] == parent}
        else:
            assert re.fullmatch(r"nothing|`[\w/]+`(, `[\w/]+`)*", cell), f"{name}: cannot read {cell!r}"
            rooms[name] = listed
    return rooms


ALLOWED = parse_rooms((ROOT / "docs" / "architecture.md").read_text())


def with_parents(place: str) -> list[str]:
    """``a/b/c`` to ``a/b/c``, ``a/b``, ``a``."""
    parts = place.split("/")
    return ["/".join(parts[:n]) for n in range(len(parts), 0, -1)]


def room_of(place: str, rooms: dict[str, set[str]] = ALLOWED) -> str | None:
    """The innermost room that ``place``, a path below the repository, lies in."""
    return next((one for one in with_parents(place) if one in rooms), None)


def may_use(room: str, used: str, rooms: dict[str, set[str]] = ALLOWED) -> bool:
    allowed = {one for place in with_parents(room) for one in rooms.get(place, ())}
    return any(place == room or place in allowed for place in with_parents(used))


def python_imports(path: Path) -> Iterator[str]:
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name.replace(".", "/") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = "/".join([*start, *(node.module or "").split(".")]).strip("/")
            yield from (f"{module}/{alias.name}" for alias in node.names)


def c_includes(path: Path) -> Iterator[str]:
    for match in re.finditer(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.M):
        beside = (path.parent / match[1]).resolve()
        if beside.is_file() and beside.is_relative_to(ROOT):
            yield str(beside.relative_to(ROOT))
        else:
            yield match[1]


def sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in SOURCES and path.is_file())


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_uses_only_what_the_table_allows(room: str) -> None:
    wrong = []
    for path in sources(ROOT / room):
        name = str(path.relative_to(ROOT))
        if room_of(name) != room:
            continue
        for place in python_imports(path) if path.suffix == ".py" else c_includes(path):
            used = room_of(place)
            if used is not None and not may_use(room, used):
                wrong.append(f"{name} uses {used}")
    assert not wrong


@pytest.mark.parametrize("name", FORMER)
def test_former_names_pass_on_what_their_rooms_have_and_nothing_of_ours_imports_them(name: str) -> None:
    place = name.replace(".", "/")
    tree = ast.parse((ROOT / f"{place}.py").read_text())
    passed = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module != "__future__"]
    assert all((node.module or "").startswith(FORMER[name]) for node in passed)
    assert {type(node) for node in tree.body} <= {ast.Expr, ast.ImportFrom, ast.Assign}
    assert sorted(importlib.import_module(name).__all__) == sorted(a.name for n in passed for a in n.names)
    folders = [ROOT / folder for folder in {room.split("/")[0] for room in ALLOWED} | {"scripts"}]
    wrong = [
        str(path.relative_to(ROOT))
        for folder in folders
        for path in folder.rglob("*.py")
        if any(used == place or used.startswith(f"{place}/") for used in python_imports(path))
    ]
    assert not wrong, f"import {FORMER[name]} instead"


def test_every_folder_of_code_is_a_room_of_the_table() -> None:
    missing = [room for room in ALLOWED if not (ROOT / room).is_dir()]
    assert not missing, "the table has rooms that are not there"
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"flexnpu"}
    parents = {parent for room in ALLOWED if (parent := room.rpartition("/")[0])}
    inside = {
        f"{parent}/{folder.name}"
        for parent in parents
        for folder in (ROOT / parent).iterdir()
        if folder.is_dir() and sources(folder)
    }
    assert packages | inside <= set(ALLOWED)


def test_the_table_is_read_as_it_is_meant() -> None:
    rooms = parse_rooms(
        """
| place | what | may use |
|---|---|---|
| `a` | x | nothing |
| `b` | x | `a` |
| `c` | x | all but `b` |

| place | what | may use |
|---|---|---|
| `b/low` | x | those above |
| `b/high` | x | those above |
"""
    )
    assert rooms["c"] == {"a", "c", "b/low", "b/high"}
    assert may_use("b", "a", rooms)
    assert may_use("b/low", "a", rooms)
    assert may_use("b/high", "b/low", rooms)
    assert may_use("b", "b/high", rooms)  # what stands in the folder itself puts the rooms together
    assert not may_use("a", "b", rooms)
    assert not may_use("a", "b/low", rooms)
    assert not may_use("b/low", "b/high", rooms)
    assert not may_use("b/low", "b", rooms)
    assert not may_use("b/low", "c", rooms)


def test_no_file_is_too_long() -> None:
    folders = [ROOT / name for name in ({room.split("/")[0] for room in ALLOWED} | {"tests", "scripts"})]
    long = {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in sources(folder)
        if path.read_text(errors="replace").count("\n") > LONGEST
    }
    new = sorted(long - TABLES)
    assert not new, f"files over {LONGEST} lines: split them"
