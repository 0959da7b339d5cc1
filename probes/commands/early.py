"""What can be told before anything heavy is loaded: mistakes cost a moment, not the time of an attach.

Nothing of bcc, ELF readers or rich is imported here. What is right now may still be wrong a moment later; the
steps that follow check again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from probes.host.selection import Selection, SelectionError


def check_selection(selection: Selection) -> None:
    """Raise `click.ClickException` for a process, control group or container that cannot be attached to."""
    for pid in selection.pids:
        check_process(pid)
    if selection.criteria:
        try:
            selection.check([int(name) for name in os.listdir("/proc") if name.isdigit()])
        except SelectionError as error:
            raise click.ClickException(str(error)) from None


def check_process(pid: int) -> None:
    """Raise `click.ClickException` unless `pid` is a running process whose memory map may be read."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        raise click.ClickException(f"no process {pid}") from None
    found = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    who = f"{pid} ({found.get('Name', '?')})"
    leader = int(found.get("Tgid", pid))
    if leader != pid:
        raise click.ClickException(f"{who} is a thread of process {leader}: give --pid {leader}")
    if found.get("State", "")[:1] in ("Z", "X"):
        raise click.ClickException(f"process {who} has ended")
    try:
        with open(f"/proc/{pid}/maps", "rb") as maps:
            mapped = maps.read(1)
    except PermissionError as error:
        remedy = (
            "CAP_SYS_PTRACE over it is missing: it lives in another user namespace"
            if os.geteuid() == 0
            else "run this command with sudo"
        )
        raise click.ClickException(
            f"may not read the memory map of process {who}: {error.strerror}; {remedy}"
        ) from None
    except OSError:
        raise click.ClickException(f"process {who} has ended") from None
    if not mapped:
        raise click.ClickException(f"process {who} is the kernel's own: it has no libraries to probe")


def check_writable(path: Path) -> None:
    """Raise `click.ClickException` unless a file could be written at `path`."""
    if path.is_dir():
        raise click.ClickException(f"cannot write {path}: it is a folder")
    there = path if path.exists() else path.parent
    if not there.exists():
        raise click.ClickException(f"cannot write {path}: there is no folder {there}")
    if not os.access(there, os.W_OK):
        raise click.ClickException(f"cannot write {path}: Permission denied")


def check_engines(urls: Sequence[str]) -> None:
    """Raise `click.ClickException` for an address that is none of a metrics page."""
    if not urls:
        return
    from probes.host.engine import EngineError, metrics_url

    for url in urls:
        try:
            metrics_url(url)
        except EngineError as error:
            raise click.ClickException(str(error)) from None


def check_feed(path: Path, group: str | None) -> None:
    """Raise `click.ClickException` when a feed cannot be served at `path`."""
    from probes.feed.socket import FeedError, check_place

    try:
        check_place(path, group)
    except FeedError as error:
        raise click.ClickException(str(error)) from None
