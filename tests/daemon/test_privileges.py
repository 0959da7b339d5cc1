"""A daemon that is started as root: whom it becomes, and who may talk to it then.

Other users are played by forked children, so that no file of this checkout has to be readable to them.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flexnpu.control.client import ControlClient, ControlError
from flexnpu.daemon import privileges
from flexnpu.daemon.config import CLIENT_LIB
from flexnpu.daemon.privileges import PrivilegeError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give root up")

STRANGER = 4242
GROUP = 4343


def as_user(uid: int, groups: list[int], what: Callable[[], Any], gid: int = 4999) -> Any:
    """What `what` returns (a JSON form) in a child that is `uid`, of group `gid` and `groups`."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            os.write(writer, json.dumps(what()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        data = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0
    return json.loads(data)


def use_device(socket: Path) -> Callable[[], tuple[int, str]]:
    """Opens a session as an unmodified program would; its error and message."""

    def attempt() -> tuple[int, str]:
        code = acl.aclrtSetDevice(0)
        message = acl.aclGetRecentErrMsg()
        return code, (message or b"").decode()

    # Loaded as root, for it may lie where only root can read. Only children call it: it keeps a session.
    acl = ctypes.CDLL(str(CLIENT_LIB / "libascendcl.so"))
    acl.aclGetRecentErrMsg.restype = ctypes.c_char_p
    os.environ["FLEXNPU_SOCKET"] = str(socket)
    return attempt


def control(socket: Path) -> Callable[[], str]:
    def attempt() -> str:
        try:
            return ControlClient(socket).status().soc
        except ControlError as error:
            return f"refused: {error}"

    return attempt


