"""Rooms import only what the table in docs/architecture.md allows."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# room -> rooms that it may use, itself aside. The table in docs/architecture.md says why.
ALLOWED: dict[str, set[str]] = {
    "flexnpu/common": set(),
    "flexnpu/console": set(),
    "flexnpu/api": set(),
    "flexnpu/wire": set(),
    "flexnpu/gate": set(),
    "flexnpu/control": set(),
    "flexnpu/client": {"flexnpu/api", "flexnpu/wire"},
    "flexnpu/emulator": {"flexnpu/api"},
    "flexnpu/daemon": {
        "flexnpu/api",
        "flexnpu/wire",
        "flexnpu/gate",
        "flexnpu/control",
        "flexnpu/common",
        "flexnpu/console",
    },
    "flexnpu/cli": {
        "flexnpu/api",
        "flexnpu/client",
        "flexnpu/common",
        "flexnpu/console",
        "flexnpu/control",
        "flexnpu/daemon",
        "flexnpu/emulator",
        "flexnpu/gate",
        "probes",
        "collectors",
        "controllers",
        "dashboards",
        "workloads",
    },
    "probes": {"flexnpu/common", "flexnpu/console", "flexnpu/control", "flexnpu/wire"},
    "collectors": {"probes", "flexnpu/common", "flexnpu/console", "flexnpu/control"},
    "controllers": {"probes", "flexnpu/common", "flexnpu/console", "flexnpu/control"},
    "dashboards": {"collectors"},
    "workloads": {"dashboards", "flexnpu/common", "flexnpu/console", "flexnpu/control"},
    "benchmarks": {
        "flexnpu/client",
        "flexnpu/common",
        "flexnpu/console",
        "flexnpu/control",
        "flexnpu/emulator",
        "flexnpu/gate",
        "probes",
        "controllers",
        "workloads",
    },
}
ROOMS = sorted(ALLOWED)


def room_of_module(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] == "flexnpu":
        return f"flexnpu/{parts[1]}" if len(parts) > 1 else None
    return parts[0] if parts[0] in ALLOWED else None


def python_imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "flexnpu")


def included_rooms(path: Path) -> Iterator[str]:
    for match in re.finditer(r'#include "(flexnpu/\w+)/', path.read_text()):
        yield match[1]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_uses_only_what_the_table_allows(room: str) -> None:
    allowed = ALLOWED[room]
    wrong = []
    folder = ROOT / room
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".py":
            used = {r for module in python_imports(path) if (r := room_of_module(module))}
        elif path.suffix in {".cpp", ".hpp", ".h"}:
            used = set(included_rooms(path))
        else:
            continue
        wrong += [
            f"{path.relative_to(ROOT)} uses {r}" for r in sorted(used - allowed - {room}) if r in ALLOWED
        ]
    assert not wrong


def test_the_table_in_the_document_is_this_one() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `?([\w/]+)`? \|", text, re.M)
    assert set(ROOMS) <= set(rows), "docs/architecture.md has a row for each room"
