"""libllm_datadist and libmetadef: engines in processes of their own move each other's memory.

The engine of a process is `build/programs/datadist`, which is told each step over its pipes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexnpu import emulator
from flexnpu.common.ports import free_port
from tests.host.test_libraries import ROOT, RUN

MIB = 1 << 20
PIECE = 2 * MIB
OK, INVALID, TIMEOUT, NOT_CONNECTED, CONNECTED = "0", "103900", "103901", "103902", "103903"
UNSUPPORTED, FAILED = "103905", "503900"
WAITING, COMPLETED, BROKEN = "0", "1", "3"
#: Milliseconds: far more than a busy host needs.
LONG = 60_000


class Engine:
    """A process with an engine, and what it writes to stderr."""

    def __init__(self, environment: dict[str, str], prefix: list[str], log: Path, *options: str) -> None:
        self.log = log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [*prefix, str(ROOT / "build" / "programs" / "datadist"), *options],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.name = f"127.0.0.1:{free_port()}"

    def do(self, *words: object) -> str:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().rstrip("\n")
        assert answer, self.said()
        assert answer[0] not in "?!", answer
        return answer

    def start(self, *options: str) -> Engine:
        assert self.do("init", self.name, *options) == OK, self.said()
        return self

    def memory(self, kind: str, size: int, fill: str) -> int:
        """Registered memory full of `fill`."""
        address = int(self.do("malloc", size) if kind == "malloc" else self.do("map", size // PIECE))
        self.do("fill", address, size, fill)
        status, _ = self.do("register", address, size, "device").split()
        assert status == OK, self.said()
        return address

    def said(self) -> str:
        return self.log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(60)

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            assert self.process.wait(120) in (0, -9), self.said()
        finally:
            self.process.kill()
            self.process.wait(60)
            self.process.stdout.close()


@pytest.fixture(params=["direct", "interposed"])
def engines(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    """Makes engines on one device."""
    if request.param == "direct":
        environment, prefix = os.environ | emulator.environment(machine=f"adxl-{os.getpid()}"), []
    else:
        environment, prefix = request.getfixturevalue("daemon").environment, RUN
    made: list[Engine] = []

    def make(*options: str) -> Engine:
        made.append(Engine(environment, prefix, tmp_path / f"engine-{len(made)}.log", *options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("kind", ["malloc", "map"])
def test_memory_moves_both_ways(engines: Callable[..., Engine], kind: str) -> None:
    one, two = engines().start(), engines().start()
    size = 3 * PIECE
    here, there = one.memory(kind, size, "a"), two.memory(kind, size, "b")
    # Over a border of two pieces of physical memory, into the middle; more than one part at once.
    parts = (here + PIECE - 4096, there + 8192, 8192, here + 100, there + 2 * PIECE - 50, 200)
    assert one.do("read", two.name, LONG, *parts) == OK, one.said()
    assert one.do("look", here, size) == f"a100b200a{PIECE - 4096 - 300}b8192a{2 * PIECE - 4096}"
    assert two.do("look", there, size) == f"b{size}"
    two.do("fill", there, size, "c")
    assert two.do("write", one.name, LONG, there + 7, here, size - 7) == OK, two.said()
    assert one.do("look", here, size - 7) == f"c{size - 7}"
    # What is registered later can be reached as well.
    later = two.memory(kind, PIECE, "d")
    assert one.do("read", two.name, LONG, here, later, PIECE) == OK, one.said()
    assert one.do("look", here, PIECE) == f"d{PIECE}"
    # To itself, and to memory of the host.
    assert one.do("read", one.name, LONG, here + PIECE, here, 4096) == OK, one.said()
    status, host = one.do("host", 4096).split()
    assert status == OK
    assert one.do("register", host, 4096, "host").split()[0] == OK
    assert one.do("read", two.name, LONG, host, there, 4096) == OK, one.said()
    assert two.do("read", one.name, LONG, there, host, 4096) == UNSUPPORTED
    assert "host side" in two.said()
    assert one.do("write", two.name, LONG, host, later, 64) == OK, one.said()
    assert two.do("look", later, 128) == "c64d64"


def test_transfers_that_are_asked_for_later(engines: Callable[..., Engine]) -> None:
    one, two = engines().start(), engines().start()
    here, there = one.memory("malloc", MIB, "a"), two.memory("malloc", MIB, "b")
    status, request = one.do("start-read", two.name, here, there, MIB).split()
    assert status == OK, one.said()
    while (answer := one.do("status", request)) == f"{OK} {WAITING}":
        pass
    assert answer == f"{OK} {COMPLETED}"
    assert one.do("look", here, MIB) == f"b{MIB}"
    # Its end is told once.
    assert one.do("status", request) == f"{INVALID} {BROKEN}"
    # The other dies meanwhile: what was read may be half of what it meant.
    status, request = one.do("start-read", two.name, here, there, MIB).split()
    assert status == OK
    two.kill()
    while (answer := one.do("status", request)) == f"{OK} {WAITING}":
        pass
    assert answer == f"{FAILED} {BROKEN}"
    assert f"{two.name} has ended during the transfer" in one.said()
    assert one.do("rest") == f"{OK} 1 {UNSUPPORTED} {UNSUPPORTED} {UNSUPPORTED} {OK}"


def test_what_is_wrong_is_refused_by_name(engines: Callable[..., Engine]) -> None:
    one, two = engines(), engines().start()
    assert one.do("register", 4096, 64, "device").split()[0] == FAILED
    assert one.do("read", two.name, LONG) == FAILED
    assert "not initialized" in one.said()
    for name in ("localhost:1", "127.0.0.1:x", "127.0.0.1:70000", "[::1", "1.2.3", "nothing"):
        assert one.do("init", name) == INVALID, name
    assert one.do("init", two.name) == FAILED
    assert f"cannot listen at {two.name}: Address already in use" in one.said()
    assert one.do("init", one.name, "AutoConnect=2") == INVALID
    assert one.do("init", one.name, "EnableUseFabricMem=1") == UNSUPPORTED
    one.start()
    here, there = one.memory("malloc", MIB, "a"), two.memory("map", PIECE, "b")
    assert one.do("register", 4096, 64, "device").split()[0] == INVALID
    assert one.do("register", here, 0, "device").split()[0] == INVALID
    assert one.do("deregister", 12345) == INVALID

    wrong = {
        "not all of the other's": (here, there + PIECE - 64, 128),
        "nothing of the other's": (here, there - PIECE, 64),
        "not all of its own": (here + MIB - 64, there, 128),
        "nothing of its own": (4096, there, 64),
        "around the end of addresses": (here, 2**64 - 32, 64),
        "no byte": (here, there, 0),
    }
    for what, part in wrong.items():
        assert one.do("read", two.name, LONG, *part) == INVALID, what
    assert f"{hex(there + PIECE - 64)} are not memory that engine {two.name} has registered" in one.said()
    assert f"{hex(here + MIB - 64)} are not memory that this engine has registered" in one.said()
    # A right part before a wrong one: nothing is copied.
    assert one.do("read", two.name, LONG, here, there, 64, here, 4096, 64) == INVALID
    assert one.do("look", here, MIB) == f"a{MIB}"

    assert one.do("connect", f"127.0.0.1:{free_port()}", LONG) == FAILED
    assert "Connection refused" in one.said()
    assert one.do("connect", two.name, LONG) == CONNECTED
    assert one.do("disconnect", two.name) == OK
    assert one.do("disconnect", two.name) == NOT_CONNECTED
    assert one.do("connect", two.name, LONG) == OK
    # It is freed here only after the other's transfers.
    status, handle = two.do("register", there, 4096, "device").split()
    assert (status, two.do("deregister", handle), two.do("deregister", handle)) == (OK, OK, INVALID)


def test_connections_are_made_where_that_is_wanted(engines: Callable[..., Engine]) -> None:
    one, two = engines().start("AutoConnect=0", "adxl.BufferPool=0:0"), engines().start()
    here, there = one.memory("map", PIECE, "a"), two.memory("map", PIECE, "b")
    assert one.do("read", two.name, LONG, here, there, 64) == NOT_CONNECTED
    assert one.do("connect", two.name, LONG) == OK
    assert one.do("read", two.name, LONG, here, there, 64) == OK
    assert one.do("look", here, 128) == "b64a64"
    # One that is started again is found again, by an engine that connects itself.
    again = engines()
    again.name = two.name
    three = engines().start()
    beside = three.memory("malloc", MIB, "c")
    assert three.do("read", two.name, LONG, beside, there, 64) == OK
    two.kill()
    again.start()
    moved = again.memory("malloc", MIB, "d")
    assert three.do("read", two.name, LONG, beside, moved, 64) == OK, three.said()
    assert three.do("look", beside, 128) == "d64c64"
    assert one.do("read", two.name, LONG, here, moved, 64) == FAILED
    # One without a port asks, and is not asked.
    client = engines()
    client.name = "127.0.0.1"
    client.start()
    mine = client.memory("malloc", MIB, "e")
    assert client.do("read", again.name, LONG, mine, moved, 64) == OK, client.said()
    assert again.do("read", client.name, LONG, moved, mine, 64) == INVALID


def test_without_a_device_there_is_no_engine(engines: Callable[..., Engine]) -> None:
    one = engines("without-device")
    assert one.do("init", one.name) == FAILED
    assert "aclrtSetDevice comes first" in one.said()


# --- what the other end of a socket may send

MAGIC, VERSION = 0x31445846, 1
HELLO, BEGIN, END, TABLE, GO, REFUSED = range(1, 7)


def message(kind: int, payload: bytes = b"", version: int = VERSION, size: int | None = None) -> bytes:
    return struct.pack("<IHHI", MAGIC, kind, version, len(payload) if size is None else size) + payload


def identity(engine: str, process: str = "f" * 32, host: str | None = None) -> bytes:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip() if host is None else host
    return struct.pack("<40s33s128s7x", boot.encode(), process.encode(), engine.encode())


def table(
    engine: str, ranges: list[tuple[int, int, int]], pieces: list[tuple[int, int, int, bytes]], **who: str
) -> bytes:
    payload = struct.pack("<QII", 7, len(ranges), len(pieces)) + identity(engine, **who)
    payload += b"".join(struct.pack("<QQQ", *one) for one in ranges)
    return payload + b"".join(struct.pack("<QQQ72s", *one) for one in pieces)


def ask(name: str, sent: bytes) -> bytes:
    """What an engine answers until it closes; nothing follows what is sent."""
    host, port = name.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        answer = b""
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                answer += piece
        return answer


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine that is asked."""
    folder = tmp_path_factory.mktemp("adxl")
    environment = os.environ | emulator.environment(machine=f"adxl-wire-{os.getpid()}")
    engine = Engine(environment, [], folder / "listener.log")
    engine.start()
    engine.memory("malloc", MIB, "a")
    yield engine
    assert engine.do("rest").startswith(OK), engine.said()
    engine.close()


