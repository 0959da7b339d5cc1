"""``python -m probes.feed.reference`` prints the reference of events, docs/reference/events.md.

It is made of `events`: the classes, their docstrings, and the docstrings of their fields.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from typing import get_args

from probes.feed import events

_TYPES = {
    "_NonNegative": "integer >= 0",
    "_Microseconds": "number >= 0, us",
    "_Fraction": "number 0 to 1",
    "_Amount": "number >= 0",
    "_Flag": "true or false",
    "str": "string",
    "Phase": " or ".join(f"`{phase}`" for phase in get_args(events.Phase)),
    "None": "null",
    "int": "integer",
}


def _text(docstring: str | None) -> str:
    """A docstring as Markdown: its paragraphs, a line each."""
    paragraphs = inspect.cleandoc(docstring or "").replace("``", "`").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _type(node: ast.expr) -> str:
    """An annotation in words of JSON."""
    match node:
        case ast.BinOp(left=left, right=right):
            return f"{_type(left)} or {_type(right)}"
        case ast.Subscript(value=ast.Name("list"), slice=item):
            return f"list of {_type(item)}"
        case ast.Subscript(value=ast.Name("tuple"), slice=ast.Tuple(items)):
            return f"[{', '.join(map(_type, items))}]"
        case ast.Subscript(value=ast.Name("dict"), slice=ast.Tuple([_, item])):
            return f"object of {_type(item)}"
        case ast.Subscript(value=ast.Name("Literal"), slice=ast.Tuple(items)):
            return " or ".join(f"`{ast.literal_eval(item)}`" for item in items)
        case ast.Name(name):
            return _TYPES[name]
        case ast.Constant(None):
            return _TYPES["None"]
    raise ValueError(f"no words for the type {ast.unparse(node)}")


def _fields(definition: ast.ClassDef) -> Iterator[tuple[str, str, str, bool]]:
    """(name, type, meaning, whether it may be absent) of each field."""
    for statement, after in zip(definition.body, [*definition.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if "ClassVar" in ast.unparse(statement.annotation):
            continue
        meaning = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            meaning = _text(str(after.value.value))
        yield statement.target.id, _type(statement.annotation), meaning, statement.value is not None


def _event(definition: ast.ClassDef) -> list[str]:
    kind = getattr(events, definition.name).type
    rows = [
        f"| `{name}` | {words}{', may be absent' if optional else ''} | {re.sub('[|]', '&#124;', meaning)} |"
        for name, words, meaning, optional in _fields(definition)
    ]
    text = _text(ast.get_docstring(definition))
    return [f"## {kind}", "", text, "", "| field | type | what it is |", "|---|---|---|", *rows, ""]


def markdown() -> str:
    """The whole page."""
    tree = ast.parse(inspect.getsource(events))
    names = {one.__name__ for one in get_args(events.Event)}
    definitions = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name in names]
    lines = [
        "# Events of the feed",
        "",
        "<!-- Made by `python -m probes.feed.reference`. Do not edit. -->",
        "",
        "`flexnpu-probe attach --feed` publishes these on a unix socket, and `flexnpu-probe trace` records "
        "them. They are defined in `probes/feed/events.py`.",
        "",
        f"Each event is one line of JSON with `v` (the version, {events.VERSION}) and `type`, the name of "
        "its section below. A reader ignores fields that it does not know. A measurement that could not be "
        "made is null, never zero. All times are nanoseconds of CLOCK_MONOTONIC on the traced machine.",
        "",
    ]
    for definition in definitions:
        lines += _event(definition)
    return "\n".join(lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
