from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probes.feed.events import Event, Losses, ProcessState, Step, StepBegin
from probes.feed.socket import FeedClient, FeedError, FeedServer


def step(number: int) -> Step:
    return Step(number, number + 1, 3, "server", 4, "decode", 1, 1, 214, 0, 0, 8, "embedding[1,1]", 1.0)


def subscribed(server: FeedServer, count: int = 1) -> None:
    deadline = time.monotonic() + 120
    while server.counts["feed_subscribers"] != count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_every_subscriber_gets_every_event_in_order(tmp_path: Path) -> None:
    sent = [step(number) for number in range(1009)]
    with FeedServer(tmp_path / "run" / "probe.sock") as server:
        clients = [FeedClient(server.path) for _ in range(3)]
        subscribed(server, 3)
        for event in sent:
            server.publish(event)
        got = [[client.read(5) for _ in sent] for client in clients]
    assert got == [sent] * 3
    for client in clients:
        assert client.read(5) is None
        assert client.ended
        client.close()


def test_what_is_queued_is_delivered_before_the_end(tmp_path: Path) -> None:
    server = FeedServer(tmp_path / "probe.sock")
    with FeedClient(server.path) as client:
        subscribed(server)
        for number in range(101):
            server.publish(step(number))
        server.close()
        assert list(client) == [step(number) for number in range(101)]
    assert not server.path.exists()


def test_reading_is_bounded_in_time(tmp_path: Path) -> None:
    with FeedServer(tmp_path / "probe.sock") as server, FeedClient(server.path) as client:
        begun = time.monotonic()
        assert client.read(0.05) is None
        assert time.monotonic() - begun < 60  # a hang guard
        assert not client.ended


def test_begins_are_for_those_who_ask(tmp_path: Path) -> None:
    begin = StepBegin(1, 3, "server", 4, "prefill", 37, 1, "embedding[1,37]", 1.0)
    with (
        FeedServer(tmp_path / "probe.sock") as server,
        FeedClient(server.path) as plain,
        FeedClient(server.path, begins=True) as eager,
    ):
        subscribed(server, 2)
        server.publish(begin)
        server.publish(step(1))
        assert plain.read(5) == step(1)
        assert [eager.read(5), eager.read(5)] == [begin, step(1)]


def test_a_slow_subscriber_loses_lines_and_is_told_and_harms_nobody(tmp_path: Path) -> None:
    with FeedServer(tmp_path / "probe.sock", max_queued=20_000) as server:
        slow = FeedClient(server.path)
        subscribed(server)
        begun = time.monotonic()
        for number in range(20_011):
            server.publish(step(number))
        assert time.monotonic() - begun < 240  # a hang guard: never waited for the one that does not read
        with FeedClient(server.path) as quick:
            subscribed(server, 2)
            server.publish(step(7))
            assert quick.read(5) == step(7)
        dropped = server.counts["feed_dropped"]
        assert dropped > 0
        events: list[Event] = []
        while (event := slow.read(0.3)) is not None:
            events.append(event)
        server.publish(step(20_012))
        while (event := slow.read(0.3)) is not None:
            events.append(event)
    slow.close()
    steps = [event for event in events if isinstance(event, Step)]
    losses = [event for event in events if isinstance(event, Losses)]
    assert events[-1] == step(20_012)
    assert losses[-1].source == "feed"
    assert losses[-1].counts["feed_dropped"] == server.counts["feed_dropped"]
    assert len(steps) + losses[-1].counts["feed_dropped"] == 20_011 + 1 + 1
    assert [event.t_start_ns for event in steps] == sorted(
        event.t_start_ns for event in steps if event.t_start_ns != 7
    ) or 7 in [event.t_start_ns for event in steps]


def test_a_subscriber_that_talks_is_cut_off(tmp_path: Path) -> None:
    with FeedServer(tmp_path / "probe.sock") as server:
        with socket.socket(socket.AF_UNIX) as talker:
            talker.connect(str(server.path))
            subscribed(server)
            talker.sendall(b'{"v":1}\n')
            talker.settimeout(60)
            with contextlib.suppress(ConnectionResetError):
                assert talker.recv(1) == b""
        subscribed(server, 0)


def test_the_socket_is_closed_to_others(tmp_path: Path) -> None:
    with FeedServer(tmp_path / "probe.sock") as server:
        assert stat.S_IMODE(os.stat(server.path).st_mode) == 0o660