def test_bad_peers_are_told_and_dropped(listener: Engine) -> None:
    name = listener.name
    hello = message(HELLO, identity(name))
    assert ask(name, hello)[12:] == ask(name, hello)[12:]
    assert struct.unpack_from("<H", ask(name, hello), 4) == (TABLE,)
    told = {
        b"another language": b"GET / HTTP/1.1\r\n\r\n",
        b"version 9": message(HELLO, identity(name), version=9),
        b"a message of 4294967295 bytes": message(HELLO, size=2**32 - 1),
        b"hello that cannot be read": message(HELLO, b"short"),
        b"not the one that is meant": message(HELLO, identity("127.0.0.1:1")),
        b"on another host": message(HELLO, identity(name, host="elsewhere")),
        b"before hello": message(BEGIN, struct.pack("<Q", 1)),
        b"begin that cannot be read": hello + message(BEGIN, b"1"),
        b"message 3 out of turn": hello + message(END),
        b"message 1 out of turn": hello + hello,
        b"message 99 out of turn": hello + message(99, b"x"),
        b"too many transfers": hello + 5000 * message(BEGIN, struct.pack("<Q", 2)),
    }
    for what, sent in told.items():
        assert what in ask(name, sent), what
    # Not a zero is missing at the end of a text.
    assert b"cannot be read" in ask(name, message(HELLO, b"x" * 208))


