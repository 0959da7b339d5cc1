"""The control server through real sockets: what it answers, and what it withstands."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexnpu.control.client import ControlClient, ControlError, NoDaemonError, RefusedError, connect_all
from flexnpu.control.messages import (
    MAX_REQUEST_BYTES,
    ErrorReply,
    Reply,
    Request,
    SetGate,
    StatusRequest,
    encode,
)
from flexnpu.control.peers import Peer
from flexnpu.daemon.control_server import MAX_CONNECTIONS, ControlServer
from flexnpu.daemon.gate_lease import Requester


@pytest.fixture
def client(served: ControlServer) -> ControlClient:
    return ControlClient(served.path)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def raw(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(60)
    connection.connect(str(path))
    return connection


def line(connection: socket.socket) -> dict[str, Any]:
    data = b""
    while not data.endswith(b"\n"):
        more = connection.recv(65536)
        assert more, f"closed after {data!r}"
        data += more
    reply = json.loads(data)
    assert isinstance(reply, dict)
    return reply


def test_status(client: ControlClient, served: ControlServer) -> None:
    status = client.status()
    assert status.soc == "Ascend910B3"
    assert [lane.lane for lane in status.lanes] == [1, 2]
    assert status.device_busy_us == 77
    assert "device_busy_us" not in status.counters
    assert status.counters["records"] == 5
    assert status.gate.policy == "transparent"
    assert status.pid == os.getpid()
    assert client.status().counters["control_requests"] == 2


def test_a_status_says_how_old_it_is(client: ControlClient, plane: Any) -> None:
    assert client.status().age_s == 0
    plane.age_s = 12.5
    status = client.status()
    assert status.age_s == 12.5
    assert [lane.lane for lane in status.lanes] == [1, 2]


def test_a_gate_that_cannot_be_set_is_an_error_and_no_policy(
    client: ControlClient, plane: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*args: object) -> list[int]:
        raise TimeoutError("the dispatching thread is busy")

    monkeypatch.setattr(plane, "set_gate", late)
    with pytest.raises(RefusedError, match="busy"):
        client.set_gate(SetGate(policy="protect-decode", lease_s=30))
    gate = client.status().gate
    assert (gate.policy, gate.lease_left_s) == ("transparent", 0.0)


def test_set_gate(client: ControlClient, plane: Any) -> None:
    reply = client.set_gate(
        SetGate(policy="protect-decode", lease_s=30, decode_target_us=5000, lanes={1: "prefill", 2: "decode"})
    )
    assert reply.policy == "protect-decode"
    assert 29 < reply.lease_left_s <= 30
    assert plane.targets == {1: 0.0, 2: 5000.0}
    assert plane.gates[-1]["enabled"] is True
    left_ns = plane.gates[-1]["lease_until_ns"] - time.monotonic_ns()
    assert 29e9 < left_ns <= 30e9
    assert [lane.phase for lane in client.status().lanes] == ["prefill", "decode"]
    # A new target reaches decode lanes that are not named again.
    client.set_gate(SetGate(policy="protect-decode", lease_s=30, decode_target_us=7000))
    assert plane.targets[2] == 7000.0


def test_a_lane_may_have_a_target_of_its_own(client: ControlClient, plane: Any) -> None:
    both: dict[int, Any] = {1: "decode", 2: "decode"}
    client.set_gate(
        SetGate(policy="protect-decode", lease_s=30, decode_target_us=9000, lanes=both, targets_us={1: 4000})
    )
    assert plane.targets == {1: 4000.0, 2: 9000.0}
    with pytest.raises(RefusedError, match="lane 9") as caught:
        client.set_gate(SetGate(policy="protect-decode", lease_s=30, targets_us={9: 1000}))
    assert caught.value.code == "unknown-lane"


def test_the_gates_times_are_its_own_unless_given(client: ControlClient, plane: Any) -> None:
    client.set_gate(SetGate(policy="protect-decode", lease_s=30))
    assert not {"max_hold_us", "decode_idle_us"} & plane.gates[-1].keys()
    client.set_gate(SetGate(policy="protect-decode", lease_s=30, max_hold_us=40_000, decode_idle_us=80_000))
    assert (plane.gates[-1]["max_hold_us"], plane.gates[-1]["decode_idle_us"]) == (40_000, 80_000)


def test_a_lease_runs_out(client: ControlClient) -> None:
    client.set_gate(SetGate(policy="protect-decode", lease_s=0.2))
    time.sleep(0.3)
    gate = client.status().gate
    assert (gate.policy, gate.expired_leases, gate.lease_left_s) == ("transparent", 1, 0.0)


def test_a_withdrawn_policy_does_not_count_as_expired(client: ControlClient) -> None:
    client.set_gate(SetGate(policy="protect-decode", lease_s=0.2))
    client.set_gate(SetGate(policy="transparent", lease_s=1))
    time.sleep(0.3)
    assert client.status().gate.expired_leases == 0


def test_an_unknown_lane_is_refused_and_nothing_set(client: ControlClient, plane: Any) -> None:
    with pytest.raises(RefusedError, match="lane 9") as caught:
        client.set_gate(SetGate(policy="protect-decode", lease_s=1, lanes={1: "decode", 9: "prefill"}))
    assert caught.value.code == "unknown-lane"
    assert plane.gates == []
    assert plane.targets == {}


def test_garbage_is_answered_and_the_connection_lives(served: ControlServer) -> None:
    with raw(served.path) as connection:
        for bad in (b"\n", b"{}\n", b"\xff\xfe\n", b'{"v":9,"type":"status"}\n', b"[" * 5000 + b"\n"):
            connection.sendall(bad)
            reply = line(connection)
            assert reply["type"] == "error"
            assert reply["message"]
        connection.sendall(encode(StatusRequest()))
        assert line(connection)["type"] == "daemon_status"


def test_requests_in_pieces_and_together(served: ControlServer) -> None:
    request = encode(StatusRequest())
    with raw(served.path) as connection:
        for byte in request:
            connection.sendall(bytes([byte]))
        assert line(connection)["type"] == "daemon_status"
        connection.sendall(request * 3)
        data = b""
        while data.count(b"\n") < 3:
            data += connection.recv(65536)


def test_an_endless_line_is_cut(served: ControlServer) -> None:
    with raw(served.path) as connection:
        sent = 0
        try:
            while sent < 4 * MAX_REQUEST_BYTES:
                sent += connection.send(b"x" * 65536)
        except (BrokenPipeError, ConnectionResetError):
            pass
        received = b""
        try:
            while data := connection.recv(65536):
                received += data
        except ConnectionResetError:
            pass
    assert ControlClient(served.path).status().counters["control_refused"] == 1


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.binary(max_size=300)
        | st.sampled_from([b"\n", encode(StatusRequest()), encode(StatusRequest())[:-1], b'{"v":1,', b"\xff"])
        | st.dictionaries(st.sampled_from(["v", "type", "policy", "lease_s", "lanes"]), _VALUES).map(_line),
        max_size=12,
    )
)
def test_any_bytes_in_any_pieces(served: ControlServer, pieces: list[bytes]) -> None:
    """Each line gets one answer, whatever it is and however it is cut, and the server serves on."""
    sent = b"".join(pieces)
    with raw(served.path) as connection:
        for piece in pieces:
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while data := connection.recv(65536):
                received += data
    for answer in received.splitlines():
        assert json.loads(answer)["type"] in ("error", "daemon_status", "gate_status")
    assert received.count(b"\n") <= sent.count(b"\n")
    assert ControlClient(served.path).status()


def _send_for_ever(connection: socket.socket, data: bytes) -> None:
    while True:
        connection.sendall(data)


def test_one_that_asks_and_never_reads_is_dropped(served: ControlServer) -> None:
    request = encode(StatusRequest()) * 200
    with raw(served.path) as connection:
        connection.settimeout(60)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            _send_for_ever(connection, request)
    assert ControlClient(served.path).status()


def test_more_connections_than_allowed(served: ControlServer) -> None:
    held = [raw(served.path) for _ in range(MAX_CONNECTIONS + 20)]
    assert ControlClient(served.path).status()
    # The oldest gave way.
    held[0].settimeout(60)
    assert held[0].recv(1) == b""
    for connection in held:
        connection.close()


def test_another_user_is_refused(served: ControlServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flexnpu.daemon.control_server.peer_of", lambda sock: Peer(1, 4242, 4242))
    with pytest.raises(ControlError, match="4242"):
        ControlClient(served.path).status()


def test_the_client_does_not_trust_another_user(
    served: ControlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flexnpu.control.peers.peer_of", lambda sock: Peer(1, 4242, 4242))
    with pytest.raises(ControlError, match="user 4242"):
        ControlClient(served.path).status()


def test_the_socket_is_the_owners_alone(served: ControlServer) -> None:
    assert served.path.stat().st_mode & 0o077 == 0


def test_a_failing_plane_is_an_error_reply(
    client: ControlClient, plane: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> list[dict[str, Any]]:
        raise RuntimeError("device lost")

    monkeypatch.setattr(plane, "sessions", broken)
    with pytest.raises(RefusedError, match="device lost"):
        client.status()
    monkeypatch.undo()
    assert client.status()


def test_the_client_reconnects_to_a_new_daemon(client: ControlClient, served: ControlServer) -> None:
    client.status()
    for connection in list(served._connections.values()):
        connection.sock.shutdown(socket.SHUT_RDWR)
    assert client.status()


def test_no_answer_is_an_error_in_time(tmp_path: Path) -> None:
    path = tmp_path / "npu3.ctl"
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(path))
        deaf.listen(8)
        started = time.monotonic()
        with pytest.raises(ControlError, match=r"within 0\.3 s"):
            ControlClient(path, timeout_s=0.3).status()
        assert time.monotonic() - started < 120  # a hang guard: the message says which limit ended it
    with pytest.raises(NoDaemonError, match="flexnpud --device 3"):
        ControlClient(path).status()


def test_connect_all_leaves_stale_sockets_out(served: ControlServer, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "npu1.ctl"))
    (tmp_path / "npuX.ctl").touch()
    clients, troubles = connect_all([tmp_path, tmp_path / "missing"])
    assert not troubles
    assert [client.path.name for client in clients] == ["npu0.ctl"]
    for client in clients:
        client.close()


def _served_in_turn(path: Path, handled: list[str]) -> tuple[ControlServer, threading.Event, threading.Event]:
    """A server whose first answer waits for an event, so that the test decides what has arrived by then."""
    entered, go_on = threading.Event(), threading.Event()

    def handle(request: Request, requester: Requester) -> Reply:
        name = "much" if isinstance(request, SetGate) else "once"
        handled.append(name)
        if len(handled) == 1:
            entered.set()
            go_on.wait(60)
        return ErrorReply(code="busy", message=name)

    return ControlServer(path, handle), entered, go_on


def test_who_asks_much_keeps_nobody_waiting(tmp_path: Path) -> None:
    """However many requests one peer has sent, another is answered after at most two of them."""
    handled: list[str] = []
    server, entered, go_on = _served_in_turn(tmp_path / "npu0.ctl", handled)
    server.open()
    thread = threading.Thread(target=server.run, args=(lambda: None,))
    thread.start()
    try:
        with raw(server.path) as much, raw(server.path) as once:
            much.sendall(encode(SetGate(policy="transparent", lease_s=1)) * 200)
            assert entered.wait(60)
            once.sendall(encode(StatusRequest()))
            go_on.set()
            assert line(once)["message"] == "once"
            for _ in range(200):
                _line_of(much)
        assert handled.index("once") <= 2
        assert len(handled) == 201
    finally:
        go_on.set()
        server.stop()
        thread.join(60)
        server.close()


def _line_of(connection: socket.socket) -> bytes:
    """One line, and no byte more."""
    data = b""
    while not data.endswith(b"\n"):
        more = connection.recv(1)
        assert more, f"closed after {data!r}"
        data += more
    return data


def test_connections_that_cannot_be_accepted_hold_up_nobody(
    served: ControlServer, client: ControlClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a descriptor left, who is connected is served as before, and nobody sleeps or spins."""
    client.status()
    tried: list[float] = []

    def full(listener: socket.socket) -> None:
        tried.append(time.monotonic())
        raise OSError(errno.EMFILE, "Too many open files")

    def no_sleep(seconds: float) -> None:
        raise AssertionError("the one thread that serves everybody slept")

    monkeypatch.setattr("flexnpu.daemon.control_server.time.sleep", no_sleep)
    with monkeypatch.context() as patches:
        patches.setattr(socket.socket, "accept", full)
        with raw(served.path) as waits:
            waits.sendall(encode(StatusRequest()))
            while len(tried) < 3:
                assert client.status()
            patches.undo()
            assert line(waits)["type"] == "daemon_status"
    assert all(after - before >= 0.09 for before, after in pairwise(tried))


def test_readings_are_not_among_the_counters(
    client: ControlClient, plane: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        plane, "counters", lambda: {"records": 5, "device_busy_us": 77, "overlap_slowdown_milli": 1250}
    )
    client.set_gate(SetGate(policy="protect-decode", lease_s=30))
    status = client.status()
    assert (status.device_busy_us, status.gate.overlap_slowdown) == (77, 1.25)
    assert status.counters["records"] == 5
    assert not {"device_busy_us", "overlap_slowdown_milli"} & status.counters.keys()
