"""The daemon's log: one JSON object a line, on stderr."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys

from flexnpu.console.text import json_text


def log(event: str, **fields: object) -> None:
    """Write one line; `fields` must have JSON forms. A log that nobody can read any more stops nothing."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    line = json_text({"time": now, "event": event, **fields}, compact=True, default=str) + "\n"
    with contextlib.suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), line.encode())