def test_who_dies_amid_a_transfer_keeps_no_memory(listener: Engine) -> None:
    address = int(listener.do("malloc", MIB))
    status, handle = listener.do("register", address, MIB, "device").split()
    assert status == OK
    host, port = listener.name.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(message(HELLO, identity(listener.name)) + message(BEGIN, struct.pack("<Q", 0)))
        answer = b""
        while answer.count(struct.pack("<IH", MAGIC, TABLE)) < 2:
            answer += connection.recv(65536)
        answered: list[str] = []
        waiting = threading.Thread(target=lambda: answered.append(listener.do("deregister", handle)))
        waiting.start()
        waiting.join(0.3)
        assert not answered, "memory went amid a transfer"
    waiting.join(60)
    assert answered == [OK]
    listener.do("free", address)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=600), st.integers(0, 8)), max_size=5))
def test_no_bytes_harm_an_engine(listener: Engine, parts: list[bytes | int]) -> None:
    """Whatever comes, those who ask rightly are served."""
    sent = b""
    for part in parts:
        sent += (
            message(part, identity(listener.name) if part == HELLO else b"")
            if isinstance(part, int)
            else part
        )
    ask(listener.name, sent)
    answer = ask(listener.name, message(HELLO, identity(listener.name)))
    assert struct.unpack_from("<H", answer, 4) == (TABLE,)


