"""Every way in which bytes come to a server and leave it: served, or counted under a name that says why."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ways

from probes.feed.events import RequestTiming
from probes.placing import loader
from probes.requests.wire import WireTracer

WAYS = Path(__file__).with_name("ways.py")
TOKENS = 3
BODY = json.dumps({"stream": True, "messages": [{"role": "user", "content": "hello there"}]}).encode()
REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
LAST = b"\r\n0\r\n\r\n"


class Watched:
    """A tracer for all tests of this file: to attach and to detach take seconds."""

    def __init__(self) -> None:
        self.got: list[RequestTiming] = []
        self.tracer = WireTracer((), on_request=lambda request: self.got.append(request))
        self._before: dict[str, int] = {}

    @contextlib.contextmanager
    def on(self, *pids: int) -> Iterator[None]:
        self.got = []
        self._before = self.tracer.losses
        for pid in pids:
            self.tracer.add(pid)
        try:
            yield
        finally:
            for pid in pids:
                self.tracer.remove(pid)

    def until(self, requests: int) -> None:
        deadline = time.monotonic() + 60
        while len(self.got) < requests and time.monotonic() < deadline:
            self.tracer.poll(20)
        self.tracer.poll(20)

    @property
    def losses(self) -> dict[str, int]:
        """Since `on`. How often what was kept back had no word of its sending is a question of luck."""
        counts = {name: n - self._before[name] for name, n in self.tracer.losses.items()}
        return {name: n for name, n in counts.items() if n and name != "wire_departures_unknown"}


@pytest.fixture(scope="module", params=loader.NAMES)
def watched(request: pytest.FixtureRequest) -> Iterator[Watched]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(loader.ENVIRONMENT, request.param)
        if request.param == "core" and not loader.WIRE.object.is_file():
            pytest.skip("the BPF objects are not built")
        one = Watched()
    yield one
    one.tracer.close()


@contextlib.contextmanager
def running(*command: str) -> Iterator[tuple[int, int]]:
    """(pid, port) of a server."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
    finally:
        process.kill()
        process.wait(60)


def ask(port: int, requests: int = 2) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(60)
        for _ in range(requests):
            client.sendall(REQUEST)
            seen = b""
            while not seen.endswith(LAST):
                got = client.recv(65536)
                assert got, "the server closed the connection"
                seen += got


@pytest.mark.ebpf
@pytest.mark.parametrize(
    "way",
    [
        *("peek-send", "recvmmsg-send", "preadv2-send", "pieces-send"),
        *("recv-many", "recv-sendmmsg", "recv-pwritev2", "recv-dup", "recv-dup2"),
    ],
)
def test_what_is_served(way: str, watched: Watched) -> None:
    with running(str(WAYS), way) as (pid, port), watched.on(pid):
        ask(port)
        watched.until(2)
        losses = watched.losses
    expected = [(200, True, TOKENS, len("hello there"), pid)] * 2
    seen = [(r.status, r.complete, len(r.chunk_ns), r.prompt_chars, r.pid) for r in watched.got]
    assert (seen, losses) == (expected, {})


@pytest.mark.ebpf
@pytest.mark.parametrize(
    ("way", "counted"),
    [
        ("recv-sendfile", "wire_kernel_bytes"),
        ("recv-splice", "wire_kernel_bytes"),
        ("recv-child", "wire_unseen_bytes"),
        ("recv-uring", "wire_io_uring_bytes"),
    ],
)
def test_what_is_counted_costs_its_bytes_and_not_the_connection(
    way: str, counted: str, watched: Watched
) -> None:
    if counted != "wire_kernel_bytes" and watched.tracer.dating != "socket":
        pytest.skip("this kernel does not show what its sockets move")
    with running(str(WAYS), way) as (pid, port), watched.on(pid):
        ask(port)
        watched.until(2)
        losses = watched.losses
    # The first token and the end are sent, the others go by a way whose bytes nobody reads.
    seen = [(r.status, r.complete, len(r.chunk_ns), r.t_end_ns is not None) for r in watched.got]
    assert seen == [(200, False, 1, True)] * 2
    assert set(losses) == {counted}
    assert losses[counted] == 2 * sum(map(len, ways.PARTS[2:-1]))


# Programs of their own: what passes between processes, what closes in another way, what is no socket.

PRELUDE = f"""
import array, json, os, socket, sys, time
sys.path.insert(0, {str(WAYS.parent)!r})
from ways import HEAD, LAST, PARTS, TOKENS, chunk, event, libc
def read_request(c):
    seen = b""
    while b"there" not in seen:
        seen += c.recv(65536)
def answer(c):
    for part in PARTS:
        c.sendall(part)
        time.sleep(0.002)
s = socket.create_server(("127.0.0.1", 0))
"""


