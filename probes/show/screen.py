"""Where tables go: a terminal's alternate screen with keys, or plain output, one table after the other."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Protocol

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from flexnpu.console.output import say
from flexnpu.console.tables import Console, cell
from probes.show.table import SORTABLE, counts_line, lines_below, render
from probes.show.view import Snapshot

KEYS = "q quit  f/space freeze  p pause  s sort  letters sort by a column (?)"


class Display(Protocol):
    """Shows snapshots."""

    quit: bool
    """The user wants to end."""
    paused: bool
    """The user wants nothing to be counted."""

    def show(self, snapshot: Snapshot) -> None:
        """Show a snapshot."""

    def say(self, text: str) -> None:
        """Show a note."""

    def poll(self) -> None:
        """React to keys and to a changed size. Does not wait."""

    def close(self) -> None:
        """Leave the terminal as it was. May be called twice."""


class Plain:
    """One table after the other, for files and pipes."""

    quit = paused = False

    def __init__(self, console: Console | None = None, *, clock: bool = True) -> None:
        self._console = console or Console()
        self._clock = clock

    def show(self, snapshot: Snapshot) -> None:
        """Print a table and the lines below it."""
        title = counts_line(snapshot.counts)
        if self._clock:
            title = f"{datetime.now():%H:%M:%S}  {title}"
        self._console.print(render(snapshot, title, self._console.width))
        for line in lines_below(snapshot):
            self._console.print(_line(line))

    def say(self, text: str) -> None:
        """Print a note on standard error."""
        say(text)

    def poll(self) -> None:
        """There are no keys."""

    def close(self) -> None:
        """Nothing to leave."""


class Screen:
    """The alternate screen of the terminal on standard output; keys come from standard input.

    `close` gives the terminal back as it was; so does a signal that ends the loop around it.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.quit = False
        self.paused = False
        self._frozen = False
        self._help = False
        self._sort: str | None = None
        self._snapshot: Snapshot | None = None
        self._console = console or Console()
        self._input = sys.stdin.fileno()
        self._before: list[Any] | None = None
        self._at = ""
        self._said: list[str] = []
        self._left = False
        with contextlib.suppress(termios.error):  # no terminal to read from: no keys
            self._before = termios.tcgetattr(self._input)
            tty.setcbreak(self._input)
        self._live = Live(
            Text("waiting for the first interval"), console=self._console, screen=True, auto_refresh=False
        )
        try:
            self._live.start(refresh=True)
        except BaseException:
            self.close()
            raise

    def show(self, snapshot: Snapshot) -> None:
        """Draw a snapshot, unless the screen is held."""
        if self._frozen or self.paused:
            return
        self._snapshot = snapshot
        self._at = f"{datetime.now():%H:%M:%S}"
        self._draw()

    def say(self, text: str) -> None:
        """Show `text` now, and print it once the screen is left."""
        self._said.append(text)
        self._draw()

    def poll(self) -> None:
        """Take the keys that were pressed."""
        if self._before is None:
            return
        while select.select([self._input], [], [], 0)[0]:
            try:
                data = os.read(self._input, 64)
            except OSError:
                data = b""
            if not data:
                self.quit = True
                return
            if data.startswith(b"\x1b"):
                continue  # an arrow or function key
            for key in data.decode(errors="replace"):
                self._press(key)

    def _press(self, key: str) -> None:
        if key == "q":
            self.quit = True
        elif key in "f ":
            self._frozen = not self._frozen
        elif key == "p":
            self.paused = not self.paused
        elif key == "?":
            self._help = not self._help
        elif key == "s":
            keys = [None, *SORTABLE]
            self._sort = keys[(keys.index(self._sort) + 1) % len(keys)]
        elif key in SORTABLE:
            self._sort = None if key == self._sort else key
        else:
            return
        self._draw()

    def _state(self) -> str:
        said = [self._at]
        if self._frozen:
            said.append("FROZEN")
        if self.paused:
            said.append("PAUSED")
        if self._sort is not None:
            said.append(f"by {SORTABLE[self._sort].name}")
        return "  ".join(part for part in said if part)

    def _parts(self) -> Iterator[RenderableType]:
        snapshot = self._snapshot
        if snapshot is None:
            yield Text(f"{self._state()}  waiting for the first interval")
        else:
            yield _line(f"{self._state()}  {counts_line(snapshot.counts)}", "dim")
            lines = lines_below(snapshot)[: max(3, self._console.height // 3)]
            room = max(1, self._console.height - 6 - len(lines))
            hidden = len(snapshot.rows) - room
            yield render(snapshot, None, self._console.width, sort=self._sort, limit=room)
            if not snapshot.rows:
                yield _line("no step in this interval", "dim")
            if hidden > 0:
                yield _line(f"and {hidden} rows more", "dim")
            for line in lines:
                yield _line(line)
        if self._said:
            yield _line(self._said[-1], "dim")
        if self._help:
            yield _line("  ".join(f"{key} {column.name}" for key, column in SORTABLE.items()), "reverse")
        yield _line(KEYS, "dim")

    def _draw(self) -> None:
        self._live.update(Group(*self._parts()), refresh=True)

    def close(self) -> None:
        """Leave the alternate screen, and the terminal as it was. May be called twice."""
        if self._left:
            return
        self._left = True
        if self._before is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._input, termios.TCSADRAIN, self._before)
            self._before = None
        with contextlib.suppress(OSError):
            self._live.stop()
        for text in self._said:
            say(text)


def _line(text: str, style: str = "") -> Text:
    return cell(text, style, no_wrap=True, overflow="ellipsis")


def plain_after(shown: Display) -> Display:
    """What to show further on once `shown` was closed."""
    return Plain() if isinstance(shown, Screen) else shown


def display() -> Display:
    """The screen of a terminal, or plain tables where there is none."""
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") in ("", "dumb"):
        return Plain()
    with contextlib.suppress(OSError):  # not our controlling terminal: nobody stops us for touching it
        if os.tcgetpgrp(sys.stdout.fileno()) != os.getpgrp():
            return Plain()  # a job in the background, which would be stopped
    return Screen()
