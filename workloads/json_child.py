"""A process that is asked and answers by JSON objects, one a line."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class JsonChild:
    """Started with the first question, and anew after a crash. Lines that are no JSON object are passed over.

    `environment` comes on top of ours; `log` takes the standard error. Without an answer within `timeout_s`
    seconds, the start included, the process is killed.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, timeout_s: float
    ) -> None:
        self._command = command
        self._environment = environment
        self._log = log
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[str] | None = None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            with self._log.open("a") as log:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env={**os.environ, **self._environment},
                )
        return self._process

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """The answer; None when the process ended or was killed instead: see `last_words`."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        watchdog = threading.Timer(self._timeout_s, process.kill)
        watchdog.start()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = next((line for line in process.stdout if line.startswith("{")), "")
        except BrokenPipeError:
            line = ""
        finally:
            watchdog.cancel()
        return json.loads(line) if line else None

    def last_words(self, size: int) -> str:
        """How the process ended, and the last characters that it wrote to its log."""
        said = self._log.read_text(errors="replace")[-size:]
        return f"the process ended with {self._end()}: {said}"

    def _end(self) -> int | None:
        if self._process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(30)  # its output may end a little before itself
        self._process.kill()
        return self._process.wait()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._end()
