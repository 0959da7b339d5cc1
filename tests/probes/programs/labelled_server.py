"""A streaming server that says when each part of a request's first token happened: the truth for the join.

``python labelled_server.py LIBRARIES`` serves one request at a time, in the order in which they came. The
model runs in a child process (as vLLM's engine core does): steps on the mock vendor libraries in the folder
LIBRARIES. A request's path is ``/CHUNKS/NUMBER``: its prompt is prefilled in so many steps. Prints the port
and the engine's process id, then for each request a JSON object with times in ns of CLOCK_MONOTONIC:

    number, starts, ends (of its prefill steps, last the one that makes the first token), write (just before
    the first token's)
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import multiprocessing
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PREFILL_S, DECODE_S, PAUSE_S, SEND_S, TOKENS, CHUNK = 0.03, 0.003, 0.006, 0.015, 4, 32
STREAM = 0x20010


class Engine:
    """A model on the mock libraries."""

    def __init__(self, folder: Path) -> None:
        # The order in which the loader resolves them for a linked program.
        self._libraries = [
            ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
            for name in ("libacl_rt.so", "libnnopbase.so", "libopapi.so")
        ]

    def call(self, name: str, *arguments: Any) -> int:
        function = next(
            getattr(library, name) for library in reversed(self._libraries) if hasattr(library, name)
        )
        function.restype = ctypes.c_void_p
        return function(*arguments) or 0

    def _tensor(self, kind: int, *dims: int) -> ctypes.c_void_p:
        """A tensor of an aclDataType: 1 float16, 9 int64."""
        array = (ctypes.c_int64 * len(dims))(*dims)
        n = ctypes.c_uint64(len(dims))
        made = self.call(
            "aclCreateTensor", array, n, ctypes.c_int32(kind), None, ctypes.c_int64(0), 2, array, n, None
        )
        return ctypes.c_void_p(made)

    def step(self, length: int, seconds: float, marks: list[int] | None = None) -> tuple[int, int]:
        """A forward pass over `length` tokens that takes `seconds`; its begin and end. `marks` gets when it
        had begun, and when its end had not come."""
        out, indices, table = (
            self._tensor(1, 1, length, 64),
            self._tensor(9, 1, length),
            self._tensor(1, 1000, 64),
        )
        size, executor = ctypes.c_uint64(), ctypes.c_void_p()
        start = time.monotonic_ns()
        self.call(
            "aclnnEmbeddingGetWorkspaceSize", table, indices, out, ctypes.byref(size), ctypes.byref(executor)
        )
        begun = time.monotonic_ns()
        stream = ctypes.c_void_p(STREAM)
        self.call("aclnnEmbedding", None, ctypes.c_uint64(0), executor, stream)
        for _ in range(40):
            self.call("aclnnMatmul", None, ctypes.c_uint64(0), None, stream)
        time.sleep(seconds)
        if marks is not None:
            marks += [begun, time.monotonic_ns()]
        self.call("aclrtSynchronizeStreamWithTimeout", stream, ctypes.c_int32(-1))
        end = time.monotonic_ns()
        for tensor in (out, indices, table):
            self.call("aclDestroyTensor", tensor)
        return start, end


def engine(folder: Path, pipe: Connection, front: Connection) -> None:
    front.close()  # else it would not notice the server's death
    model = Engine(folder)
    model.step(8, 0.001)
    pipe.send("ready")
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            pipe.send(model.step(*pipe.recv()))


def event(text: str, usage: dict[str, int] | None = None) -> bytes:
    choices = [{"index": 0, "delta": {"content": text}}] if text else []
    data = b"data: " + json.dumps({"choices": choices, "usage": usage}).encode() + b"\n\n"
    return b"%x\r\n" % len(data) + data + b"\r\n"


async def main(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    pipe, other = context.Pipe()
    child = context.Process(target=engine, args=(folder, other, pipe), daemon=True)
    child.start()
    other.close()
    pipe.recv()
    turn = asyncio.Lock()

    async def forward(length: int, seconds: float) -> tuple[int, int]:
        pipe.send((length, seconds))
        return await asyncio.to_thread(pipe.recv)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                _, chunks, number = head.split(b" ")[1].split(b"/")
                async with turn:
                    steps = []
                    for _ in range(int(chunks)):
                        await asyncio.sleep(PAUSE_S)
                        steps.append(await forward(CHUNK, PREFILL_S))
                    await asyncio.sleep(SEND_S)
                    writer.write(
                        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                        b"transfer-encoding: chunked\r\n\r\n"
                    )
                    write = time.monotonic_ns()
                    writer.write(event("tok0"))
                    for i in range(1, TOKENS):
                        await forward(1, DECODE_S)
                        writer.write(event(f"tok{i}"))
                    usage = {"prompt_tokens": CHUNK * int(chunks), "completion_tokens": TOKENS}
                    writer.write(event("", usage) + b"0\r\n\r\n")
                truth = {"number": int(number), "write": write}
                truth["starts"], truth["ends"] = zip(*steps, strict=True)  # type: ignore[assignment]
                print(json.dumps(truth), flush=True)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], child.pid, flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
