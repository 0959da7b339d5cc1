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
from flexnpu.control import paths
from probes.feed.recording import RecordingError
from probes.feed.socket import FeedError
from probes.host.engine import EngineError
from probes.host.selection import SelectionError
from probes.placing.attach import AttachError
from probes.placing.symbols import ProcessGone
from probes.steps.tracer import TracerError

_FAILURES = (
    TracerError,
    AttachError,
    FeedError,
    SelectionError,
    RecordingError,
    EngineError,
    ProcessGone,
    paths.NoRunDirError,
)


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
    from probes.requests.wire import WireError

    try:
        yield
    except (*_FAILURES, WireError) as error:
        raise click.ClickException(str(error)) from None


def damaged(path: Path, problem: str) -> NoReturn:
    """End with exit status 3: what was shown is what could be read of the recording `path`."""
    say(f"{path} is damaged: {problem}. What is shown is what could be read before that")
    sys.exit(3)
