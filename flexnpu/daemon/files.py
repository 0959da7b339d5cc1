"""The files of a running daemon: its run directory, the lock of its device, its sockets.

They go when the daemon stops. For one that is killed, a sentinel process, forked before anything else,
waits for the end of a pipe that only the daemon holds, and removes them; should that be killed too, the
next daemon of the device finds the lock free and takes what lies there for stale.

A daemon that was started as root and has become somebody else may not remove them itself: the sentinel,
which keeps root's user number but none of root's capabilities and does nothing else, does it then, too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import stat
import time
from pathlib import Path

from flexnpu.control import paths
from flexnpu.daemon import privileges


class FilesError(RuntimeError):
    """The daemon cannot have its files; the message says what to do."""


class DeviceBusyError(FilesError):
    """Another daemon has the device."""


def make_run_dir(directory: Path) -> bool:
    """Make the run directory; True when it was not there. Raises `FilesError`."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o755)
        return True
    except FileExistsError:
        pass
    except OSError as error:
        raise FilesError(
            f"run directory {directory}: {error.strerror}; "
            f"set {paths.ENV_RUN_DIR} or --run-dir to a directory of yours"
        ) from None
    found = directory.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise FilesError(f"run directory {directory}: is not a directory; remove it or use --run-dir")
    if found.st_uid not in (0, os.geteuid()):
        raise FilesError(f"run directory {directory}: belongs to user {found.st_uid}; use --run-dir")
    if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
        raise FilesError(
            f"run directory {directory}: everybody may write there; chmod o-w it or use --run-dir"
        )
    return False


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock at `path`, None when another process does. Raises OSError."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_ino == os.fstat(fd).st_ino:
                    return fd
            os.close(fd)  # its holder removed it on the way out: this is the lock of nothing
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise


class DaemonFiles:
    """The files of the daemon for one device; `claim` them, `release` them."""

    def __init__(self, device: int, directory: Path) -> None:
        self.device = device
        self.directory = directory
        self.lock_path = paths.lock_file(device, directory)
        self.control_path = paths.control_socket(device, directory)
        self.data_path = paths.data_socket(device, directory)
        self._made_directory = False
        self._lock_fd: int | None = None
        self._sentinel: tuple[int, int] | None = None

    def claim(self) -> list[Path]:
        """Take the device, remove stale sockets and return them. Call before any thread starts.

        Raises `DeviceBusyError`, or another `FilesError`.
        """
        longest = len(os.fsencode(self.data_path))
        if longest > 107:
            raise FilesError(
                f"{self.data_path}: {longest} bytes, a socket's path has at most 107; use --run-dir"
            )
        self._made_directory = make_run_dir(self.directory)
        self._sentinel = self._start_sentinel()
        try:
            self._lock_fd = _lock(self.lock_path)
        except OSError as error:
            raise FilesError(f"{self.lock_path}: {error.strerror}; use --run-dir") from None
        if self._lock_fd is None:
            holder = self._holder()
            who = f" (pid {holder})" if holder is not None else ""
            raise DeviceBusyError(
                f"device {self.device} has a daemon already{who}: "
                "stop that one, or use another --device or --run-dir"
            )
        os.ftruncate(self._lock_fd, 0)
        os.write(self._lock_fd, f"{os.getpid()}\n".encode())
        return self._remove_sockets()

    def release(self) -> None:
        """Remove everything. Safe to repeat."""
        if self._lock_fd is not None:
            with contextlib.suppress(FilesError, PermissionError):
                self._remove_sockets()
                self.lock_path.unlink(missing_ok=True)
            os.close(self._lock_fd)
            self._lock_fd = None
        self._remove_directory()
        if self._sentinel is not None:
            pid, pipe = self._sentinel
            self._sentinel = None
            os.close(pipe)
            deadline = time.monotonic() + 2.0
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(pid, os.WNOHANG)[0] == 0 and time.monotonic() < deadline:
                    time.sleep(0.005)

    def _holder(self) -> int | None:
        try:
            return int(self.lock_path.read_text())
        except (OSError, ValueError):
            return None

    def _remove_sockets(self) -> list[Path]:
        removed = []
        for path in (self.control_path, self.data_path):
            try:
                if not stat.S_ISSOCK(path.lstat().st_mode):
                    raise FilesError(f"{path}: is in the way and no socket; remove it or use --run-dir")
                path.unlink()
                removed.append(path)
            except FileNotFoundError:
                pass
        return removed

    def _remove_directory(self) -> None:
        if self._made_directory:
            with contextlib.suppress(OSError):  # another daemon's, too, by now
                self.directory.rmdir()

    def _start_sentinel(self) -> tuple[int, int]:
        """(pid, pipe whose closing wakes it)."""
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        daemon = os.getpid()
        pid = os.fork()
        if pid:
            os.close(read_end)
            return pid, write_end
        try:
            # A signal to the terminal's group is for the daemon; whoever reads its output must see it end.
            os.setsid()
            privileges.confine()
            privileges.clear_capabilities()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            os.close(write_end)
            os.closerange(3, read_end)
            os.closerange(read_end + 1, 4096)
            os.read(read_end, 1)
            self._clean_up_after(daemon)
        finally:
            os._exit(0)

    def _clean_up_after(self, daemon: int) -> None:
        """Remove what the dead daemon left, unless another one has the device by now."""
        deadline = time.monotonic() + 10.0
        while self._holder() == daemon and time.monotonic() < deadline:
            # A dying process lets go of its descriptors one by one: the lock may come after the pipe.
            if _lock(self.lock_path) is not None:
                with contextlib.suppress(FilesError):
                    self._remove_sockets()
                self.lock_path.unlink(missing_ok=True)
                break
            time.sleep(0.02)
        self._remove_directory()
