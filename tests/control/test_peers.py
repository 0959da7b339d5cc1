"""Who may connect: by user, by first group, by any supplementary group; and what the others are told."""

from __future__ import annotations

import grp
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flexnpu.control.messages import ErrorReply
from flexnpu.control.peers import Admission, Peer, denied, peer_of
from probes.feed.events import Losses
from probes.feed.socket import FeedServer
from tests.console.programs import BIN
from tests.console.test_escapes import Answering

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="changes its user")

STRANGER, GROUP = 54321, 43210

READ = """
import sys
from probes.feed.socket import FeedClient, FeedError
try:
    with FeedClient(sys.argv[1]) as feed:
        print(type(feed.read(10)).__name__)
except FeedError as error:
    print(type(error).__name__, error)
"""


def as_stranger(
    *words: str | Path, groups: tuple[int, ...] = (), gid: int = STRANGER
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        list(map(str, words)),
        user=STRANGER,
        group=gid,
        extra_groups=list(groups),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )


def test_all_supplementary_groups_are_known() -> None:
    many = list(range(100_000, 100_700))
    ours, theirs = socket.socketpair()
    assert peer_of(ours).pid == os.getpid()
    path = f"\0flexnpu-peers-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener, ours, theirs:
        listener.bind(path)
        listener.listen()
        code = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({path!r}); s.recv(1)"
        child = as_stranger(sys.executable, "-c", code, groups=tuple(many))
        connection, _ = listener.accept()
        with connection:
            peer = peer_of(connection)
        child.communicate(timeout=120)
    assert (peer.uid, peer.gid, peer.pid) == (STRANGER, STRANGER, child.pid)
    assert peer.groups == frozenset(many)


def test_the_rule() -> None:
    admission = Admission(frozenset({0, 7}), 9, "--group")
    assert admission.admits(Peer(1, 0, 0))
    assert admission.admits(Peer(1, 7, 1))
    assert admission.admits(Peer(1, 8, 9))
    assert admission.admits(Peer(1, 8, 1, frozenset({3, 9})))
    assert not admission.admits(Peer(1, 8, 1, frozenset({3})))
    told = admission.refusal(Peer(1, STRANGER, 1), "read this feed")
    group = grp.getgrgid(9).gr_name
    assert told.startswith(f"user {STRANGER} may not read this feed: root and ")
    assert f"members of group {group} may" in told
    assert f"usermod -aG {group}" in told
    assert "--group" in told
    assert "start it with --group" in Admission(frozenset({0}), None, "--group").refusal(Peer(1, 8, 1), "x")


@pytest.mark.parametrize(("groups", "gid"), [((1, GROUP, 2), STRANGER), ((), GROUP)])
def test_the_feed_serves_members_of_its_group(public_folder: Path, groups: tuple[int, ...], gid: int) -> None:
    path = public_folder / "probe.sock"
    with FeedServer(path) as server:
        os.chown(path, 0, GROUP)
        server._admission = Admission(frozenset({0}), GROUP, "--feed-group")  # as with that option
        child = as_stranger(sys.executable, "-c", READ, path, groups=groups, gid=gid)
        while not server.counts["feed_subscribers"]:
            assert child.poll() is None, child.communicate()
        server.publish(Losses(t_ns=1, source="steps", counts={}))
        printed, complaints = child.communicate(timeout=120)
    assert printed == "Losses\n", complaints


@pytest.mark.parametrize("mode", [0o660, 0o666])
def test_the_feed_tells_others_so(public_folder: Path, mode: int) -> None:
    """By the socket's mode, or where that lets them pass by the server."""
    path = public_folder / "probe.sock"
    with FeedServer(path):
        path.chmod(mode)
        printed, _ = as_stranger(sys.executable, "-c", READ, path).communicate(timeout=120)
    assert printed.startswith(f"FeedRefused {path}: ")
    assert f"user {STRANGER} may not read this feed: root may" in printed
    assert "--feed-group" in printed


@pytest.mark.parametrize("command", ["status", "status --json", "status --device 0", "top --once"])
@pytest.mark.parametrize("closed", ["socket", "server", "folder"])
def test_status_without_rights(public_folder: Path, command: str, closed: str) -> None:
    run_dir = public_folder / "run"
    answering = Answering(run_dir / "npu0.ctl", ErrorReply(code="failed", message="never asked"))
    try:
        (run_dir / "npu0.ctl").chmod(0o666 if closed == "server" else 0o600)
        run_dir.chmod(0o700 if closed == "folder" else 0o755)
        child = as_stranger("env", f"FLEXNPU_RUN_DIR={run_dir}", BIN / "flexnpu", *command.split())
        printed, complaints = child.communicate(timeout=60)
    finally:
        answering.end()
    assert "Traceback" not in complaints
    assert child.returncode == 4, complaints
    assert f"user {STRANGER} may not" in complaints
    assert str(run_dir) in complaints
    if closed != "folder":
        assert "--group" in complaints
    if "--json" in command:
        assert json.loads(printed) == []
    else:
        assert printed == ""


@pytest.mark.parametrize("closed", ["socket", "folder"])
def test_a_controller_without_rights(public_folder: Path, closed: str) -> None:
    run_dir = public_folder / "run"
    answering = Answering(run_dir / "npu0.ctl", ErrorReply(code="failed", message="never asked"))
    try:
        (run_dir / "npu0.ctl").chmod(0o600)
        run_dir.chmod(0o700 if closed == "folder" else 0o755)
        child = as_stranger("env", f"FLEXNPU_RUN_DIR={run_dir}", BIN / "flexnpu-controller")
        _, complaints = child.communicate(timeout=60)
    finally:
        answering.end()
    assert child.returncode == 4, complaints
    assert f"user {STRANGER} may not" in complaints
    assert str(run_dir) in complaints
    assert "Traceback" not in complaints


def test_a_program_without_rights(public_folder: Path) -> None:
    run_dir = public_folder / "run"
    run_dir.mkdir(mode=0o700)
    child = as_stranger("env", f"FLEXNPU_RUN_DIR={run_dir}", BIN / "flexnpu", "run", "--", "true")
    _, complaints = child.communicate(timeout=60)
    assert child.returncode == 4, complaints
    assert f"user {STRANGER} may not look into {run_dir}" in complaints


def test_what_is_denied_names_group_and_option(public_folder: Path) -> None:
    path = public_folder / "npu0.ctl"
    path.touch()
    path.chmod(0o660)
    os.chown(path, 0, GROUP)
    assert f"members of group {GROUP} may" in denied(path, "control this daemon", "--group")
