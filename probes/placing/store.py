"""What attaching found out once: kept in a folder, so that the next attach need not find it out again.

    store.get("symbols", key)          ->  what was put, or None
    store.put("symbols", key, value)   JSON values; `key` is any text

Root's folder is ``cache`` in the run directory, others' is ``flexnpu/probe`` in ``$XDG_CACHE_HOME``. What is
kept is believed, so nobody else may have written it: a folder or file is not used that belongs to another
user, that group or others may write, or that is a symbolic link. A file that is damaged, or of another
version, counts as absent and is written anew. Entries are files; beyond `MOST` the oldest go. Nothing here
ever fails: without a folder nothing is kept.

A file of a program is named by its version (device, inode, size, times of change): `symbols.Version` changes
with the file, and no user can give one file the version of another.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from flexnpu.control import paths

try:
    # As hashlib's, without OpenSSL, which hashlib loads: 4 MiB.
    from _blake2 import blake2b
except ImportError:
    from hashlib import blake2b

FORMAT = 1
MOST = 512
"""Entries of a kind."""
MOST_BYTES = 4 << 20
"""Of one entry."""
OFF = "FLEXNPU_NO_CACHE"
"""Set, it switches keeping off."""


def folder() -> Path | None:
    """Where this user's entries are; None where there is no place for them."""
    if os.environ.get(OFF):
        return None
    if os.geteuid() == 0:
        with contextlib.suppress(paths.NoRunDirError):
            return paths.run_dir() / "cache"
        return None
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "flexnpu" / "probe" if os.path.isabs(base) else None


def boot_id() -> str:
    """Of the running kernel: what is measured holds until the next boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def get(kind: str, key: str) -> Any | None:
    """What was put last; None where nothing was, or it cannot be trusted."""
    opened = _open_folder(kind, make=False)
    if opened is None:
        return None
    try:
        data = _read(opened, _name(key))
        if data is None:
            return None
        entry = json.loads(data)
        if not isinstance(entry, dict) or entry.get("format") != FORMAT or entry.get("key") != key:
            return None
        return entry.get("value")
    except (OSError, ValueError, RecursionError):
        return None
    finally:
        os.close(opened)


def put(kind: str, key: str, value: Any) -> None:
    """Keep a JSON value. Two that write at once both succeed: a file is whole, or not there."""
    opened = _open_folder(kind, make=True)
    if opened is None:
        return
    name = _name(key)
    temporary = f".{name}.{os.getpid()}"
    try:
        data = json.dumps({"format": FORMAT, "key": key, "value": value}, separators=(",", ":")).encode()
        if len(data) > MOST_BYTES:
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=opened)
        with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=opened), "wb") as file:
            file.write(data)
        os.replace(temporary, name, src_dir_fd=opened, dst_dir_fd=opened)
        _bound(opened)
    except (OSError, ValueError, TypeError):
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=opened)
    finally:
        os.close(opened)


def digest(data: bytes) -> str:
    """A short name for `data` that nothing else has (BLAKE2b, 160 bits)."""
    return blake2b(data, digest_size=20).hexdigest()


def _name(key: str) -> str:
    return digest(key.encode(errors="surrogateescape"))


def _own(found: os.stat_result) -> bool:
    """Whether nobody but this user (and root) could have written it."""
    return found.st_uid in (os.geteuid(), 0) and not found.st_mode & 0o022


def _open_folder(kind: str, *, make: bool) -> int | None:
    """The folder of `kind`, opened. Each step is checked through the opening of the one before, so nobody can
    exchange it meanwhile."""
    base = folder()
    if base is None:
        return None
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        if make:
            # The run directory, or the user's cache: who makes it otherwise (the daemon) decides on its mode.
            base.parent.mkdir(parents=True, exist_ok=True)
        parent = os.open(base.parent, flags & ~os.O_NOFOLLOW)
    except OSError:
        return None
    for name in (base.name, kind):
        opened = None
        try:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=parent)
            opened = os.open(name, flags, dir_fd=parent)
        except OSError:
            pass
        finally:
            os.close(parent)
        if opened is None:
            return None
        if not _own(os.fstat(opened)):
            os.close(opened)
            return None
        parent = opened
    return parent


def _read(opened: int, name: str) -> bytes | None:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=opened)
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or not _own(found) or found.st_size > MOST_BYTES:
            return None
        return file.read(MOST_BYTES)


def _bound(opened: int) -> None:
    """Drop the oldest entries."""
    names = os.listdir(opened)
    if len(names) <= MOST:
        return
    ages = []
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            ages.append((os.stat(name, dir_fd=opened, follow_symlinks=False).st_mtime_ns, name))
    # Some more than needed, so that not every entry has to look again.
    for _, name in sorted(ages)[: len(ages) - MOST * 3 // 4]:
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            os.unlink(name, dir_fd=opened)