class Daemon:
    def __init__(self, *arguments: str) -> None:
        # Not below pytest's folder, which only its user may enter.
        self.top = Path(tempfile.mkdtemp(prefix="flexnpu-test-"))
        self.top.chmod(0o755)
        self.run_dir = self.top / "run"
        command = [sys.executable, "-c", "from flexnpu.cli.daemon import main; main()", "--emulated"]
        self.process = subprocess.Popen(
            [*command, "--run-dir", str(self.run_dir), *arguments], stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert line.startswith("{"), line
        self.serving = json.loads(line)
        self.data = self.run_dir / "npu0.sock"
        self.control = self.run_dir / "npu0.ctl"

    def end(self) -> str:
        self.process.terminate()
        rest = self.process.communicate(timeout=120)[1]
        shutil.rmtree(self.top, ignore_errors=True)
        return rest


@pytest.fixture
def start() -> Iterator[Callable[..., Daemon]]:
    started: list[Daemon] = []

    def one(*arguments: str) -> Daemon:
        started.append(Daemon(*arguments))
        return started[-1]

    yield one
    for daemon in started:
        if daemon.process.poll() is None:
            daemon.end()


def identity(task: Path) -> dict[str, str]:
    wanted = ("Uid", "Gid", "Groups", "NoNewPrivs", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    lines = (line.partition(":") for line in (task / "status").read_text().splitlines())
    return {key: " ".join(value.split()) for key, _, value in lines if key in wanted}


def test_it_keeps_nothing_of_roots(start: Callable[..., Daemon]) -> None:
    daemon = start()
    expected = privileges.account(None)
    assert expected is not None
    assert expected.uid != 0
    none = "0" * 16
    tasks = list(Path(f"/proc/{daemon.process.pid}/task").iterdir())
    assert len(tasks) > 2
    for task in tasks:
        found = identity(task)
        assert found["Uid"].split() == [str(expected.uid)] * 4
        assert found["Gid"].split() == [str(expected.gid)] * 4
        assert "0" not in found["Groups"].split()
        assert found["NoNewPrivs"] == "1"
        assert {found[key] for key in found if key.startswith("Cap")} == {none}
    assert daemon.serving["uid"] == expected.uid
    # Its sentinel is root's, to remove what root made, and can do nothing else that root can.
    children = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text().split()
    assert len(children) == 1
    # It drops the rest when it first runs, which a busy host may put off.
    deadline = time.monotonic() + 120
    while True:
        sentinel = identity(Path(f"/proc/{children[0]}"))
        if sentinel["CapEff"] == sentinel["CapPrm"] == none:
            break
        assert time.monotonic() < deadline, sentinel
        time.sleep(0.05)
    daemon.end()
    assert daemon.process.returncode == 0
    assert not daemon.run_dir.exists()


def test_killed_it_leaves_nothing_either(start: Callable[..., Daemon]) -> None:
    daemon = start()
    daemon.process.send_signal(signal.SIGKILL)
    daemon.process.wait()
    deadline = time.monotonic() + 120
    while daemon.run_dir.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_who_may_use_it(start: Callable[..., Daemon]) -> None:
    daemon = start()
    use, ask = use_device(daemon.data), control(daemon.control)
    account = privileges.account(None)
    assert account is not None
    code, message = as_user(STRANGER, [], use)
    assert (code, str(STRANGER) in message, "--allow-uid" in message) == (507000, True, True)
    if account.shared:  # other programs of this user are none of ours
        assert as_user(account.uid, [], use)[0] == 507000
    assert as_user(0, [], use, gid=0)[0] == 0
    assert "permission denied" in as_user(STRANGER, [], ask)
    assert as_user(0, [], ask, gid=0).startswith("Ascend")
    counters = ControlClient(daemon.control).status().counters
    assert counters["turned_away"] >= 1


def test_allowed_users_and_groups(start: Callable[..., Daemon]) -> None:
    daemon = start("--allow-uid", str(STRANGER), "--allow-group", str(GROUP), "--group", str(GROUP))
    use, ask = use_device(daemon.data), control(daemon.control)
    assert as_user(STRANGER, [], use) == [0, ""]
    assert as_user(STRANGER + 1, [], use)[0] == 507000
    assert as_user(STRANGER + 1, [1, GROUP, 2], use) == [0, ""]
    assert as_user(STRANGER + 1, [], use, gid=GROUP) == [0, ""]
    # To use the device is not to control it.
    assert "permission denied" in as_user(STRANGER, [], ask)
    assert as_user(STRANGER, [7, GROUP], ask).startswith("Ascend")
    assert as_user(STRANGER, [], ask, gid=GROUP).startswith("Ascend")
    # Whoever gets past the file's mode is still asked for.
    os.chmod(daemon.control, 0o666)
    assert "may not control" in as_user(STRANGER, [], ask)


def test_another_user_and_root_itself(start: Callable[..., Daemon]) -> None:
    assert start("--user", "daemon").serving["uid"] == 1
    assert start("--user", "root").serving["uid"] == 0


def test_no_such_user_or_group() -> None:
    with pytest.raises(PrivilegeError, match=r"nonesuch.*useradd"):
        privileges.account("nonesuch")
    with pytest.raises(PrivilegeError, match=r"nonesuch.*groupadd"):
        privileges.group_id("nonesuch")
    assert privileges.group_id("4343") == 4343
    assert privileges.account("root") is None
    assert as_user(STRANGER, [], lambda: privileges.account(None)) is None


def test_it_still_ends_with_its_parent_if_it_was_to(tmp_path: Path) -> None:
    """The kernel forgets that wish when a process changes its user."""
    script = f"""
import ctypes, signal, subprocess, sys
def with_me():
    ctypes.CDLL(None).prctl({privileges._PR_SET_PDEATHSIG}, signal.SIGTERM)
command = [sys.executable, "-c", "from flexnpu.cli.daemon import main; main()", "--emulated", "--run-dir"]
daemon = subprocess.Popen(
    [*command, {str(tmp_path / "run")!r}], stderr=subprocess.PIPE, text=True, preexec_fn=with_me
)
daemon.stderr.readline()
print(daemon.pid, flush=True)
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    pid = int(result.stdout)
    deadline = time.monotonic() + 120
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
