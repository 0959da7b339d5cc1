"""Tables and lines for people, through rich, in which nothing that others chose acts.

rich reads ``[red]`` in a string as an instruction and passes control characters on. Here strings are text:
no markup, no emoji codes. A cell of a `Table` is one line, whatever is in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, Any

import rich.console
import rich.table
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from flexnpu.console.text import safe


def cell(text: object, style: str | Style = "", **options: Any) -> Text:
    """`text` as one line, safe; `options` are those of rich's Text."""
    return Text(safe(text), style=style, **options)


class Table(rich.table.Table):
    """A table whose strings are text. One line a cell, unless a `Text` says otherwise."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """As rich's, with strings made safe."""
        super().add_row(*(cell(one) if isinstance(one, str) else one for one in cells), **options)


class Console(rich.console.Console):
    """rich's console without markup; it shows nothing that a terminal would act on, save its own styles."""

    def __init__(
        self, *, width: int | None = None, stderr: bool = False, file: IO[str] | None = None
    ) -> None:
        super().__init__(width=width, stderr=stderr, file=file, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """A string as it is, without anything unprintable."""
        return super().render_str(
            safe(text, keep="\n"), **{**options, "markup": False, "emoji": False, "highlight": False}
        )

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich's; what is still unprintable in a segment of text is escaped."""
        for segment in super().render(renderable, options):
            text = segment.text
            if segment.control or text == "\n" or text.isprintable():
                yield segment
            else:
                yield Segment(safe(text, keep="\n"), segment.style)


def wide_console(width: int) -> Console:
    """Of a terminal's own width, or of `width` columns where the output is none."""
    console = Console()
    return console if console.is_terminal else Console(width=width)