class Impostor:
    """Listens as an engine does and answers with given bytes; each connection with the same."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.name = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.answers: list[bytes | None] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            for answer in list(self.answers):
                if not connection.recv(65536):
                    return
                if answer is None:
                    time.sleep(300)
                connection.sendall(answer or b"")

    def close(self) -> None:
        self.listener.close()


@pytest.fixture
def impostor() -> Iterator[Impostor]:
    one = Impostor()
    yield one
    one.close()


def test_engines_that_lie_or_are_silent(engines: Callable[..., Engine], impostor: Impostor) -> None:
    one = engines().start()
    here = one.memory("malloc", MIB, "a")
    name = impostor.name
    good = message(TABLE, table(name, [(4096, 4096, 0)], [(4096, 4096, 0, b"0" * 64)]))
    impostor.answers = [None]
    assert one.do("connect", name, 300) == TIMEOUT
    assert "does not answer in time" in one.said()
    wrong: list[tuple[list[bytes | None], str, str]] = [
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], FAILED, "is no engine of this kind"),
        ([message(TABLE, table(name, [], [], host="elsewhere"))], UNSUPPORTED, "is on another host"),
        ([message(REFUSED, b"\x1b[2Jgo away")], FAILED, "refuses: ?[2Jgo away"),
        ([message(GO)], FAILED, "cannot be read"),
        ([good[:-1]], FAILED, "has closed the connection"),
        ([message(TABLE, good[12:-1])], FAILED, "cannot be read"),
        ([message(TABLE, table(name, [(2**64 - 8, 64, 0)], []))], FAILED, "cannot be read"),
        ([message(TABLE, table(name, [], [(0, 1, 0, b"k" * 72)]))], FAILED, "cannot be read"),
    ]
    for answers, status, text in wrong:
        impostor.answers = answers
        assert one.do("connect", name, LONG) == status, text
        assert text in one.said()
    cases: list[tuple[list[bytes | None], str, str]] = [
        ([good], FAILED, "has ended"),
        ([good, message(GO)], FAILED, "cannot be imported: aclrtIpcMemImportByKey failed"),
        ([good, message(REFUSED, b"no")], FAILED, "refuses: no"),
        ([good, b"garbage to it"], FAILED, "another language"),
        ([message(TABLE, table(name, [(4096, 4096, 0)], [])), message(GO)], FAILED, "what lies behind"),
        (
            [message(TABLE, table(name, [(4096, 64, 0)], [(4096, 64, 9, b"")])), message(GO)],
            FAILED,
            "imported",
        ),
    ]
    for answers, status, text in cases:
        one.do("disconnect", name)
        impostor.answers = answers
        assert one.do("read", name, LONG, here, 4096, 64) == status, text
        assert text in one.said()
    one.do("disconnect", name)
    impostor.answers = [good, None]
    assert one.do("read", name, 300, here, 4096, 64) == TIMEOUT
    assert one.do("look", here, MIB) == f"a{MIB}"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_table_harms_who_asks(listener: Engine, data: Any) -> None:
    """Tables with bytes changed or cut: an engine that asks takes it or says why not."""
    liar = Impostor()
    try:
        whole = bytearray(
            message(TABLE, table(liar.name, [(4096, 8192, 0)] * 2, [(4096, 4096, 0, b"1" * 64)]))
        )
        for _ in range(data.draw(st.integers(1, 6))):
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
        liar.answers = [bytes(whole[: data.draw(st.integers(1, len(whole)))])]
        assert listener.do("connect", liar.name, LONG) in (OK, FAILED, UNSUPPORTED)
        listener.do("disconnect", liar.name)
    finally:
        liar.close()
