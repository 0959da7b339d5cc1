"""Small streaming servers to trace, one a process: ``python servers.py KIND``; prints the port when it
listens.

Each answers POST with a role chunk, `TOKENS` content chunks and [DONE], as Server-Sent Events over HTTP/1.1
with chunked encoding. The kinds differ in the system calls that they make:

    asyncio          an event loop; recvfrom or recv, sendto
    uvicorn          the server under `transformers serve`
    read-write, readv-writev, recv-send, recvmsg-sendmsg
                     a thread a connection, by these calls only
    greedy           as recv-send, but reads one byte first
    tls              accepts and reads, as a TLS server would
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

TOKENS = 5
GAP_S = 0.004
PREFILL_S = 0.02

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def event(delta: dict[str, str]) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"


ROLE = event({"role": "assistant", "content": ""})
DONE = b"data: [DONE]\n\n"


def token(i: int) -> bytes:
    return event({"content": f"tok{i} "})


def framed(data: bytes) -> bytes:
    return b"%x\r\n" % len(data) + data + b"\r\n"


async def _asyncio() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                writer.write(HEAD)
                writer.write(framed(ROLE))
                await asyncio.sleep(PREFILL_S)
                for i in range(TOKENS):
                    writer.write(framed(token(i)))
                    await writer.drain()
                    await asyncio.sleep(GAP_S)
                writer.write(framed(DONE) + b"0\r\n\r\n")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=512, limit=1 << 24)
    announce(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def _uvicorn() -> None:
    import uvicorn

    async def app(scope: dict[str, object], receive: Callable, send: Callable) -> None:  # type: ignore[type-arg]
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": ROLE, "more_body": True})
        await asyncio.sleep(PREFILL_S)
        for i in range(TOKENS):
            await send({"type": "http.response.body", "body": token(i), "more_body": True})
            await asyncio.sleep(GAP_S)
        await send({"type": "http.response.body", "body": DONE})

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(512)
    announce(listener.getsockname()[1])
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


def _read(kind: str, connection: socket.socket, size: int) -> bytes:
    if kind == "read":
        return os.read(connection.fileno(), size)
    if kind == "readv":
        buffers = [bytearray(7), bytearray(0), bytearray(size)]
        got = os.readv(connection.fileno(), buffers)
        return b"".join(buffers)[:got]
    if kind == "recvmsg":
        return connection.recvmsg(size)[0]
    return connection.recv(size)


def _write(kind: str, connection: socket.socket, data: bytes) -> None:
    third = len(data) // 3
    parts = [data[:third], b"", data[third : 2 * third], data[2 * third :]]
    if kind == "write":
        assert os.write(connection.fileno(), data) == len(data)
    elif kind == "writev":
        assert os.writev(connection.fileno(), parts) == len(data)
    elif kind == "sendmsg":
        assert connection.sendmsg(parts) == len(data)
    else:
        connection.sendall(data)


def _threads(reading: str, writing: str, first: int = 65536) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)

    def serve(connection: socket.socket) -> None:
        with connection:
            while True:
                seen = _read(reading, connection, first)
                while seen and b"\r\n\r\n" not in seen:
                    seen += _read(reading, connection, 65536)
                if not seen:
                    return
                head, _, body = seen.partition(b"\r\n\r\n")
                left = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]) - len(body)
                while left > 0:
                    left -= len(_read(reading, connection, 65536))
                _write(writing, connection, HEAD + framed(ROLE))
                time.sleep(PREFILL_S)
                for i in range(TOKENS):
                    _write(writing, connection, framed(token(i)))
                    time.sleep(GAP_S)
                _write(writing, connection, framed(DONE) + b"0\r\n\r\n")

    announce(listener.getsockname()[1])
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


def _tls() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    announce(listener.getsockname()[1])
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"\x15\x03\x01\x00\x02\x02\x28")


def announce(port: int) -> None:
    print(port, flush=True)


def main(kind: str) -> None:
    if kind == "asyncio":
        asyncio.run(_asyncio())
    elif kind == "uvicorn":
        _uvicorn()
    elif kind == "tls":
        _tls()
    elif kind == "greedy":
        _threads("recv", "send", first=1)
    else:
        reading, writing = kind.split("-")
        _threads(reading, writing)


if __name__ == "__main__":
    main(sys.argv[1])
