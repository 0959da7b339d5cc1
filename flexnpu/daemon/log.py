"""The daemon's log: one JSON object a line, on stderr."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import sys


def log(event: str, **fields: object) -> None:
    """Write one line; `fields` must have JSON forms. A log that nobody can read any more stops nothing."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    line = json.dumps({"time": now, "event": event, **fields}, separators=(",", ":"), default=str) + "\n"
    with contextlib.suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), line.encode())
