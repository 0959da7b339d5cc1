"""The wire tracer on real servers: system calls, timing against the client's own clock, losses,
detaching."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from probes.feed.events import RequestTiming
from probes.placing import loader
from probes.requests import kernel, wire
from probes.requests.wire import WireError, WireTracer

SERVERS = Path(__file__).with_name("servers.py")
TOKENS = 5


@dataclass
class Server:
    process: subprocess.Popen[str]
    port: int

    @property
    def pid(self) -> int:
        return self.process.pid


@contextlib.contextmanager
def serving(kind: str) -> Iterator[Server]:
    process = subprocess.Popen([sys.executable, str(SERVERS), kind], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Server(process, int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait(120)


@dataclass
class Seen:
    """A request by the client's clock: sent, first content, end."""

    sent: int
    first: int
    end: int


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, prompt: str) -> Seen:
    body = json.dumps({"messages": [{"role": "user", "content": prompt}], "stream": True}).encode()
    data = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    sent = time.monotonic_ns()
    writer.write(data)
    first = 0
    while True:
        line = await reader.readline()
        now = time.monotonic_ns()
        if b'"content": "tok' in line and not first:
            first = now
        if line == b"0\r\n":
            await reader.readline()
            return Seen(sent, first, now)
        assert line, "the server closed the connection"


async def converse(port: int, requests: int, prompt: str) -> list[Seen]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return [await ask(reader, writer, prompt) for _ in range(requests)]
    finally:
        writer.close()
        await writer.wait_closed()


def load(port: int, connections: int, requests: int, prompt: str = "x" * 37) -> list[Seen]:
    async def run() -> list[Seen]:
        every = await asyncio.gather(*(converse(port, requests, prompt) for _ in range(connections)))
        return [seen for one in every for seen in one]

    return asyncio.run(asyncio.wait_for(run(), 120))


