"""Where the daemons' sockets are, and what a user's programs keep for the next run.

The run directory is ``$FLEXNPU_RUN_DIR``; else ``/run/flexnpu`` for root and ``$XDG_RUNTIME_DIR/flexnpu``
for another user. A daemon makes ``npu<N>.ctl`` (control), ``npu<N>.sock`` (clients) and ``npu<N>.lock``
there; the tracer makes ``probe.sock``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

ENV_RUN_DIR = "FLEXNPU_RUN_DIR"
ROOT_RUN_DIR = Path("/run/flexnpu")


class NoRunDirError(RuntimeError):
    """There is no place for sockets."""


def run_dir() -> Path:
    """Where this user's daemon puts its sockets; not made here. Raises `NoRunDirError`."""
    chosen = os.environ.get(ENV_RUN_DIR)
    if chosen:
        return Path(chosen)
    if os.geteuid() == 0:
        return ROOT_RUN_DIR
    base = os.environ.get("XDG_RUNTIME_DIR")
    if not base:
        raise NoRunDirError(
            f"no run directory: neither {ENV_RUN_DIR} nor XDG_RUNTIME_DIR is set; "
            f"set {ENV_RUN_DIR} to a directory of yours"
        )
    return Path(base) / "flexnpu"


def search_dirs() -> list[Path]:
    """Where a daemon may be found: this user's run directory, then the system's."""
    if os.environ.get(ENV_RUN_DIR):
        return [run_dir()]
    try:
        own = run_dir()
    except NoRunDirError:
        return [ROOT_RUN_DIR]
    return [own] if own == ROOT_RUN_DIR else [own, ROOT_RUN_DIR]


def control_socket(device: int, directory: Path | None = None) -> Path:
    """The control socket of a device's daemon, in `directory` or the run directory."""
    return (directory or run_dir()) / f"npu{device}.ctl"


def data_socket(device: int, directory: Path | None = None) -> Path:
    """The socket for clients of a device's daemon."""
    return (directory or run_dir()) / f"npu{device}.sock"


def lock_file(device: int, directory: Path | None = None) -> Path:
    """The file that a device's daemon holds locked."""
    return (directory or run_dir()) / f"npu{device}.lock"


def probe_socket(directory: Path | None = None) -> Path:
    """The socket of the tracer's feed."""
    return (directory or run_dir()) / "probe.sock"


def control_sockets(directories: list[Path] | None = None) -> list[Path]:
    """Control sockets there are, by device; one may be stale."""
    found: list[tuple[int, Path]] = []
    for directory in search_dirs() if directories is None else directories:
        try:
            names = os.listdir(directory)
        except OSError:
            continue
        for name in names:
            match = re.fullmatch(r"npu(\d{1,4})\.ctl", name)
            if match:
                found.append((int(match[1]), directory / name))
    return [path for _, path in sorted(found)]


def cache_dir() -> Path:
    """``$FLEXNPU_CACHE_DIR``, else ``$XDG_CACHE_HOME/flexnpu``, else ``~/.cache/flexnpu``; not made here."""
    chosen = os.environ.get("FLEXNPU_CACHE_DIR")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "flexnpu"