@pytest.mark.skipif(os.geteuid() != 0, reason="changes its user")
def test_another_user_is_refused_by_credentials(public_folder: Path) -> None:
    # The socket is opened wide, as a careless administrator might: the peer's credentials still decide.
    program = (
        "import os, sys, socket; s = socket.socket(socket.AF_UNIX); os.chdir(sys.argv[1]); os.setgroups([]);"
        "os.setgid(65534); os.setuid(65534); s.settimeout(60);"
        "s.connect('probe.sock'); print(s.recv(4096).decode() + str(s.recv(10)))"
    )
    with FeedServer(public_folder / "probe.sock") as server:
        os.chmod(server.path, 0o666)
        done = subprocess.run(
            [sys.executable, "-c", program, public_folder], capture_output=True, text=True, timeout=30
        )
        told, end = done.stdout.splitlines()
        assert end == "b''", done.stderr
        assert json.loads(told)["type"] == "refused"
        assert "nobody may not read this feed: root may" in told
        assert "--feed-group" in told
        assert server.counts["feed_refused"] == 1


def test_a_dead_servers_socket_is_replaced_a_living_ones_not(tmp_path: Path) -> None:
    path = tmp_path / "probe.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with FeedServer(path):
        with pytest.raises(FeedError, match="another tracer serves"):
            FeedServer(path)
        with FeedClient(path):
            pass
    path.write_text("mine")
    with pytest.raises(FeedError, match="is no socket"):
        FeedServer(path)
    assert path.read_text() == "mine"


def test_no_server_and_no_group_are_named(tmp_path: Path) -> None:
    with pytest.raises(FeedError, match=r"flexnpu-probe attach --all --feed"):
        FeedClient(tmp_path / "probe.sock")
    with pytest.raises(FeedError, match="no group 'nobody-has-it'"):
        FeedServer(tmp_path / "probe.sock", group="nobody-has-it")
    assert not (tmp_path / "probe.sock").exists()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=50), max_size=4))
def test_a_client_takes_any_bytes_or_says_what_is_wrong(tmp_path: Path, chunks: list[bytes]) -> None:
    path = tmp_path / f"fuzz-{time.monotonic_ns()}.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with FeedClient(path) as client:
            server, _ = listener.accept()
            with server:
                server.sendall(step(1).to_json().encode() + b"\n")
                for chunk in chunks:
                    server.sendall(chunk)
            assert client.read(5) == step(1)
            try:
                rest = list(client)
            except FeedError:
                return
            assert rest == []
            assert b"\n" not in b"".join(chunks)


_SERVE = """
import sys, time
from probes.feed.socket import FeedError, FeedServer
sys.stdin.readline()
try:
    server = FeedServer(sys.argv[1])
except FeedError as error:
    print(error, flush=True)
else:
    print("serving", flush=True)
    sys.stdin.readline()
    server.close()
"""


def _server(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )


def test_a_killed_server_is_told_from_none_and_replaced_by_exactly_one(tmp_path: Path) -> None:
    path = tmp_path / "probe.sock"
    killed = _server(path)
    assert killed.stdin is not None
    assert killed.stdout is not None
    killed.stdin.write("go\n")
    assert killed.stdout.readline() == "serving\n"
    with FeedClient(path) as reader:
        killed.kill()
        killed.communicate()
        assert reader.read(5) is None
        assert reader.ended
    assert path.exists()
    with pytest.raises(FeedError, match="the last one was killed"):
        FeedClient(path)

    rivals = [_server(path) for _ in range(6)]
    for rival in rivals:
        assert rival.stdin is not None
        rival.stdin.write("go\n")
    said = [rival.stdout.readline() for rival in rivals if rival.stdout is not None]
    assert sorted("another tracer serves" in line for line in said) == [False] + [True] * 5
    assert said.count("serving\n") == 1
    with FeedClient(path):
        pass
    for rival in rivals:
        rival.communicate("end\n")
    assert list(tmp_path.iterdir()) == []


def state(pid: int, **more: object) -> ProcessState:
    fields = {"comm": "python", "service": None, "service_from": None, "probes": 3, "wire": True}
    return ProcessState(t_ns=1, pid=pid, **(fields | more))  # type: ignore[arg-type]


def test_a_new_subscriber_hears_first_of_the_processes_that_are_there(tmp_path: Path) -> None:
    with FeedServer(tmp_path / "f.sock") as server:
        for one in (state(1), state(2), state(1, service="chat"), state(2, ended=True), step(0)):
            server.publish(one)
        with FeedClient(server.path) as client:
            subscribed(server)
            server.publish(step(1))
            assert client.read(30) == state(1, service="chat")
            assert client.read(30) == step(1)
        assert len(server._present) == 1


def test_processes_that_are_gone_leave_the_server(tmp_path: Path) -> None:
    with FeedServer(tmp_path / "f.sock") as server:
        for pid in range(10_000):
            server.publish(state(pid))
            server.publish(state(pid, ended=True))
        assert not server._present