@pytest.mark.ebpf
@pytest.mark.parametrize("who_reads", ["the one who accepts", "the one who answers"])
def test_connections_that_are_passed_to_another_process(who_reads: str, watched: Watched) -> None:
    """As servers do that accept in one process and answer in others."""
    if watched.tracer.dating != "socket":
        pytest.skip("this kernel does not show what a descriptor is")
    first = who_reads == "the one who accepts"
    script = f"""
ours, theirs = socket.socketpair()
pid = os.fork()
if pid == 0:
    while True:
        _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
        with socket.socket(fileno=fds[0]) as c:
            {"" if first else "read_request(c)"}
            answer(c)
print(s.getsockname()[1], flush=True)
print(pid, flush=True)
for _ in range(2):
    c, _ = s.accept()
    {"read_request(c)" if first else ""}
    socket.send_fds(ours, [b"x"], [c.fileno()])
    c.close()
os.waitpid(pid, 0)
"""
    process = subprocess.Popen([sys.executable, "-c", PRELUDE + script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port, worker = int(process.stdout.readline()), int(process.stdout.readline())
    try:
        with watched.on(process.pid, worker):
            for _ in range(2):
                ask(port, 1)
            watched.until(2)
            losses = watched.losses
    finally:
        os.kill(worker, 9)
        process.wait(60)
    seen = [(r.status, r.complete, len(r.chunk_ns), r.pid) for r in watched.got]
    assert (seen, losses) == ([(200, True, TOKENS, worker)] * 2, {})


@pytest.mark.ebpf
@pytest.mark.parametrize(
    "closing", ["os.closerange(c.fileno(), c.fileno() + 8)", "os.dup2(os.open('/dev/null', 0), c.fileno())"]
)
def test_what_ends_with_its_connection_is_whole_however_it_is_closed(closing: str, watched: Watched) -> None:
    script = f"""
print(s.getsockname()[1], flush=True)
c, _ = s.accept()
read_request(c)
c.sendall(b"HTTP/1.0 200 OK\\r\\ncontent-type: text/event-stream\\r\\n\\r\\n" + event("a"))
{closing}
c.detach()
time.sleep(30)
"""
    with running("-c", PRELUDE + script) as (pid, port), watched.on(pid):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.settimeout(60)
            client.sendall(REQUEST)
            while client.recv(65536):
                pass
        watched.until(1)
        losses = watched.losses
    seen = [(r.status, r.complete, len(r.chunk_ns), r.t_end_ns is not None) for r in watched.got]
    assert (seen, losses) == ([(200, True, 1, True)], {})


@pytest.mark.ebpf
def test_what_is_no_socket_is_no_connection(watched: Watched) -> None:
    script = f"""
import tempfile
print(s.getsockname()[1], flush=True)
c, _ = s.accept()
request = {REQUEST!r}
with tempfile.NamedTemporaryFile() as f:
    f.write(request)
    f.flush()
    for _ in range(3):
        fd = os.open(f.name, os.O_RDONLY)
        assert os.read(fd, 65536) == request
        os.close(fd)
out, into = os.pipe()
os.write(into, request)
assert os.read(out, 65536) == request
fd = os.memfd_create("x")
os.write(fd, request)
os.lseek(fd, 0, 0)
assert os.read(fd, 65536) == request
master, slave = os.openpty()
os.write(master, request)
assert os.read(slave, 65536)
c.sendall(b"done")
time.sleep(30)
"""
    with running("-c", PRELUDE + script) as (pid, port), watched.on(pid):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.settimeout(60)
            assert client.recv(4) == b"done"
        watched.tracer.poll(50)
        losses = watched.losses
    assert (watched.got, losses) == ([], {})


@pytest.mark.ebpf
def test_a_call_that_is_longer_than_what_is_copied(watched: Watched) -> None:
    """Its end shows where the body goes on: with one chunk that is too long, and with many."""
    script = """
print(s.getsockname()[1], flush=True)
c, _ = s.accept()
for _ in range(2):
    read_request(c)
    c.sendall(PARTS[0] + PARTS[1])
    c.sendall(chunk(event("x" * 700_000)))
    c.sendall(chunk(event("y")) * 9000 + chunk(event("z")))
    c.sendall(PARTS[2])
    c.sendall(LAST)
time.sleep(30)
"""
    with running("-c", PRELUDE + script) as (pid, port), watched.on(pid):
        ask(port)
        watched.until(2)
        losses = watched.losses
    assert [(r.status, r.complete, r.t_end_ns is not None) for r in watched.got] == [(200, False, True)] * 2
    for request in watched.got:
        # The long event and what was left out of 9,001 are lost; the others are seen.
        assert 1000 < len(request.chunk_ns) < 9000
    assert set(losses) == {"wire_truncated_bytes"}
