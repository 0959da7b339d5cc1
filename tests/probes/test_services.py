"""A process's service by its environment, control group and port; its sockets; what is told of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from probes.feed.events import ProcessState
from probes.host import services
from probes.host.families import ProcessFamilies
from probes.host.listening import Listening, listening_of
from probes.host.registry import Registry
from probes.host.services import MAX_NAME, Service, of_cgroups, of_environment, of_ports, of_process
from probes.steps.targets import DETACHED_S, Targets
from probes.steps.windows import MAX_LANES, Typical

UID = "0f5e9c1a-2b3c-4d5e-8f90-a1b2c3d4e5f6"
ID = "ab" * 32


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        (b"A=1\0OTEL_SERVICE_NAME=chat\0OTEL_RESOURCE_ATTRIBUTES=service.name=other\0", "chat"),
        (b"OTEL_RESOURCE_ATTRIBUTES=a=b, service.name=my%20chat,c=d\0", "my chat"),
        (b"OTEL_SERVICE_NAME=\0OTEL_RESOURCE_ATTRIBUTES=service.name=x\0", "x"),
        (b"OTEL_SERVICE_NAME=a=b\0", "a=b"),
        (b"OTEL_SERVICE_NAME=\xff\x1b[2J\0", "\\xff\\x1b[2J"),
        (b"OTEL_SERVICE_NAME=" + b"x" * 4096 + b"\0", "x" * MAX_NAME),
    ],
)
def test_the_environments_name(environ: bytes, name: str) -> None:
    assert of_environment(environ) == Service(name, "environment")


@pytest.mark.parametrize(
    "environ", [b"", b"\0\0=\0", b"OTEL_SERVICE_NAME\0", b"OTEL_SERVICE_NAME= \0", b"X=1"]
)
def test_an_environment_without_a_name(environ: bytes) -> None:
    assert of_environment(environ) is None


@pytest.mark.parametrize(
    ("path", "service"),
    [
        (
            f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID.replace('-', '_')}.slice/"
            f"cri-containerd-{ID}.scope",
            (f"pod-{UID}", "pod"),
        ),
        (f"/kubepods/besteffort/pod{UID}/{ID}", (f"pod-{UID}", "pod")),
        (f"/kubepods/pod{'1f' * 16}/{ID}", (f"pod-{'1f' * 16}", "pod")),
        (f"/system.slice/docker-{ID}.scope", ("container-" + "ab" * 6, "container")),
        (f"/docker/{ID}", ("container-" + "ab" * 6, "container")),
        (f"/machine.slice/libpod-{ID}.scope/container", ("container-" + "ab" * 6, "container")),
        (f"/docker/{'ff' * 32}/docker/{ID}", ("container-" + "ab" * 6, "container")),
        (f"/docker/{'11' * 32}/docker/{ID}", ("container-" + "ab" * 6, "container")),
        (f"/kubepods/pod{'ee' * 16}/{'ff' * 32}/kubepods/pod{UID}/{ID}", (f"pod-{UID}", "pod")),
        (f"/system.slice/docker.service/docker/{ID}", ("container-" + "ab" * 6, "container")),
        ("/system.slice/vllm.service", ("vllm.service", "unit")),
        ("/system.slice/supervisor.service/chat.service", ("chat.service", "unit")),
        ("/system.slice/system-vllm.slice/vllm@8000.service", ("vllm@8000.service", "unit")),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/chat.service", ("chat.service", "unit")),
    ],
)
def test_the_control_groups_name(path: str, service: tuple[str, str]) -> None:
    assert of_cgroups([path]) == service


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "/user.slice/user-0.slice/session-1.scope",
        "/user.slice/user@0.service/run-u3.scope",
        "/init.scope",
        "/system.slice/ssh.service",
        "/system.slice/system-sshd.slice/sshd@12-10.0.0.1:22-10.0.0.2:40000.service",
        "/system.slice/supervisor.service",
        "/system.slice/supervisord.service",
        "/system.slice/cron.service",
        "/system.slice/jupyterhub.service",
        "/system.slice/kubelet.service",
        "/system.slice/slurmd.service",
        "/system.slice/containerd.service",
        "/system.slice/systemd-nspawn@box.service",
        "/system.slice/actions.runner.us.machine.service",
    ],
)
def test_what_starts_anything_is_no_service(path: str) -> None:
    assert of_cgroups([path]) is None


def test_the_ports_name_is_that_of_the_lowest_that_somebody_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "_ephemeral", lambda: (32768, 60999))
    assert of_ports([]) is None
    assert of_ports([40000, 8000, 9000]) == Service("port-8000", "port")
    assert of_ports([61000, 40000]) == Service("port-61000", "port")
    assert of_ports([40001, 40000]) == Service("port-40000", "port")


def test_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    with _child({"OTEL_SERVICE_NAME": "named"}) as child:
        monkeypatch.setattr(services, "cgroups_of", lambda pid: ("/system.slice/vllm.service",))
        assert of_process(child.pid) == ("named", "environment")
    with _child({}) as child:
        assert of_process(child.pid) == ("vllm.service", "unit")
        monkeypatch.setattr(services, "cgroups_of", lambda pid: ("/",))
        assert of_process(child.pid) is None


@contextmanager
def _child(environment: dict[str, str], code: str = "input()") -> Iterator[subprocess.Popen[bytes]]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    child = subprocess.Popen(
        [sys.executable, "-c", f"print('x', flush=True); {code}"],
        env=clean | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        child.stdout.read(1)
        yield child
    finally:
        child.kill()
        child.communicate()


def until(condition: object, what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def test_clients_that_wait_are_told_from_those_that_are_served(family: socket.AddressFamily) -> None:
    pid = os.getpid()
    with socket.socket(family) as listener:
        listener.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]

        def seen() -> tuple[bool, int, int]:
            found = listening_of([pid])[pid]
            return port in found.ports, found.connections, found.unread

        before = seen()
        assert before[0]
        with socket.create_connection(listener.getsockname()[:2]) as client:
            until(lambda: seen() == (True, before[1] + 1, before[2] + 1), "not accepted")
            server, _ = listener.accept()
            with server:
                until(lambda: seen() == (True, before[1] + 1, before[2]), "accepted")
                client.sendall(b"POST / HTTP/1.1\r\n")
                until(lambda: seen() == (True, before[1] + 1, before[2] + 1), "unread")
                server.recv(100)
                until(lambda: seen() == (True, before[1] + 1, before[2]), "read")


def test_who_is_gone_listens_on_nothing() -> None:
    assert listening_of([2**22 + 1]) == {}


class _Nobody(ProcessFamilies):
    def ancestors(self, pid: int) -> list[int]:
        return []


def test_the_registry_tells_what_is_new_changed_and_gone() -> None:
    told: list[ProcessState] = []
    registry = Registry(told.append, _Nobody())
    with _child({"OTEL_SERVICE_NAME": "chat"}) as child:
        pid = child.pid
        registry.poll({pid: 11}, [pid])
        (state,) = told
        assert (state.pid, state.service, state.service_from) == (pid, "chat", "environment")
        assert (state.probes, state.wire, state.listening, state.ended) == (11, True, 0, False)
        registry.poll({pid: 11}, [pid])
        registry._next_look = 0.0
        registry.poll({pid: 11}, [pid])
        assert len(told) == 1
        registry._next_look = 0.0
        registry.poll({pid: 12}, [pid])
        assert [one.probes for one in told] == [11, 12]
        registry.poll({}, [])
        assert (told[-1].ended, told[-1].service) == (True, "chat")
        assert not registry._told
        assert not registry._started
        # It could not be attached to, until it can.
        registry.failed(pid)
        registry.poll({}, [])
        assert (told[-1].probes, told[-1].wire, told[-1].ended) == (0, False, False)
        registry.failed(pid)
        registry._next_look = 0.0
        registry.poll({pid: 7}, [])
        assert told[-1].probes == 7
        registry.failed(pid)
    registry.poll({}, [])
    assert told[-1].ended
    assert not registry._failed


def test_a_port_becomes_the_service_once_it_is_known_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "cgroups_of", lambda pid: ())
    told: list[ProcessState] = []
    registry = Registry(told.append, _Nobody())
    code = (
        "import socket; input(); s = socket.create_server(('127.0.0.1', 0)); print('y', flush=True); "
        "input(); s.close(); print('z', flush=True); input()"
    )
    with _child({}, code) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def go_on() -> None:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(b"\n")
            child.stdin.flush()
            while child.stdout.read(1) not in b"yz":
                pass
            registry._next_look = 0.0
            registry.poll({}, [child.pid])

        registry.poll({}, [child.pid])
        assert (told[-1].service, told[-1].listening, told[-1].probes) == (None, 0, None)
        go_on()
        assert (told[-1].service_from, told[-1].listening) == ("port", 1)
        name = told[-1].service
        go_on()
        assert (told[-1].service, told[-1].listening) == (name, 0)


def test_an_engine_has_the_port_of_the_server_above_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(services, "cgroups_of", lambda pid: ())
    told: list[ProcessState] = []

    class Above(ProcessFamilies):
        def ancestors(self, pid: int) -> list[int]:
            return [os.getpid()]

    registry = Registry(told.append, Above())
    with socket.create_server(("127.0.0.1", 0)), _child({}) as child:
        registry.poll({child.pid: 3}, [])
        (service,) = [services.of_ports(listening_of([os.getpid()])[os.getpid()].ports)]
        assert service is not None
        assert (told[-1].service, told[-1].service_from) == service


class _Above(ProcessFamilies):
    """Process 1 and its children 2 and 3."""

    def ancestors(self, pid: int) -> list[int]:
        return [1] if pid > 1 else []


class _Sockets:
    """In the place of `listening_of`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ports: dict[int, tuple[int, ...]] = {}
        self.looks: list[set[int]] = []
        monkeypatch.setattr("probes.host.registry.listening_of", self.look)
        monkeypatch.setattr("probes.host.registry.start_time_of", lambda pid: pid)
        monkeypatch.setattr(services, "_ephemeral", lambda: (32768, 60999))
        monkeypatch.setattr(services, "of_process", lambda pid: None)

    def look(self, pids: Iterable[int]) -> dict[int, Listening]:
        self.looks.append(set(pids))
        return {pid: Listening(self.ports.get(pid, ())) for pid in pids}


