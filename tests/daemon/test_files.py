"""A daemon's files: taken, given back, and cleaned up for one that was killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flexnpu.daemon.files import DaemonFiles, DeviceBusyError, FilesError

HOLDER = """
import socket, sys, time
from pathlib import Path
from flexnpu.daemon.files import DaemonFiles
files = DaemonFiles(0, Path(sys.argv[1]))
files.claim()
socks = []
for path in (files.control_path, files.data_path):
    s = socket.socket(socket.AF_UNIX); s.bind(str(path)); s.listen(); socks.append(s)
print("ready", flush=True)
time.sleep(60)
"""


def stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


def wait_for(what: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if what():
            return True
        time.sleep(0.01)
    return what()


def start_holder(directory: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def test_claim_and_release(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    files = DaemonFiles(0, directory)
    assert files.claim() == []
    assert int(files.lock_path.read_text()) == os.getpid()
    stale(files.control_path)
    files.release()
    files.release()
    assert not directory.exists()


def test_a_directory_that_was_there_stays(tmp_path: Path) -> None:
    files = DaemonFiles(0, tmp_path)
    files.claim()
    files.release()
    assert list(tmp_path.iterdir()) == []


def test_stale_sockets_are_taken_over(tmp_path: Path) -> None:
    files = DaemonFiles(0, tmp_path)
    for path in (files.control_path, files.data_path):
        stale(path)
    files.lock_path.write_text("1\n")
    assert files.claim() == [files.control_path, files.data_path]
    files.release()


def test_one_daemon_a_device(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    try:
        second = DaemonFiles(0, tmp_path)
        with pytest.raises(DeviceBusyError, match=rf"device 0 .*pid {holder.pid}"):
            second.claim()
        second.release()
        assert (tmp_path / "npu0.ctl").exists(), "the holder's sockets are not the loser's to remove"
        other = DaemonFiles(1, tmp_path)
        other.claim()
        other.release()
    finally:
        holder.kill()
        holder.wait()
    assert wait_for(lambda: not list(tmp_path.iterdir()))


def test_the_sentinel_cleans_up_after_kill_9(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    holder = start_holder(directory)
    assert len(list(directory.iterdir())) == 3
    holder.send_signal(signal.SIGKILL)
    # Its output ends with it: the sentinel keeps no copy of it open.
    assert holder.communicate(timeout=120)[0] == ""
    assert wait_for(lambda: not directory.exists())


def test_a_new_daemon_keeps_its_files_from_the_old_ones_sentinel(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    holder.kill()
    holder.wait()
    files = DaemonFiles(0, tmp_path)
    # Either may win the race for the lock; the sentinel lets go of it at once.
    assert wait_for(lambda: _claimed(files))
    stale(files.control_path)
    time.sleep(0.2)
    assert files.control_path.exists()
    files.release()


def _claimed(files: DaemonFiles) -> bool:
    try:
        files.claim()
    except DeviceBusyError:
        files.release()
        return False
    return True


def test_bad_places(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FilesError, match="not a directory"):
        DaemonFiles(0, tmp_path / "file").claim()
    with pytest.raises(FilesError, match="107"):
        DaemonFiles(0, tmp_path / ("x" * 120)).claim()
    open_dir = tmp_path / "open"
    open_dir.mkdir()
    open_dir.chmod(0o777)
    with pytest.raises(FilesError, match="everybody"):
        DaemonFiles(0, open_dir).claim()
    (tmp_path / "npu0.ctl").touch()
    files = DaemonFiles(0, tmp_path)
    with pytest.raises(FilesError, match="no socket"):
        files.claim()
    files.release()
    assert (tmp_path / "npu0.ctl").exists()
