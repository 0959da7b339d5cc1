"""What the commands share: how they end, and how they say what went wrong."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from flexnpu.console.output import say

_FAILURES = (
    ("probes.steps.tracer", "TracerError"),
    ("probes.placing.attach", "AttachError"),
    ("probes.placing.symbols", "ProcessGone"),
    ("probes.feed.socket", "FeedError"),
    ("probes.feed.recording", "RecordingError"),
    ("probes.host.selection", "SelectionError"),
    ("probes.host.engine", "EngineError"),
    ("probes.requests.wire", "WireError"),
    ("flexnpu.control.paths", "NoRunDirError"),
)
"""Errors whose message is for the user. Named, for importing their modules takes longer than most commands;
an error of a module that was not imported cannot have happened."""


def _failures() -> tuple[type[Exception], ...]:
    return tuple(getattr(sys.modules[module], name) for module, name in _FAILURES if module in sys.modules)


class Stop:
    """Set by SIGINT, SIGTERM and SIGHUP, which end the loop in an orderly way."""

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """Turn what can go wrong into a line on standard error and exit status 1."""
    try:
        yield
    except _failures() as error:
        raise click.ClickException(str(error)) from None


def damaged(path: Path, problem: str) -> NoReturn:
    """End with exit status 3: what was shown is what could be read of the recording `path`."""
    say(f"{path} is damaged: {problem}. What is shown is what could be read before that")
    sys.exit(3)