def test_an_engines_own_port_of_the_moment_is_not_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets, told = _Sockets(monkeypatch), dict[int, str | None]()
    registry = Registry(lambda state: told.__setitem__(state.pid, state.service), _Above())

    def look(**ports: tuple[int, ...]) -> None:
        sockets.ports = {int(name[1:]): some for name, some in ports.items()}
        registry._next_look = 0.0
        registry.poll({2: 7}, [])

    look(p2=(40_000,), p1=(8000,))
    assert told == {2: "port-8000"}
    look(p2=(80,))
    assert told == {2: "port-8000"}
    registry.poll({}, [])
    # The server begins to listen later. Until then one port that the kernel chose is as good as the next.
    look(p2=(40_001,))
    look(p2=(40_000, 40_001))
    assert told == {2: "port-40001"}
    look(p2=(40_001,), p1=(8000,))
    assert told == {2: "port-8000"}
    look(p2=(40_001,), p1=(40_002,))
    assert told == {2: "port-8000"}


def test_one_look_at_sockets_serves_all_and_not_who_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets = _Sockets(monkeypatch)
    registry = Registry(lambda state: None, _Above())
    registry.poll({2: 7, 3: 7}, [])
    assert sockets.looks == [{1, 2, 3}]
    monkeypatch.setattr(services, "of_process", lambda pid: Service("chat", "environment"))
    for _ in range(2):
        registry._next_look = 0.0
        registry.poll({2: 7, 3: 7}, [])
    assert sockets.looks == [{1, 2, 3}]
    registry._next_look = 0.0
    registry.poll({2: 7, 3: 7}, [3])
    assert sockets.looks == [{1, 2, 3}, {3}]


