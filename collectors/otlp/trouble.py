"""What goes wrong with an endpoint, told in our words and not at every try."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Final

SCOPE: Final = "flexnpu.collectors"
"""Name of what measures, in metrics and spans."""

_CAUSE: Final = re.compile(r"Transient error (.*?) encountered while exporting")
_KNOWN: Final = ("due to timeout, max retries or shutdown", "Shutdown in progress", "already shutdown")
_INNERMOST: Final = re.compile(r"(\[Errno \d+\] [^)'\"]*)")


def quiet_sdk() -> None:
    """Have the SDK's log heard by `Trouble` and not printed."""
    logger = logging.getLogger("opentelemetry")
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


class Trouble(logging.Handler):
    """Tells once that `url` does not take `what`, and again after it did.

    The SDK logs each try that fails, to `logger`, and tries again by itself.
    """

    def __init__(self, what: str, url: str, logger: str, on_trouble: Callable[[str], None]) -> None:
        super().__init__()
        self._what, self._url = what, url
        self._on_trouble = on_trouble
        self._failing = False
        self._logger = logging.getLogger(logger)
        self._logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """A try failed; that the SDK gave up is told by the result of the export."""
        text = record.getMessage()
        if any(known in text for known in _KNOWN):
            return
        cause = _CAUSE.search(text)
        text = cause[1] if cause else text
        innermost = _INNERMOST.search(text)
        self.failed(innermost[1] if innermost else text)

    def failed(self, reason: str) -> None:
        """Nothing was taken."""
        if not self._failing:
            self._failing = True
            self._on_trouble(f"{self._url} takes no {self._what}: {reason}")

    def told(self, sent: bool) -> None:
        """What came of an export."""
        if sent:
            self._failing = False
        else:
            self.failed("no answer in time")

    def close(self) -> None:
        """Hear nothing more."""
        self._logger.removeHandler(self)
        super().close()
