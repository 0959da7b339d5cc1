"""Servers whose bytes come and go in other ways than read and write: ``python ways.py READING-WRITING``.

Each prints its port when it listens, and answers requests with `TOKENS` content chunks.
"""

from __future__ import annotations

import array
import ctypes
import json
import mmap
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable

TOKENS = 3
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"
libc = ctypes.CDLL(None, use_errno=True)


def event(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n" % len(data) + data + b"\r\n"


PARTS = [HEAD + chunk(event("")), *(chunk(event(f"tok{i} ")) for i in range(TOKENS)), LAST]


class Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class Message(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p), ("name_len", ctypes.c_uint32), ("iov", ctypes.POINTER(Iovec)),
        ("iov_len", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_len", ctypes.c_size_t),
        ("flags", ctypes.c_int), ("pad", ctypes.c_int), ("len", ctypes.c_uint32),
    )  # fmt: skip


def checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def iovecs(buffers: list[ctypes.Array[ctypes.c_char]]) -> ctypes.Array[Iovec]:
    return (Iovec * len(buffers))(*(Iovec(ctypes.addressof(one), ctypes.sizeof(one)) for one in buffers))


def messages(*vectors: ctypes.Array[Iovec]) -> ctypes.Array[Message]:
    return (Message * len(vectors))(*(Message(iov=one, iov_len=len(one)) for one in vectors))


def data_of(data: bytes) -> ctypes.Array[ctypes.c_char]:
    return (ctypes.c_char * len(data)).from_buffer_copy(data)


# Reading: from a socket, up to 64 KiB.


def recv(s: socket.socket) -> bytes:
    return s.recv(65536)


def peek(s: socket.socket) -> bytes:
    for size in (1, 4, 65536):
        s.recv(size, socket.MSG_PEEK)
    s.recvmsg(65536, 0, socket.MSG_PEEK)
    return s.recv(65536)


def pieces(s: socket.socket) -> bytes:
    return s.recv(5)


def recvmmsg(s: socket.socket) -> bytes:
    one, two, other = (ctypes.c_char * 3)(), (ctypes.c_char * 65536)(), (ctypes.c_char * 65536)()
    got = messages(iovecs([one, two]), iovecs([other]))
    done = checked(libc.recvmmsg(s.fileno(), got, 2, 0x10000, None))  # MSG_WAITFORONE
    first = (one.raw + two.raw)[: got[0].len] if done else b""
    return first + (other.raw[: got[1].len] if done > 1 else b"")


def preadv2(s: socket.socket) -> bytes:
    one, two = (ctypes.c_char * 3)(), (ctypes.c_char * 65536)()
    n = checked(libc.preadv2(s.fileno(), iovecs([one, two]), 2, ctypes.c_int64(-1), 0))
    return (one.raw + two.raw)[:n]


# Writing.


def send(s: socket.socket, data: bytes) -> None:
    s.sendall(data)


def many(s: socket.socket, data: bytes) -> None:
    """A buffer a byte, as many as the kernel takes in one call."""
    at = 0
    while at < len(data):
        at += s.sendmsg([data[i : i + 1] for i in range(at, min(len(data), at + 1000))])


def sendmmsg(s: socket.socket, data: bytes) -> None:
    third = len(data) // 3
    parts = [data_of(one) for one in (data[:third], data[third : third + 1], data[third + 1 :])]
    sent = messages(iovecs(parts[:2]), iovecs(parts[2:]))
    assert checked(libc.sendmmsg(s.fileno(), sent, 2, 0)) == 2


def pwritev2(s: socket.socket, data: bytes) -> None:
    parts = [data_of(data[:7]), data_of(data[7:])]
    assert checked(libc.pwritev2(s.fileno(), iovecs(parts), 2, ctypes.c_int64(-1), 0)) == len(data)


def dup(s: socket.socket, data: bytes) -> None:
    with socket.socket(fileno=os.dup(s.fileno())) as other:
        other.sendall(data)


def dup2(s: socket.socket, data: bytes) -> None:
    out, fd = os.pipe()
    os.write(fd, b"something")  # the descriptor is known as a pipe's
    os.dup2(s.fileno(), fd)
    assert os.write(fd, data) == len(data)
    os.close(out)
    os.close(fd)


def sendfile(s: socket.socket, data: bytes) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        assert os.sendfile(s.fileno(), file.fileno(), 0, len(data)) == len(data)


def splice(s: socket.socket, data: bytes) -> None:
    out, into = os.pipe()
    os.write(into, data)
    assert os.splice(out, s.fileno(), len(data)) == len(data)
    os.close(out)
    os.close(into)


def child(s: socket.socket, data: bytes) -> None:
    """A process that nobody watches writes."""
    pid = os.fork()
    if pid == 0:
        s.sendall(data)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def uring(s: socket.socket, data: bytes) -> None:
    parameters = (ctypes.c_uint32 * 30)()
    ring = checked(libc.syscall(425, 4, parameters))
    tail_at, array_at = parameters[11], parameters[16]
    rings, entries = mmap.mmap(ring, 4096), mmap.mmap(ring, 4096, offset=0x10000000)
    buffer = data_of(data)
    entries[0:40] = array.array("B", bytes(40)).tobytes()
    entries[0:1] = b"\x1a"  # IORING_OP_SEND
    entries[4:8] = s.fileno().to_bytes(4, "little")
    entries[16:24] = ctypes.addressof(buffer).to_bytes(8, "little")
    entries[24:28] = len(data).to_bytes(4, "little")
    rings[array_at : array_at + 4] = bytes(4)
    rings[tail_at : tail_at + 4] = (1).to_bytes(4, "little")
    assert checked(libc.syscall(426, ring, 1, 1, 1, None, 0)) == 1  # IORING_ENTER_GETEVENTS
    os.close(ring)


READING: dict[str, Callable[[socket.socket], bytes]] = {
    one.__name__: one for one in (recv, peek, pieces, recvmmsg, preadv2)
}
WRITING: dict[str, Callable[[socket.socket, bytes], None]] = {
    one.__name__: one for one in (send, many, sendmmsg, pwritev2, dup, dup2, sendfile, splice, child, uring)
}


def serve(connection: socket.socket, reading: str, writing: str) -> None:
    while True:
        seen = READING[reading](connection)
        if not seen:
            return
        while b"\r\n\r\n" not in seen:
            seen += READING[reading](connection)
        head, _, body = seen.partition(b"\r\n\r\n")
        left = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]) - len(body)
        while left > 0:
            left -= len(READING[reading](connection))
        for i, part in enumerate(PARTS):
            # The first token and the end go the plain way.
            WRITING[writing if 1 < i < len(PARTS) - 1 else "send"](connection, part)
            time.sleep(0.002)


def main(way: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        with connection:
            serve(connection, *way.split("-"))


if __name__ == "__main__":
    main(sys.argv[1])