def test_a_program_may_make_a_stream_for_each_request() -> None:
    """Lanes that were not used for long go, those in use stay."""
    targets, typical = Targets(), Typical()
    targets.lanes[1, 0].delivered = 7
    for stream in range(1, 10_000):
        targets.lanes[1, stream].delivered = stream
        typical.add(1, stream, "decode", 3)
        typical.add(1, 0, "decode", 4)
        assert targets.lanes[1, 0].delivered == 7
    assert len(targets.lanes) == len(typical._counts) == MAX_LANES
    assert targets.lanes[1, 9_999].delivered == 9_999
    assert (typical.get(1, 0, "decode"), typical.get(1, 9_999, "decode")) == (4, 3)
    assert (typical.get(1, 1, "decode"), targets.lanes[1, 1].delivered) == (None, -1)
    targets.forget_lanes(1)
    assert not targets.lanes


def test_ten_thousand_processes_leave_nothing_in_the_tracer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probes.host.registry.listening_of", lambda pids: {})
    alive = range(0)
    monkeypatch.setattr("probes.host.registry.start_time_of", lambda pid: pid if pid in alive else None)
    monkeypatch.setattr("probes.host.registry.services.of_process", lambda pid: None)
    now = [0.0]
    monkeypatch.setattr("probes.steps.targets.time.monotonic", lambda: now[0])
    told = 0
    targets = Targets()

    def count(state: ProcessState) -> None:
        nonlocal told
        told += 1

    registry = Registry(count, _Nobody())
    for pid in range(10_000):
        now[0] += 0.5
        alive = range(pid, pid + 3)
        registry.failed(pid)
        registry.poll({pid + 1: 3}, [pid + 2])
        assert len(registry._failed) <= len(alive)
        targets.detached.add(pid)
        assert pid in targets.detached
    alive = range(0)
    registry.poll({}, [])
    assert told >= 20_000
    assert not registry._told
    assert not registry._started
    assert not registry._failed
    # One is remembered for `DETACHED_S`, and they came twice a second.
    assert len(targets.detached) <= 2 * DETACHED_S + 1
    assert 9_999 in targets.detached
    targets.detached.discard(9_999)
    assert 9_999 not in targets.detached
