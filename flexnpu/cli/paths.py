"""Where the command line keeps what it makes for itself."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """``$FLEXNPU_CACHE_DIR``, else ``$XDG_CACHE_HOME/flexnpu``, else ``~/.cache/flexnpu``; not made here."""
    chosen = os.environ.get("FLEXNPU_CACHE_DIR")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "flexnpu"
