"""No program prints past `flexnpu.console`, where text that others chose is made safe."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.console.programs import commands

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("probes", "collectors", "controllers", "flexnpu/cli", "flexnpu/control", "flexnpu/daemon")
ALLOWED = {
    "probes/selftest/program.py": "the traced program, whose output the self-test reads",
    "probes/steps/tracer.py": "for who uses the tracer without a command",
    "collectors/metrics/__main__.py": "makes a document",
    "probes/feed/reference.py": "makes a document",
    "controllers/loop.py": "JSON from json_text",
}
ELSEWHERE = "flexnpu/cli/demo/"
"""Its figures are its own."""
_RICH = ("rich.console.Console", "rich.table.Table")


def _past_the_console(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in ("print", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write"):
                yield f"line {node.lineno}: {name}"
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (f"line {node.lineno}: {name}" for name in names if name in _RICH)


@pytest.mark.parametrize("room", ROOMS)
def test_everything_is_printed_through_the_console(room: str) -> None:
    wrong = []
    for path in sorted((ROOT / room).rglob("*.py")):
        name = str(path.relative_to(ROOT))
        if name not in ALLOWED and not name.startswith(ELSEWHERE):
            wrong += [f"{name} {one}" for one in _past_the_console(ast.parse(path.read_text()))]
    assert not wrong


DOCUMENTED = [
    pytest.param(command, id=" ".join(path))
    for path, command in commands()
    if path[:2]
    not in (("flexnpu", "bench"), ("flexnpu", "demo"))  # theirs are the group's, or none is needed
]


@pytest.mark.parametrize("command", DOCUMENTED)
def test_help_begins_with_examples(command: click.Command) -> None:
    first, second, *_ = (command.help or "").split("\n\n")
    assert "EXAMPLES" in second, first