def wait_for(tracer: WireTracer, done: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        tracer.poll(50)


def kinds() -> list[str]:
    found = ["asyncio", "read-write", "readv-writev", "recv-send", "recvmsg-sendmsg"]
    return found + (["uvicorn"] if importlib.util.find_spec("uvicorn") else [])


class Shared:
    """One tracer for several tests: to attach and to detach take seconds."""

    def __init__(self) -> None:
        self.got: list[RequestTiming] = []
        self.tracer = WireTracer((), on_request=lambda request: self.got.append(request))
        self._before: dict[str, int] = {}

    @contextlib.contextmanager
    def on(self, server: Server) -> Iterator[WireTracer]:
        self.got = []
        self._before = self.tracer.losses
        self.tracer.add(server.pid)
        yield self.tracer
        self.tracer.remove(server.pid)

    @property
    def losses(self) -> dict[str, int]:
        """Since `on`."""
        return {name: n - self._before[name] for name, n in self.tracer.losses.items()}


@pytest.fixture(scope="module", params=loader.NAMES)
def shared(request: pytest.FixtureRequest) -> Iterator[Shared]:
    """With programs from the compiled object, and again with those that bcc compiles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(loader.ENVIRONMENT, request.param)
        if request.param == "core" and not loader.WIRE.object.is_file():
            pytest.skip("the BPF objects are not built")
        of = Shared()
    yield of
    of.tracer.close()


@pytest.mark.ebpf
@pytest.mark.parametrize("kind", kinds())
def test_every_request_is_seen_as_the_client_saw_it(kind: str, shared: Shared) -> None:
    with serving(kind) as server, shared.on(server) as tracer:
        seen = load(server.port, connections=4, requests=5)
        wait_for(tracer, lambda: len(shared.got) >= 20)
        losses = shared.losses
    got = shared.got
    # A question of luck: one acknowledgement in some thousand is not seen. What it let go is dated too late.
    unknown = losses.pop("wire_departures_unknown")
    assert len(got) == 20
    assert not any(losses.values()), losses
    by_arrival = sorted(got, key=lambda r: r.t_arrival_ns)
    for request, truth in zip(by_arrival, sorted(seen, key=lambda s: s.sent), strict=True):
        assert (request.path, request.status, request.prompt_chars) == ("/v1/chat/completions", 200, 37)
        assert request.complete
        assert request.pid == server.pid
        assert len(request.chunk_ns) == TOKENS
        assert request.chunk_ns == sorted(request.chunk_ns)
        assert request.chunk_ns[0] == request.t_first_ns
        # The server cannot see a request before it was sent, nor can the client see a token before it was
        # written.
        assert request.t_first_ns is not None
        assert request.t_end_ns is not None
        assert truth.sent <= request.t_arrival_ns < request.t_first_ns
        assert request.t_write_ns is not None
        assert request.t_write_ns <= request.t_first_ns <= request.t_end_ns
        if request.t_first_ns > truth.first or request.t_end_ns > truth.end:
            unknown -= 1
            assert unknown >= 0
        assert request.t_read_ns is not None
        assert request.t_arrival_ns <= request.t_read_ns < request.t_write_ns
        # The token was 20 ms in the making, whatever the machine's load.
        assert request.t_write_ns - request.t_arrival_ns >= 15_000_000


@pytest.mark.ebpf
def test_arrival_is_when_the_socket_had_it_not_when_the_server_read_it(shared: Shared) -> None:
    if not all((wire.TRACEFS / "events" / name).is_dir() for name in kernel.SOCKET_TIME):
        pytest.skip("this kernel does not show when a socket's data arrive")
    with serving("recv-send") as server, shared.on(server) as tracer:
        assert tracer.dating == "socket"
        os.kill(server.pid, 19)  # SIGSTOP: the server is busy
        try:
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.settimeout(60)
                client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
                sent = time.monotonic_ns()
                time.sleep(0.3)
                os.kill(server.pid, 18)
                while not client.recv(65536).endswith(b"0\r\n\r\n"):
                    pass
            wait_for(tracer, lambda: bool(shared.got))
        finally:
            os.kill(server.pid, 18)
    got = shared.got
    assert got[0].t_read_ns is not None
    assert got[0].t_read_ns > sent + 250_000_000
    assert got[0].t_arrival_ns < sent + 100_000_000
    assert got[0].t_first_ns is not None
    assert got[0].t_first_ns > sent + 300_000_000


@pytest.mark.ebpf
def test_long_prompts_are_cut_in_the_copy_and_that_is_counted(shared: Shared) -> None:
    with serving("asyncio") as server, shared.on(server) as tracer:
        load(server.port, 1, 2, prompt="y" * 3_000_000)
        wait_for(tracer, lambda: len(shared.got) >= 2)
        assert shared.losses["wire_truncated_bytes"] > 0
    got = shared.got
    assert [r.prompt_chars for r in got] == [None, None]
    assert [len(r.chunk_ns) for r in got] == [TOKENS, TOKENS]
    assert all(r.complete for r in got)


@pytest.mark.ebpf
def test_a_full_ring_is_counted_and_its_requests_are_not_called_whole() -> None:
    got: list[RequestTiming] = []
    with (
        serving("asyncio") as server,
        WireTracer([server.pid], on_request=got.append, ring_pages=1) as tracer,
    ):
        load(server.port, 8, 4)
        tracer.poll(50)
        lost = tracer.losses["wire_lost"]
        assert lost > 0
        # It recovers: what is drained in time is whole again.
        before = len(got)
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.settimeout(60)
            client.sendall(b"POST /again HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
            seen = b""
            while not seen.endswith(b"0\r\n\r\n"):
                seen += client.recv(65536)
                tracer.poll(0)
        wait_for(tracer, lambda: any(r.path == "/again" for r in got))
    assert not any(r.complete for r in got[:before])
    assert [len(r.chunk_ns) for r in got if r.path == "/again"] == [TOKENS]


@pytest.mark.ebpf
@pytest.mark.parametrize(
    ("kind", "first", "counted"),
    [
        ("tls", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "wire_tls"),
        ("tls", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "wire_http2"),
        ("greedy", b"GET / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "wire_unsupported"),
    ],
)
def test_what_does_not_begin_like_http_is_counted(
    kind: str, first: bytes, counted: str, shared: Shared
) -> None:
    with serving(kind) as server, shared.on(server) as tracer:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.settimeout(60)
            client.sendall(first)
            assert client.recv(100)
        tracer.poll(50)
        assert {name: n for name, n in shared.losses.items() if n} == {counted: 1}


@pytest.mark.ebpf
def test_other_processes_and_plain_files_are_left_alone(shared: Shared) -> None:
    with serving("asyncio") as server, serving("asyncio") as other, shared.on(server) as tracer:
        load(other.port, 1, 2)
        tracer.poll(50)
        assert shared.got == []
        assert list(tracer._kernel_connections) == []


@pytest.mark.ebpf
def test_a_killed_server_ends_its_requests_and_the_iteration() -> None:
    with serving("asyncio") as server, WireTracer([server.pid]) as tracer:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.settimeout(60)
            client.sendall(b"POST /cut HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
            client.recv(100)
            server.process.kill()
            server.process.wait(120)
            (request,) = list(tracer)
        assert tracer.pids == []
        assert list(tracer._kernel_connections) == []
        assert tracer.losses["wire_cut_requests"] == 1
    assert (request.path, request.complete, request.t_end_ns) == ("/cut", False, None)


@pytest.mark.ebpf
def test_detaching_delivers_what_is_open_and_leaves_no_program() -> None:
    def programs() -> int:
        found = 0
        for fd in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the listing's own
                found += "bpf-prog" in os.readlink(fd)
        return found

    before = programs()
    got: list[RequestTiming] = []
    losses: list[dict[str, int]] = []
    with serving("asyncio") as server:
        tracer = WireTracer([server.pid], on_request=got.append, on_loss=losses.append)
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.settimeout(60)
            client.sendall(b"POST /open HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
            client.recv(100)
            tracer.close()
        tracer.close()
    assert [(r.path, r.complete) for r in got] == [("/open", False)]
    assert losses[-1]["wire_cut_requests"] == 1
    assert programs() == before


@pytest.mark.ebpf
def test_a_callback_error_reaches_the_caller_of_poll() -> None:
    def fail(request: RequestTiming) -> None:
        raise RuntimeError(f"no room for {request.path}")

    with serving("asyncio") as server:
        tracer = WireTracer([server.pid], on_request=fail)
        try:
            load(server.port, 1, 1)
            with pytest.raises(RuntimeError, match="no room for /v1/chat"):
                wait_for(tracer, lambda: False)
        finally:
            tracer.close()


@pytest.mark.ebpf
def test_threads_that_come_and_go_leave_nothing() -> None:
    # Each thread has an entry while it lives, and the kernel's table holds a bounded number of them.
    program = (
        "import socket, sys, threading\n"
        "def read():\n"
        " a, b = socket.socketpair()\n"
        " with a, b: a.sendall(b'GET / HTTP/1.1\\r\\n\\r\\n'); b.recv(64); b.sendall(b'x'); a.recv(64)\n"
        "for line in sys.stdin:\n"
        " for _ in range(307):\n"
        "  thread = threading.Thread(target=read); thread.start(); thread.join()\n"
        " read(); print(flush=True)\n"
    )
    command = [sys.executable, "-c", program]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        with WireTracer([child.pid]) as tracer:
            child.stdin.write("\n")
            child.stdin.flush()
            child.stdout.readline()
            tracer.poll(0)
            assert tracer.losses["wire_calls_lost"] == 0
            kept = [key.value for key in tracer._calls if key.value >> 32 == child.pid]
            # The first thread's own, and the last one's, which may not have ended yet.
            assert 1 <= len(kept) <= 2
    finally:
        child.kill()
        child.wait(60)


def test_a_pid_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ProcessLookupError):
        WireTracer([2**22 - 1])


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(WireError, match="sudo"):
        WireTracer([os.getpid()])


@pytest.mark.ebpf
def test_what_nagle_keeps_back_is_dated_by_its_sending(shared: Shared) -> None:
    """A server without TCP_NODELAY writes twice; the client's kernel acknowledges the first write late."""
    script = """
import socket, sys, time
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
connection, _ = listener.accept()
event = b'data: {"choices":[{"text":"tok"}]}\\n\\n'
event = b"%x\\r\\n" % len(event) + event + b"\\r\\n"
head = b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n"
for _ in range(2):
    connection.recv(65536)
    for part in (head, event, event, b"0\\r\\n\\r\\n"):
        connection.sendall(part)
        time.sleep(0.002)
time.sleep(30)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    firsts: list[int] = []
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with shared.on(Server(process, port)) as tracer:
            got = shared.got
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.settimeout(60)
                for _ in range(2):
                    # No quick acknowledgements, as on a connection that has been busy for a while.
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
                    client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
                    seen = b""
                    while b"0\r\n\r\n" not in seen:
                        seen += client.recv(65536)
                        if b"tok" in seen and len(firsts) == len(got):
                            firsts.append(time.monotonic_ns())
                        tracer.poll(0)
                    wait_for(tracer, lambda: len(got) >= len(firsts))
            if tracer.dating != "socket":
                pytest.skip("this kernel does not show when data are sent")
    finally:
        process.kill()
        process.wait(120)
    held = behind = 0
    for request, first in zip(got, firsts, strict=True):
        assert request.complete
        assert request.t_first_ns is not None
        assert request.t_write_ns is not None
        assert len(request.chunk_ns) == 2
        assert request.t_write_ns <= request.t_first_ns <= first
        if request.t_first_ns - request.t_write_ns > held:
            held = request.t_first_ns - request.t_write_ns
            behind = first - request.t_first_ns
    assert held > 20_000_000, "nothing was kept back"
    # The client had it when it was sent, and not when it was written, whatever the host's pace.
    assert behind < held


@pytest.mark.ebpf
def test_a_kernel_that_does_not_show_its_sockets_has_the_calls_dates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "member_offsets", lambda struct, members: None)
    got: list[RequestTiming] = []
    with serving("recv-send") as server, WireTracer([server.pid], on_request=got.append) as tracer:
        assert tracer.dating == "call"
        load(server.port, 1, 2)
        wait_for(tracer, lambda: len(got) >= 2)
    for request in got:
        assert request.complete
        assert request.t_read_ns is not None
        assert 0 <= request.t_read_ns - request.t_arrival_ns < 1_000_000
        assert request.t_write_ns == request.t_first_ns
