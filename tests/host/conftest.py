"""Programs on the emulated CANN, directly and through a daemon."""

from __future__ import annotations

from tests.clients.conftest import Daemon, daemon

__all__ = ["Daemon", "daemon"]
